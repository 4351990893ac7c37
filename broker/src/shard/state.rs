//! A shard while it runs: its engine, its log, and who waits for them, in one cell that no borrow leaves.
//!
//! ```text
//!   produce ─► decide ─► append ─► apply ─► wait for the level ─┐
//!                                                 progress() ◄──┤ once per turn, by the shard's own task
//!   flush completed ─► log.complete ─────────────────────────── ┘     releases answers, hands out deliveries
//! ```
//!
//! All changes are made by short calls that end before anything is awaited, so that what one call sees another has finished.

use crate::engine::{
    Acknowledgements, BatchPlace, CatalogueId, CatalogueState, Delivery, Engine, GroupState, OffsetEntry, ReaderOwner,
    TopicState,
};
use crate::limits::COLD_READ;
use crate::log::index::LogIndexes;
use crate::log::{AppendRefused, Log, LogTask, ReadError};
use crate::shard::catalogue::{ChangeAsked, Home};
use crate::shard::clock;
use crate::shard::connection::Mark;
use crate::shard::connection::outbox::LogBytes;
use crate::shard::connection::outlet::{ColdBlock, Held, Outlet};
use crate::shard::crowd::Crowd;
use crate::shard::event::Event;
use crate::shard::executor::Executor;
use crate::shard::group::places::{self, PlaceAnswer};
use crate::shard::look_ups::{self, LookUp, LookUps};
use crate::shard::mesh_messages::CatalogueAsked;
use crate::shard::open_log::OpenLog;
use crate::shard::peers::PeerId;
use crate::shard::router::{Asker, is_large};
use crate::shard::seams::PlantedInShards;
use crate::shard::search::Searches;
use crate::shard::stages::{Stage, Stages};
use crate::shard::storage::{ShardDisk, ShardRings};
use crate::shard::{answers, catalogue};
use peregrine_protocol::entry::{Entry, EntryHeader, EntryKind, EntrySeal, entry_len};
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Correlation, LogPosition, Nanos, ShardId, SubscriptionId};
use peregrine_protocol::limits::ENTRY_HEADER_LEN;
use peregrine_protocol::message::ProduceAnswer;
use std::cell::{Cell, Ref, RefCell};
use std::ops::Deref;
use std::rc::Rc;

/// The log of production.
pub type ShardLog = Log<ShardDisk, ShardRings>;
/// A task of it.
pub type ShardTask = LogTask<ShardDisk>;
/// And its indexes.
pub type ShardIndexes = LogIndexes<ShardDisk>;

/// Whoever waits for the log to reach a position at a level.
pub enum Waiting {
    Batch {
        asker: Asker,
        correlation: Correlation,
        answer: ProduceAnswer,
        received_at: Nanos,
        appended_at: Nanos,
    },
    /// An acknowledgement or a reset of a group's place.
    Place {
        asker: Asker,
        correlation: Correlation,
        answer: PlaceAnswer,
    },
    /// A catalogue change whose entry this is.
    Change(ChangeAsked),
    /// A catalogue change that could not be decided while another was on its way.
    ChangeAgain(ChangeAsked),
}

/// What the calls on a shard change.
pub struct Core {
    pub engine: Engine,
    pub log: OpenLog,
    pub waiting: Acknowledgements<Waiting>,
    /// How many may wait.
    places: usize,
    pub stages: Stages,
    pub home: Home,
}

/// Counts of one shard.
#[derive(Debug, Default)]
pub struct ShardCounters {
    pub produced_batches: Cell<u64>,
    pub produced_records: Cell<u64>,
    pub duplicates: Cell<u64>,
    pub delivered_batches: Cell<u64>,
    pub busy: Cell<u64>,
    pub corrupt: Cell<u64>,
}

/// One shard.
pub struct Shard {
    pub id: ShardId,
    pub seal: EntrySeal,
    pub message_max: u32,
    pub counters: ShardCounters,
    pub core: RefCell<Core>,
    /// Raised when its task has something to do.
    pub work: Event,
    /// Wakes the task that makes and follows the assignments of groups.
    pub group_work: Event,
    /// Log tasks that run.
    pub in_flight: Cell<usize>,
    /// The log was closed: its task ends.
    pub closed: Cell<bool>,
    poison_told: Cell<bool>,
    /// A read of the disk has failed in this run.
    pub read_failed: Cell<bool>,
    room_waiters: Crowd,
    pub look_ups: LookUps,
    pub searches: Searches,
    /// Wait for an index to be made.
    pub index_news: Crowd,
}

/// Why a batch's bytes are not at hand.
#[derive(Debug)]
pub enum NoBytes {
    /// These have to be read from disk first.
    Unread(LogBytes),
    /// Nothing will bring them: they are not the batch's, the disk does not give them, or they are no longer kept.
    Gone(ErrorCode),
}

/// A look at the bytes of a shard's ring, for as long as nothing else happens.
pub struct RingView<'a>(Ref<'a, Core>);

impl RingView<'_> {
    /// The bytes at `position`, if they still stand there.
    pub fn get(&self, position: LogPosition, len: usize) -> Option<&[u8]> {
        self.0.log.get()?.read_ring(position, len)
    }
}

impl Shard {
    pub fn new(id: ShardId, engine: Engine, log: ShardLog, message_max: u32, places: usize) -> Rc<Self> {
        let seal = log.seal();
        let core = Core {
            engine,
            log: OpenLog::new(log),
            waiting: Acknowledgements::default(),
            places,
            stages: Stages::default(),
            home: Home::default(),
        };
        Rc::new(Shard {
            id,
            seal,
            message_max,
            counters: ShardCounters::default(),
            core: RefCell::new(core),
            work: Event::default(),
            group_work: Event::default(),
            in_flight: Cell::new(0),
            closed: Cell::new(false),
            poison_told: Cell::new(false),
            read_failed: Cell::new(false),
            room_waiters: Crowd::default(),
            look_ups: LookUps::default(),
            searches: Searches::default(),
            index_news: Crowd::default(),
        })
    }

    // Reading the log.

    pub fn ring(&self) -> RingView<'_> {
        RingView(self.core.borrow())
    }

    /// The header of a batch, from the ring or from a block that was read.
    ///
    /// What one block holds of the payload has to be at hand too: once the header is on its way, a payload that cannot be read
    /// leaves nothing but to close the connection.
    pub fn header_of(&self, batch: &BatchPlace, cold: Option<&ColdBlock>) -> Result<EntryHeader, NoBytes> {
        let len = (ENTRY_HEADER_LEN + batch.length as usize).min(COLD_READ);
        self.with_bytes(batch, len, cold, |header, _| header)
    }

    /// The bytes of a batch that are to be read to their end before its header leaves, once a read of this shard's disk has
    /// failed: a batch of several blocks, of which one beyond the first may be the one that the disk does not give. A disk
    /// that never failed is not asked twice.
    pub fn to_probe(&self, batch: &BatchPlace, probed: Option<(ShardId, LogPosition)>) -> Option<LogBytes> {
        let (position, len) = (batch.position, ENTRY_HEADER_LEN + batch.length as usize);
        if !self.read_failed.get() || len <= COLD_READ || probed == Some((self.id, position)) {
            return None;
        }
        let in_ring = self.ring().get(position, len).is_some();
        (!in_ring).then_some(LogBytes { shard: self.id, position, len })
    }

    /// Lends out a batch's header and payload.
    pub fn with_entry(
        &self,
        batch: &BatchPlace,
        cold: Option<&ColdBlock>,
        use_it: impl FnOnce(&EntryHeader, &[u8]),
    ) -> Result<(), NoBytes> {
        let len = ENTRY_HEADER_LEN + batch.length as usize;
        self.with_bytes(batch, len, cold, |header, payload| use_it(&header, payload))
    }

    /// Why what stands there cannot be read: its segment was retired while a consumer took its time, or it is damaged.
    pub fn why_gone(&self, position: LogPosition) -> ErrorCode {
        let core = self.core.borrow();
        let is_retired = core.log.get().is_some_and(|log| position < log.begins_at());
        if is_retired { ErrorCode::OffsetTooOld } else { ErrorCode::Damaged }
    }

    fn with_bytes<R>(
        &self,
        batch: &BatchPlace,
        len: usize,
        cold: Option<&ColdBlock>,
        use_it: impl FnOnce(EntryHeader, &[u8]) -> R,
    ) -> Result<R, NoBytes> {
        let missing = LogBytes { shard: self.id, position: batch.position, len };
        let core = self.core.borrow();
        let in_ring = core.log.get().and_then(|log| log.read_ring(batch.position, len));
        let in_block = || cold?.get(self.id, batch.position, len).filter(|bytes| bytes.len() == len);
        let Some(bytes) = in_ring.or_else(in_block) else {
            let unreadable = cold.is_some_and(|block| block.is_unreadable_at(self.id, batch.position));
            return Err(if unreadable {
                NoBytes::Gone(self.why_gone(batch.position))
            } else {
                NoBytes::Unread(missing)
            });
        };
        let (header, payload) = bytes.split_at(ENTRY_HEADER_LEN);
        match Entry::decode(header, self.seal) {
            Ok(Entry::Full(header)) if header.position == batch.position => Ok(use_it(header, payload)),
            // What was read is durable and never changes: to read it again would be to read it for ever.
            _ => {
                tracing::error!(shard = self.id.0, position = batch.position.0, "a consumer's messages are damaged");
                Err(NoBytes::Gone(ErrorCode::Damaged))
            }
        }
    }

    /// The indexes of the log's sealed segments; none once it is closed.
    pub fn indexes(&self) -> Option<ShardIndexes> {
        self.core.borrow().log.get().map(ShardLog::indexes)
    }

    /// Reads durable bytes: up to `wish`, at least `need`.
    pub fn read_disk(
        &self,
        position: LogPosition,
        need: usize,
        wish: usize,
    ) -> impl Future<Output = Result<Box<dyn Deref<Target = [u8]>>, ReadError>> + use<> {
        let open = self.core.borrow().log.get().map(|log| (log.reader(), log.durable()));
        async move {
            let Some((reader, durable)) = open else { return Err(ReadError::NotInLog(position)) };
            if need > COLD_READ {
                return reader.read(position, need).await.map(|bytes| Box::new(bytes) as Box<dyn Deref<Target = [u8]>>);
            }
            let bytes = reader.read_shared(position, need, wish, durable).await?;
            Ok(Box::new(bytes) as Box<dyn Deref<Target = [u8]>>)
        }
    }

    // Progress.

    /// Tells the engine how far the log is, answers who waited for that, and hands out what became visible.
    pub fn progress(self: &Rc<Self>, executor: &Rc<Executor>) {
        let now = clock::monotonic();
        let mut effects = Vec::new();
        let mut changes = Vec::new();
        let mut again = Vec::new();
        {
            let core = &mut *self.core.borrow_mut();
            // First: a turn that poisons the log acknowledges nothing any more.
            if core.log.is_poisoned() {
                self.tell_poison(executor, core);
            }
            let was_full = !Self::has_place_to_wait(core);
            let (published, durable) = (core.log.published(), core.log.durable());
            core.engine.on_published(published);
            core.engine.on_durable(durable);
            let answers_early = executor.seams.has_planted(PlantedInShards::AnswerBatchesEarly);
            let synced = if answers_early { published } else { durable };
            while let Some(waiting) = core.waiting.next_released(published, synced) {
                match waiting {
                    Waiting::Batch { asker, correlation, answer, received_at, appended_at } => {
                        core.stages.record(Stage::Flush, appended_at, now, 1);
                        self.acknowledge(executor, asker, correlation, &answer, received_at, now);
                    }
                    Waiting::Place { asker, correlation, answer } => {
                        executor.answer(asker, |out| answer.encode(correlation, out));
                    }
                    Waiting::Change(asked) => changes.push(asked),
                    Waiting::ChangeAgain(asked) => again.push(asked),
                }
            }
            if was_full && Self::has_place_to_wait(core) {
                self.room_came();
            }
            while let Some(state) = core.engine.next_catalogue_effect() {
                effects.push(state);
            }
            places::write_beginnings(core);
            self.hand_out(executor, &mut core.engine, now);
        }
        if self.core.borrow().engine.has_group_work() {
            self.group_work.raise();
        }
        if !effects.is_empty() || !changes.is_empty() {
            catalogue::took_effect(executor, self, &effects, changes);
        }
        for asked in again {
            catalogue::ask(executor, self, asked);
        }
    }

    fn acknowledge(
        &self,
        executor: &Executor,
        asker: Asker,
        correlation: Correlation,
        answer: &ProduceAnswer,
        received_at: Nanos,
        now: Nanos,
    ) {
        executor.answer(asker, |out| answer.encode(correlation, out));
        if let Asker::Here(peer) = asker
            && let Some(connection) = executor.peers.connection(peer)
        {
            connection.mark(Mark { shard: self.id, stage: Stage::Acknowledge, since: now });
            connection.mark(Mark { shard: self.id, stage: Stage::Whole, since: received_at });
        }
    }

    fn tell_poison(&self, executor: &Executor, core: &mut Core) {
        core.engine.on_poisoned();
        for waiting in core.waiting.drain() {
            let (asker, correlation) = match waiting {
                Waiting::Batch { asker, correlation, .. } | Waiting::Place { asker, correlation, .. } => {
                    (asker, correlation)
                }
                Waiting::Change(asked) | Waiting::ChangeAgain(asked) => (asked.asker, asked.correlation),
            };
            executor.refuse(asker, correlation, ErrorCode::Poisoned);
        }
        if !self.poison_told.replace(true) {
            let reason = core.log.poison_reason().unwrap_or_default();
            let messages = core.log.messages_only_in_ring();
            tracing::error!(
                shard = self.id.0,
                reason,
                messages,
                "the shard's log is poisoned: it acknowledges nothing until the broker is started again"
            );
        }
    }

    /// Hands batches to those whose turn it is.
    fn hand_out(self: &Rc<Self>, executor: &Rc<Executor>, engine: &mut Engine, now: Nanos) {
        while let Some(delivery) = engine.next_delivery() {
            match delivery {
                Delivery::Batch { owner, subscription, batch } => {
                    let Some(peer) = executor.peers.get(PeerId(owner.0)) else { continue };
                    self.counters.delivered_batches.set(self.counters.delivered_batches.get() + 1);
                    let held = Held::Delivery { shard: self.id, subscription, batch, handed_out_at: now };
                    peer.outlet().hold(held);
                }
                Delivery::LookUp { owner, subscription, queue, offset, below, behind } => {
                    let look_up = LookUp::Batches { owner, subscription, queue, offset, below, behind };
                    look_ups::ask(executor, self, look_up);
                }
                Delivery::Ask { question } => look_ups::ask(executor, self, LookUp::One(question)),
                Delivery::Revoked { owner, subscription } => {
                    executor.push_to(PeerId(owner.0), |out| answers::revoked(out, self.id, subscription));
                }
                Delivery::Ended { owner, subscription, code } => {
                    let owner = PeerId(owner.0);
                    if let Some(peer) = executor.peers.get(owner) {
                        peer.outlet().forget(self.id, subscription);
                    }
                    executor.push_to(owner, |out| answers::ended(out, self.id, subscription, code));
                }
            }
        }
    }

    /// A batch is on its way to its reader.
    pub fn delivered(self: &Rc<Self>, executor: &Rc<Executor>, subscription: SubscriptionId) {
        let core = &mut *self.core.borrow_mut();
        core.engine.delivered(subscription);
        self.hand_out(executor, &mut core.engine, clock::monotonic());
    }

    /// The next batch of this subscription is damaged: it ends, and nobody else's does. True if the caller is to tell its
    /// peer; false where the topic was deleted meanwhile and the peer hears of that.
    pub fn end_damaged(&self, owner: PeerId, outlet: &Outlet, subscription: SubscriptionId) -> bool {
        outlet.forget(self.id, subscription);
        // It may be another member's turn now, who is served by the shard's task.
        self.work.raise();
        self.core.borrow_mut().engine.unsubscribe(ReaderOwner(owner.0), subscription).is_ok()
    }

    /// Hands out what a request made ready: a subscription began, or credit came.
    pub fn hand_out_now(self: &Rc<Self>, executor: &Rc<Executor>) {
        self.hand_out(executor, &mut self.core.borrow_mut().engine, clock::monotonic());
    }

    /// A peer is gone, and its subscriptions with it.
    pub fn detach(&self, peer: PeerId) {
        self.core.borrow_mut().engine.detach(ReaderOwner(peer.0), clock::monotonic());
        // What it held in groups is for others now, who are told by the shard's task.
        self.work.raise();
    }

    pub fn record(&self, stage: Stage, since: Nanos, until: Nanos) {
        self.core.borrow_mut().stages.record(stage, since, until, 1);
    }

    // Catalogue.

    /// News of the catalogue, for a shard that is not its home.
    pub fn learn(&self, state: &CatalogueState) {
        let mut core = self.core.borrow_mut();
        if !core.engine.is_home() {
            core.engine.catalogue_changed(state);
            // Readers of a deleted topic are told by the shard's task, which may have nothing else to wake it.
            self.work.raise();
        }
    }

    pub fn catalogue_state(&self, id: CatalogueId) -> CatalogueState {
        self.core.borrow().engine.catalogue_state(id)
    }

    /// What this shard knows of a topic or a group; none where it has none of that name.
    pub fn catalogue_asked(&self, asked: &CatalogueAsked) -> Option<CatalogueState> {
        match asked {
            CatalogueAsked::Id(id) => Some(self.catalogue_state(*id)),
            CatalogueAsked::TopicNamed(name) => {
                let core = self.core.borrow();
                core.engine.topic_named(name).cloned().map(|topic| TopicState::Live(topic).into())
            }
            CatalogueAsked::GroupNamed(name) => {
                let core = self.core.borrow();
                core.engine.group_named(name).cloned().map(|group| GroupState::Live(group).into())
            }
        }
    }

    // Room.

    /// Room may have come, or will not come any more: those who wait for it try again.
    pub fn room_came(&self) {
        self.room_waiters.call();
    }

    /// True when room may have come before `deadline`.
    pub async fn room(&self, deadline: Nanos) -> bool {
        // The refusal itself may have given the log something to do: a segment to pass over, a unit to seal.
        self.work.raise();
        self.room_waiters.called(deadline).await
    }

    /// Requests that wait for room.
    pub fn waiting_for_room(&self) -> usize {
        self.room_waiters.waiting()
    }

    /// Whether a batch of so many bytes, or an entry that moves a place, need not wait; true also where it would be refused.
    pub fn has_room_for(&self, payload: usize) -> bool {
        let core = self.core.borrow();
        let payload = payload.max(OffsetEntry::PAYLOAD);
        let admits = |log: &ShardLog| log.admit(EntryKind::Batch, entry_len(payload as u32), is_large(payload));
        Self::has_place_to_wait(&core) && core.log.get().map(admits) != Some(Err(AppendRefused::NoRoom))
    }

    /// Whether one more acknowledgement may wait.
    pub fn has_place_to_wait(core: &Core) -> bool {
        core.waiting.len() < core.places
    }
}
