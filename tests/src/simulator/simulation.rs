//! One seed's life: starts, work, crashes, and what outlives each of them.

use std::collections::BTreeSet;

use peregrine_broker::engine::EngineOptions;
use peregrine_broker::log::damage::Damage;
use peregrine_broker::log::disk::simulated::{Conditions, Crash, Failures, Machine, Phase, Random};
use peregrine_broker::log::fault::{Faults, RecoveryStep};
use peregrine_broker::log::{LogOptions, StartError};
use peregrine_protocol::ids::{Epoch, LogPosition, Nanos, ShardId};

use super::catalogue::KnownCatalogue;
use super::configuration::Configuration;
use super::fault::Fault;
use super::group::{Consumers, GROUP_DRAIN, GroupSettings};
use super::incident::Incident;
use super::ledger::{BatchMark, Ledger};
use super::process::{Found, Shard};
use super::producer::Producer;
use super::reader::Reader;
use super::statistics::Statistics;
use super::violation::Violation;

/// A running broker: one shard after the other.
pub struct Process {
    pub shards: Vec<Shard>,
}

/// An entry below durable that was damaged, and whether a start has said so.
#[derive(Clone, Copy, Debug)]
pub struct ExpectedDamage {
    pub shard: u16,
    pub position: LogPosition,
    pub told: bool,
}

/// How a life ended that no armed crash ended.
enum Ending {
    NotStarted,
    Abandoned,
    Stopped,
}

/// The state of one seed.
pub struct Simulation {
    pub(super) machine: Machine,
    pub(super) random: Random,
    pub(super) configuration: Configuration,
    pub(super) ledgers: Vec<Ledger>,
    pub(super) producers: Vec<Producer>,
    pub(super) readers: Vec<Reader>,
    pub(super) catalogue: KnownCatalogue,
    pub(super) consumers: Consumers,
    pub(super) fault: Option<Fault>,
    /// Batches that were acknowledged and that a power cut took.
    pub(super) taken: BTreeSet<BatchMark>,
    /// Payload CRCs in use, and the number of the next batch.
    pub(super) marks: BTreeSet<BatchMark>,
    pub(super) next_number: u64,
    /// Where this life's rings are.
    pub(super) rings: Option<&'static str>,
    /// Whether this life's rings and segments are larger than the least.
    grown: (bool, bool),
    /// Whether the process of this life came up.
    pub(super) is_up: bool,
    /// The crash that strikes behind a step of this life's start, on one shard.
    strikes_at: Option<(u16, RecoveryStep, Crash)>,
    /// What was damaged on purpose.
    pub(super) damage: Option<ExpectedDamage>,
    /// `--accept-loss`.
    pub(super) accepts_loss: bool,
    /// What befell the broker since its last start, until a start has met it.
    pub(super) incident: Option<Incident>,
    /// `--discard-ring`.
    pub(super) discard_ring: Option<(u16, Epoch)>,
    /// The wall clock is this far ahead of the machine's.
    wall_ahead: u64,
    pub(super) statistics: Statistics,
}

impl Simulation {
    pub fn new(seed: u64, planted: Option<Fault>, verbose: bool) -> Self {
        let mut random = Random::new(seed);
        let configuration = Configuration::random(&mut random, planted.and_then(Fault::in_log));
        let settings = GroupSettings::random(&mut random.fork());
        let shards = usize::from(configuration.shards);
        let machine = Machine::new(random.next_u64(), shards, configuration.conditions);
        machine.set_verbose(verbose);
        let rings = Configuration::ring_directory(&mut random);
        Self {
            machine,
            random,
            configuration,
            ledgers: (0..shards).map(|_| Ledger::default()).collect(),
            producers: Vec::new(),
            readers: Vec::new(),
            catalogue: KnownCatalogue::default(),
            consumers: Consumers::new(settings),
            fault: planted,
            taken: BTreeSet::new(),
            marks: BTreeSet::new(),
            next_number: 1,
            rings,
            grown: (false, false),
            is_up: false,
            strikes_at: None,
            damage: None,
            accepts_loss: false,
            incident: None,
            discard_ring: None,
            wall_ahead: 1_700_000_000_000_000_000,
            statistics: Statistics::default(),
        }
    }

    pub fn trace(&self) -> u64 {
        self.machine.trace()
    }

    pub fn statistics(&self) -> Statistics {
        let interrupted = self.machine.interrupted();
        let [in_flushes, in_segments, in_marks, in_checkpoints, in_indexes, in_retirements, in_starts] = interrupted;
        let Failures { failed, full, short_reads, short_writes, happened } = self.machine.failures();
        let [lists, opens, makes, renames, removes, directory_syncs, reads, extensions, writes, syncs, rings] = failed;
        Statistics {
            failed_lists: lists,
            failed_opens: opens,
            failed_makes: makes,
            failed_renames: renames,
            failed_removes: removes,
            failed_directory_syncs: directory_syncs,
            failed_reads: reads,
            failed_extensions: extensions,
            failed_writes: writes,
            failed_syncs: syncs,
            failed_rings: rings,
            failed_full: full,
            short_reads,
            short_writes,
            happened,
            in_flushes,
            in_segments,
            in_marks,
            in_checkpoints,
            in_indexes,
            in_retirements,
            in_starts,
            ..self.statistics
        }
    }

    pub fn run(&mut self) -> Result<(), Violation> {
        for _ in 0..self.configuration.lives {
            self.something_happens();
            self.arm();
            self.live(Self::work_until_the_end)?;
            self.mend()?;
        }
        self.machine.disarm();
        self.strikes_at = None;
        self.machine.set_conditions(Conditions::default());
        self.finale()
    }

    /// One life of the broker: `work` is what it is there for. True where no crash ended it.
    pub(super) fn live(
        &mut self,
        work: impl FnOnce(&mut Self, &mut Process) -> Result<(), Violation>,
    ) -> Result<bool, Violation> {
        let may_move = !self.incident.as_ref().is_some_and(|incident| incident.took_log_of(0));
        if may_move && self.random.one_in(self.configuration.move_rings_one_in) {
            self.rings = Configuration::ring_directory(&mut self.random);
        }
        if self.random.one_in(4) {
            self.grown = (self.random.coin(), self.random.coin());
        }
        // NTP steps the wall clock, in either direction.
        self.wall_ahead = self.wall_ahead + self.random.below(2_000_000_000) - self.random.below(2_000_000_000);
        self.is_up = false;
        let machine = self.machine.clone();
        let ended = machine.survive(|| -> Result<Ending, Violation> {
            let Some(mut process) = self.start()? else { return Ok(Ending::NotStarted) };
            work(self, &mut process)?;
            let poisoned = process.shards.iter().any(|shard| shard.engine.is_poisoned());
            if poisoned || self.random.coin() {
                return Ok(Ending::Abandoned);
            }
            self.close(process)
        });
        let (crash, finished) = match ended {
            Err(crash) => {
                self.statistics.crashed_starts += u64::from(!self.is_up);
                (crash, false)
            }
            Ok(Err(violation)) => return Err(violation),
            Ok(Ok(Ending::NotStarted)) => (Crash::Kill, false),
            Ok(Ok(Ending::Abandoned)) => (Crash::Kill, true),
            // What was stopped cleanly bears anything.
            Ok(Ok(Ending::Stopped)) => (if self.random.coin() { Crash::Kill } else { Crash::Power }, true),
        };
        self.end_of_process(crash)?;
        Ok(finished)
    }

    fn end_of_process(&mut self, crash: Crash) -> Result<(), Violation> {
        match crash {
            Crash::Kill => self.statistics.kills += 1,
            Crash::Power => {
                self.statistics.power_cuts += 1;
                self.incident = self.incident.take().filter(Incident::outlives_power_cut);
            }
        }
        self.machine.crash(crash);
        let ring_survives = !self.is_up || self.rings.is_some();
        for ledger in &mut self.ledgers {
            ledger.crashed(crash, ring_survives);
        }
        self.producers.iter_mut().for_each(Producer::disconnected);
        self.readers.iter_mut().for_each(Reader::disconnected);
        self.consumers.process_ended();
        match self.machine.take_breaches().first() {
            Some(breach) => Err(Violation(format!("{breach:?}"))),
            None => Ok(()),
        }
    }

    /// Arms the crash that will end this life: often while it starts, else at any later step, or never.
    fn arm(&mut self) {
        let crash = if self.random.one_in(3) { Crash::Power } else { Crash::Kill };
        self.machine.disarm();
        self.strikes_at = None;
        // Where rings move at every start, the steps of starts matter more than the work between them.
        let kinds = if self.configuration.move_rings_one_in == 1 { 20 } else { 10 };
        if self.random.one_in(4) {
            // Of a part of the work that was begun, each step between two operations is as likely as the others.
            let phase = *self.random.pick(&Phase::ALL);
            let (operations, steps) = (self.random.below(8), self.random.below(4));
            return self.machine.arm_in(phase, operations, steps, crash);
        }
        match self.random.below(kinds) {
            0..2 => self.machine.arm(self.random.below(150), crash),
            2..5 => self.machine.arm(self.random.below(3_000), crash),
            5 => self.machine.arm(self.random.below(12_000), crash),
            6 => {}
            _ => {
                let shard = self.random.below(u64::from(self.configuration.shards)) as u16;
                self.strikes_at = Some((shard, self.any_step(), crash));
            }
        }
    }

    /// Steps around which two rings or two segments could be taken for each other come up more often.
    fn any_step(&mut self) -> RecoveryStep {
        const DELICATE: [RecoveryStep; 3] =
            [RecoveryStep::Renamed, RecoveryStep::DirectorySynced, RecoveryStep::RingReady];
        if self.random.coin() { *self.random.pick(&DELICATE) } else { *self.random.pick(&RecoveryStep::ALL) }
    }

    fn let_strike(&self, faults: &Faults, shard: u16) {
        let Some((_, step, crash)) = self.strikes_at.filter(|(struck, ..)| *struck == shard) else { return };
        let machine = self.machine.clone();
        faults.after_step(move |reached| {
            if reached == step {
                machine.note(&("strikes behind", reached));
                machine.strike(crash);
            }
        });
    }

    pub(super) fn now(&self) -> Nanos {
        Nanos(self.machine.now())
    }

    pub(super) fn wall(&self) -> Nanos {
        Nanos(self.machine.now() + self.wall_ahead)
    }

    /// Starts all shards, shard 0 first. `None`: a device failed, and the broker said so.
    fn start(&mut self) -> Result<Option<Process>, Violation> {
        self.statistics.starts += 1;
        self.machine.note(&("start", self.rings));
        let shards = self.configuration.shards;
        let mut process = Process { shards: Vec::new() };
        for shard in 0..shards {
            let failures = self.machine.failures().errors();
            let options = self.configuration.log_options(shard, &self.machine, self.rings, self.grown);
            let discard_ring = self.discard_ring.filter(|(of, _)| *of == shard).map(|(_, epoch)| epoch);
            let options = LogOptions { accept_loss: self.accepts_loss, discard_ring, ..options };
            self.let_strike(&options.faults, shard);
            let memory_level = Configuration::memory_level(self.rings);
            let engine = EngineOptions { shard: ShardId(shard), shards, memory_level, group_drain: GROUP_DRAIN };
            let snapshot = process.shards.first().map(|home| home.engine.catalogue_snapshot());
            let started = Shard::start(
                &self.machine,
                options,
                engine,
                (self.configuration.checkpoint_slice, self.configuration.retention, self.devices_fail()),
                |engine| {
                    if let Some(snapshot) = &snapshot {
                        engine.install_catalogue(snapshot.clone());
                    }
                },
            );
            let (started, found) = match started {
                Ok(started) => started,
                // What cannot be read may be damage or a ring that is not there: another start can read it again.
                Err(error) if self.machine.failures().errors() > failures => {
                    self.statistics.failed_starts += 1;
                    self.machine.note(&("a start failed", shard, error.to_string()));
                    return Ok(None);
                }
                Err(StartError::Damage(damage)) if self.expects(shard, &damage) => {
                    self.damage = self.damage.map(|expected| ExpectedDamage { told: true, ..expected });
                    return Ok(None);
                }
                Err(error) if self.incident.as_mut().is_some_and(|incident| incident.is_told_by(shard, &error)) => {
                    self.machine.note(&("refused to start", shard, error.to_string()));
                    return Ok(None);
                }
                Err(error) => return Err(Violation(format!("a start after legal crashes alone failed: {error}"))),
            };
            // Where a log is away, what starts in its place is not it.
            if !self.incident.as_ref().is_some_and(|incident| incident.took_log_of(shard)) {
                self.recovered(shard, &started, &found)?;
            }
            process.shards.push(started);
        }
        let highest = process.shards.iter().map(|shard| shard.engine.highest_id()).max();
        if let (Some(home), Some(highest)) = (process.shards.first_mut(), highest) {
            home.engine.raise_id(highest);
            self.catalogue.recovered(&home.engine)?;
            self.consumers.recovered(&home.engine)?;
        }
        for (shard, started) in (0..).zip(&mut process.shards) {
            self.consumers.check_places(usize::from(shard), &started.engine, &self.ledgers[usize::from(shard)])?;
            started.engine.plant(self.fault.and_then(Fault::in_groups));
            self.start_groups(shard, started);
        }
        self.is_up = true;
        Ok(Some(process))
    }

    /// A shard's log came up: the ledger judges what was found, and those whose batches were taken hear of it.
    fn recovered(&mut self, shard: u16, started: &Shard, found: &Found) -> Result<(), Violation> {
        found.check_report()?;
        let ledger = &mut self.ledgers[usize::from(shard)];
        let taken = ledger.recovered(found, started.log.published(), started.log.durable())?;
        self.consumers.log_recovered(usize::from(shard), ledger);
        self.machine.note(&("started", shard, found.entries.len(), started.log.durable(), taken.records.len()));
        self.statistics.restored += u64::from(found.report.checkpoint.is_some());
        self.statistics.taken_back += taken.records.len() as u64;
        self.statistics.adopted += u64::from(taken.adopted);
        for record in taken.records {
            let mark = record.header.payload_crc;
            if record.acknowledged.is_some() {
                self.statistics.lost += 1;
                self.taken.insert(mark);
            }
            self.producers.iter_mut().for_each(|producer| producer.taken_back(mark));
        }
        Ok(())
    }

    fn expects(&self, shard: u16, damage: &Damage) -> bool {
        let covers = |position| {
            damage.extents.iter().any(|damaged| (damaged.extent.from..damaged.extent.to).contains(&position))
        };
        !self.accepts_loss && self.damage.is_some_and(|expected| expected.shard == shard && covers(expected.position))
    }

    pub(super) fn devices_fail(&self) -> bool {
        self.configuration.conditions.fail()
    }

    fn close(&mut self, process: Process) -> Result<Ending, Violation> {
        for (shard, ledger) in process.shards.into_iter().zip(&mut self.ledgers) {
            if !shard.close(&self.machine, &mut self.random, ledger)? {
                return Ok(Ending::Abandoned);
            }
        }
        self.machine.note(&"stopped");
        self.statistics.clean_stops += 1;
        Ok(Ending::Stopped)
    }
}
