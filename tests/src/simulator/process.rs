//! One broker process of a simulation: per shard the real log and the real engine, and between them what the shard's glommio
//! side does in production, in the same order: decide, append, apply; run the log's tasks; tell the engine how far the log is;
//! release acknowledgements; deliver.
//!
//! It lives within [`Machine::survive`] and holds nothing that outlives a crash.

use std::rc::Rc;

use peregrine_broker::checkpointing::{CheckpointOutcome, Checkpointing};
use peregrine_broker::engine::{Acknowledgements, Engine, EngineOptions, ReaderOwner, StartsEntry, StoredBatch};
use peregrine_broker::log::damage::Extent;
use peregrine_broker::log::disk::simulated::{Machine, Random, SimulatedDisk, SimulatedRings, Tasks};
use peregrine_broker::log::{
    AppendRefused, CloseState, Completion, DiskBytes, LargeAppend, Log, LogOptions, ReadError, Replay, RingFate,
    StartError, StartReport,
};
use peregrine_broker::retaining::{Retaining, RetentionBounds, RetentionOutcome};
use peregrine_broker::retaining_topics::{IndexAnswer, RetainingTopics, TopicsTurn};
use peregrine_protocol::entry::{Entry, EntryDraft, EntryHeader, EntrySeal};
use peregrine_protocol::ids::{LogPosition, Nanos, SubscriptionId};
use peregrine_protocol::limits::ENTRY_HEADER_LEN;

use super::group::PlaceWaiting;
use super::ledger::{BatchMark, Ledger};
use super::look_ups::LookUps;
use super::violation::{Violation, promise};

/// Entries from this size on are copied in steps.
const LARGE: usize = 16 << 10;

/// Whom an entry's durability is to be told.
#[derive(Clone, Debug)]
pub enum Waiting {
    Batch { producer: usize, mark: BatchMark, stored: StoredBatch },
    Change { position: LogPosition },
    Place(PlaceWaiting),
}

/// Bytes that a delivery waits for, and what came.
pub struct ColdRead {
    pub owner: ReaderOwner,
    pub subscription: SubscriptionId,
    pub batch: peregrine_broker::engine::BatchPlace,
    pub bytes: Result<DiskBytes<SimulatedDisk>, ReadError>,
}

/// One shard of a running broker.
pub struct Shard {
    pub engine: Engine,
    pub log: Log<SimulatedDisk, SimulatedRings>,
    pub waiting: Acknowledgements<Waiting>,
    pub cold_reads: Tasks<ColdRead>,
    pub look_ups: LookUps,
    tasks: Tasks<Completion<SimulatedDisk>>,
    checkpointing: Checkpointing<SimulatedDisk>,
    checkpoint_tasks: Tasks<CheckpointOutcome<SimulatedDisk>>,
    checkpoints: u64,
    /// Checkpoints that this process has taken.
    pub checkpoints_taken: u64,
    retaining: Retaining,
    retention_tasks: Tasks<RetentionOutcome<SimulatedDisk>>,
    retaining_topics: RetainingTopics,
    topic_tasks: Tasks<IndexAnswer>,
    aged: u64,
    large: Vec<(LargeAppend, Rc<[u8]>)>,
    seal: EntrySeal,
    rolls: u64,
    retired: u64,
    recycled: u64,
    scrubbed: u64,
    /// Whether the devices of this seed fail now and then.
    devices_fail: bool,
}

/// What a start hands over, entry by entry.
struct ReplayInto<'a, P> {
    engine: &'a mut Engine,
    options: EngineOptions,
    prepare: P,
    found: &'a mut Vec<EntryHeader>,
}

impl<P: Fn(&mut Engine)> Replay for ReplayInto<'_, P> {
    fn entry(&mut self, header: &EntryHeader, payload: &[u8]) -> Result<(), String> {
        self.found.push(*header);
        self.engine.apply(header, payload).map(drop).map_err(|error| error.to_string())
    }

    fn lost(&mut self, extent: Extent) {
        self.engine.accept_hole(&(extent.from..extent.to));
    }

    fn begin(&mut self) {
        self.found.clear();
        *self.engine = Engine::new(self.options);
        (self.prepare)(self.engine);
    }

    fn restore(&mut self, section: &[u8]) -> Result<(), String> {
        self.engine.restore(section).map_err(|error| error.to_string())
    }

    fn restored(&mut self) -> Result<(), String> {
        self.engine.restore_end().map_err(|error| error.to_string())
    }
}

/// What a start found.
pub struct Found {
    /// In the order of the log.
    pub entries: Vec<EntryHeader>,
    pub report: StartReport,
}

impl Found {
    /// What the ready line will say is so: how many messages stood only in the ring.
    pub fn check_report(&self) -> Result<(), Violation> {
        let beyond_cut = self.entries.iter().filter(|header| header.position >= self.report.cut);
        let messages: u64 = beyond_cut.map(|header| u64::from(header.record_count)).sum();
        promise!(
            self.report.messages_from_ring == messages,
            "a start reports {} messages from the ring and found {messages} beyond the cut",
            self.report.messages_from_ring
        );
        promise!(messages == 0 || self.report.ring == RingFate::Recovered, "{messages} messages came from no ring");
        Ok(())
    }
}

/// What became of an append.
pub enum Append {
    Done(EntryHeader),
    Refused(AppendRefused),
}

impl Shard {
    /// Starts the shard's log and reads it back into a new engine. The entries found, in order, come with it.
    pub fn start(
        machine: &Machine,
        options: LogOptions,
        engine_options: EngineOptions,
        (checkpoint_slice, retention, devices_fail): (usize, RetentionBounds, bool),
        prepare: impl Fn(&mut Engine),
    ) -> Result<(Self, Found), StartError> {
        let mut engine = Engine::new(engine_options);
        prepare(&mut engine);
        let seal = options.seal();
        let mut found = Vec::new();
        let shard = options.shard.0 as usize;
        let mut replay = ReplayInto { engine: &mut engine, options: engine_options, prepare, found: &mut found };
        let start = Log::start(machine.disk(shard), machine.rings(), options, &mut replay);
        let (log, report) = machine.block_on(start)?;
        engine.recovered(log.durable());
        let look_ups = LookUps::new(log.indexes());
        let shard = Self {
            engine,
            log,
            waiting: Acknowledgements::default(),
            cold_reads: Tasks::default(),
            look_ups,
            tasks: Tasks::default(),
            checkpointing: Checkpointing::new(checkpoint_slice),
            checkpoint_tasks: Tasks::default(),
            checkpoints: 0,
            checkpoints_taken: 0,
            retaining: Retaining::new(retention),
            retention_tasks: Tasks::default(),
            retaining_topics: RetainingTopics::default(),
            topic_tasks: Tasks::default(),
            aged: 0,
            large: Vec::new(),
            seal,
            rolls: 0,
            retired: 0,
            recycled: 0,
            scrubbed: 0,
            devices_fail,
        };
        Ok((shard, Found { entries: found, report }))
    }

    /// Appends an entry that the engine decided on, and applies it, in one turn.
    pub fn append(
        &mut self,
        draft: &EntryDraft,
        payload: &Rc<[u8]>,
        ledger: &mut Ledger,
        now: Nanos,
    ) -> Result<Append, Violation> {
        ledger.attempts(*draft);
        let appended = if payload.len() >= LARGE {
            self.log.begin_large(draft, now).map(|large| {
                let position = large.appended.position;
                self.large.push((large, Rc::clone(payload)));
                position
            })
        } else {
            self.log.append(draft, payload, now).map(|appended| appended.position)
        };
        let position = match appended {
            Ok(position) => position,
            Err(refused) => {
                ledger.refused();
                return Ok(Append::Refused(refused));
            }
        };
        let header = draft.at(position, self.log.epoch());
        ledger.appended(header)?;
        self.note_positions(ledger)?;
        if let Err(error) = self.engine.apply(&header, payload) {
            return Err(Violation(format!("what decide returned does not apply: {error}")));
        }
        Ok(Append::Done(header))
    }

    /// Runs the log's tasks and the copies of large entries as far as they go now.
    pub fn turn(&mut self, random: &mut Random, ledger: &mut Ledger, now: Nanos) -> Result<(), Violation> {
        if !self.large.is_empty() {
            let nth = random.below(self.large.len() as u64) as usize;
            let (large, payload) = &mut self.large[nth];
            if self.log.copy_step(large, payload) {
                drop(self.large.swap_remove(nth));
            }
        }
        self.checkpoint(random, now);
        loop {
            while let Some(task) = self.log.next_task(now) {
                self.tasks.spawn(task.run());
            }
            let Some(completion) = self.tasks.poll(random) else { break };
            // Durable, if it moves, moves here.
            if self.log.complete(completion, now).indexed {
                self.look_ups.indexed(&mut self.engine);
            }
            if self.log.is_poisoned() && !self.engine.is_poisoned() {
                self.engine.on_poisoned();
            }
        }
        self.look_ups.turn(&mut self.engine, random, self.devices_fail)?;
        self.note_positions(ledger)
    }

    /// Takes the checkpoint under way, or the next one, a slice further.
    fn checkpoint(&mut self, random: &mut Random, now: Nanos) {
        if let Some(outcome) = self.checkpoint_tasks.poll(random)
            && let Ok(Some(_)) = self.checkpointing.complete(outcome, &mut self.log, now)
        {
            self.checkpoints += 1;
            self.checkpoints_taken += 1;
        }
        if let Some(task) = self.checkpointing.next_task(&self.engine, &mut self.log, now) {
            self.checkpoint_tasks.spawn(task);
        }
    }

    /// When something is to be done although nothing happens until then. What is due already and cannot be done now (a checkpoint
    /// that would begin where another did) is not to hide what is due later.
    pub fn next_deadline_behind(&self, now: Nanos) -> Option<Nanos> {
        let of_checkpoint = self.checkpointing.next_deadline(&self.log);
        let deadlines = self.log.next_deadline().into_iter().chain(of_checkpoint);
        deadlines.filter(|deadline| *deadline > now).min()
    }

    /// Whether something of it can go on without time passing.
    pub fn has_woken(&self) -> bool {
        let background =
            self.checkpoint_tasks.has_woken() || self.retention_tasks.has_woken() || self.topic_tasks.has_woken();
        background || self.cold_reads.has_woken() || self.look_ups.has_woken()
    }

    /// Tells ledger and engine how far the log is.
    fn note_positions(&mut self, ledger: &mut Ledger) -> Result<(), Violation> {
        let (published, durable) = (self.log.published(), self.log.durable());
        ledger.moved(published, durable)?;
        self.engine.on_published(published);
        self.engine.on_durable(durable);
        Ok(())
    }

    /// The next acknowledgement that may leave.
    pub fn next_released(&mut self) -> Option<Waiting> {
        self.waiting.next_released(self.log.published(), self.log.durable())
    }

    /// Whether all that was taken in is durable and nobody waits.
    pub fn is_quiet(&self) -> bool {
        self.waiting.is_empty()
            && self.large.is_empty()
            && self.cold_reads.is_empty()
            && self.look_ups.is_empty()
            && self.log.durable() == self.log.published()
    }

    /// Segments rolled since the last call.
    pub fn take_rolls(&mut self) -> u64 {
        let before = std::mem::replace(&mut self.rolls, self.log.counters().rolls);
        self.rolls - before
    }

    /// Keeps the log within its bounds: takes the segment that is given up a step further.
    pub fn retain(
        &mut self,
        random: &mut Random,
        ledger: &mut Ledger,
        (now, wall): (Nanos, Nanos),
    ) -> Result<(), Violation> {
        if let Some(outcome) = self.retention_tasks.poll(random) {
            let mut noted = Ok(());
            let append = |engine: &mut Engine, log: &mut Log<_, _>, entry: &StartsEntry| {
                ledger.attempts_starts(entry);
                let given_up_to = log.oldest_segment().map_or(LogPosition(0), |oldest| oldest.end);
                let appended = log.append(&entry.draft, &entry.payload, now).inspect_err(|_| ledger.refused())?;
                let header = entry.draft.at(appended.position, log.epoch());
                noted = ledger.starts_moved(header, given_up_to);
                if let Err(error) = engine.apply(&header, &entry.payload) {
                    noted = Err(Violation(format!("starts that were decided do not apply: {error}")));
                }
                Ok(())
            };
            self.retaining.complete(outcome, &mut self.engine, &mut self.log, (now, wall), append);
            noted?;
        }
        if let Some(task) = self.retaining.next_task(&self.engine, &mut self.log, now, wall) {
            self.retention_tasks.spawn(task);
        }
        Ok(())
    }

    /// Keeps its topics within theirs: takes the topic that is due a step further.
    pub fn retain_topics(
        &mut self,
        random: &mut Random,
        ledger: &mut Ledger,
        (now, wall): (Nanos, Nanos),
    ) -> Result<(), Violation> {
        let mut noted = Ok(());
        let aged = &mut self.aged;
        let mut append = |engine: &mut Engine, log: &mut Log<_, _>, entry: &StartsEntry| {
            ledger.attempts_starts(entry);
            let appended = log.append(&entry.draft, &entry.payload, now).inspect_err(|_| ledger.refused())?;
            let header = entry.draft.at(appended.position, log.epoch());
            // Nobody gives messages up of a topic that keeps them as its shards do.
            let age = |topic| engine.own_age(topic).map_or(Nanos::MAX, |(age, _)| age);
            noted = ledger.topic_starts_moved(header, wall, age);
            if let Err(error) = engine.apply(&header, &entry.payload) {
                noted = Err(Violation(format!("starts that were decided do not apply: {error}")));
            }
            *aged += 1;
            Ok(())
        };
        if let Some(answer) = self.topic_tasks.poll(random) {
            self.retaining_topics.answered(&answer, &mut self.engine, &mut self.log, (now, wall), &mut append);
        }
        let turned = self.retaining_topics.turn(&mut self.engine, &mut self.log, (now, wall), &mut append);
        if let TopicsTurn::Ask(task) = turned {
            self.topic_tasks.spawn(task);
        }
        noted
    }

    /// Entries that gave messages of topics up since the last call.
    pub fn take_aged(&mut self) -> u64 {
        std::mem::take(&mut self.aged)
    }

    /// Segments retired since the last call.
    pub fn take_retired(&mut self) -> u64 {
        let before = std::mem::replace(&mut self.retired, self.log.counters().retired);
        self.retired - before
    }

    /// Files of retired segments made into spares since the last call.
    pub fn take_recycled(&mut self) -> u64 {
        let before = std::mem::replace(&mut self.recycled, self.log.counters().recycled);
        self.recycled - before
    }

    /// Segments scrubbed since the last call.
    pub fn take_scrubbed(&mut self) -> u64 {
        let before = std::mem::replace(&mut self.scrubbed, self.log.counters().scrubbed_segments);
        self.scrubbed - before
    }

    /// Damaged segments and bad indexes that the scrub of this life found.
    pub fn found_by_scrub(&self) -> (u64, u64) {
        (self.log.counters().scrub_damaged, self.log.counters().scrub_bad_indexes)
    }

    /// Checkpoints taken since the last call.
    pub fn take_checkpoints(&mut self) -> u64 {
        std::mem::take(&mut self.checkpoints)
    }

    /// Takes an entry's bytes apart and checks them to the last one.
    pub fn check_entry(&self, bytes: &[u8], position: LogPosition) -> Result<EntryHeader, Violation> {
        match Entry::decode(bytes, self.seal) {
            Ok(Entry::Full(header)) => {
                let payload = bytes.get(ENTRY_HEADER_LEN..ENTRY_HEADER_LEN + header.length as usize);
                let holds = payload.is_some_and(|payload| header.check_payload(payload).is_ok());
                promise!(holds, "the payload that was read at position {position} is not the one appended");
                Ok(header)
            }
            other => Err(Violation(format!("no entry was read at position {position}: {other:?}"))),
        }
    }

    /// Stops the shard cleanly: all that was published is durable then.
    pub fn close(mut self, machine: &Machine, random: &mut Random, ledger: &mut Ledger) -> Result<bool, Violation> {
        self.log.begin_close();
        loop {
            let now = Nanos(machine.now());
            self.retain(random, ledger, (now, Nanos::ZERO))?;
            self.turn(random, ledger, now)?;
            if self.large.is_empty() && self.log.close_state() == CloseState::Done {
                break;
            }
            let until = self.log.next_deadline().map_or(u64::MAX, |deadline| deadline.0.max(machine.now()));
            let progressed = machine.advance(until) || until != u64::MAX || !self.large.is_empty();
            promise!(progressed, "a clean stop waits for something that never comes");
        }
        let (published, durable) = (self.log.published(), self.log.durable());
        match self.log.finish_close() {
            Ok(()) => {
                promise!(durable == published, "a clean stop left {durable}..{published} in the ring");
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }
}
