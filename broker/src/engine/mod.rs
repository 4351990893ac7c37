//! What a shard does with messages, as a plain state machine: no I/O, no clock, no runtime.
//!
//! It has two halves. `decide_*` sees requests and the time and changes nothing: it returns an entry to append, an answer, or a
//! [`Refusal`]. [`Engine::apply`] changes durable state, from entries alone; production, recovery, the simulator and later
//! followers run the same one. What depends on time is decided once and stands in the entry (its store time). In one turn of
//! its executor, and with nothing between, a shard calls
//!
//! ```text
//!   decide_produce ──► log.append ──► apply ──► on_published ┐
//!                        flusher ─────────────► on_durable   ┴─► next_delivery …, Acknowledgements::next_released …
//! ```
//!
//! The state is a cache of the log. A start makes an engine, hands a copy the catalogue of shard 0
//! ([`Engine::install_catalogue`]), may put back what a checkpoint holds ([`Engine::restore`]), applies what the log holds (behind a
//! checkpoint from its begin on), and ends with [`Engine::recovered`]: all that was recovered is durable then, and visible.
//!
//! - `catalogue`: which topics and groups exist
//! - `queue`, `epochs`, `index`: what a queue holds, and where; `indexed`: what is looked up elsewhere
//! - `producer`: what was stored already
//! - `produce`, `reading`: requests to write and to read
//! - `group`: how far consumer groups have read, and who their members are
//! - `visibility`, `reader`, `acknowledgement`: who is told, and when
//! - `queue_starts`, `aging`: from where on queues keep their messages, and which of a topic's are too old
//! - `checkpoint`: saving all of this while it changes, and putting it back

mod acknowledgement;
mod aging;
mod apply;
mod catalogue;
mod checkpoint;
mod digest;
mod epochs;
mod group;
mod index;
mod indexed;
mod produce;
mod producer;
mod queue;
mod queue_starts;
mod reader;
mod reading;
mod refusal;
mod slice;
mod visibility;

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use peregrine_protocol::ids::{GroupId, LogPosition, Nanos, QueueId, QueueOffset, ShardId, SubscriptionId, TopicId};

/// Where a reader begins, as the protocol has it.
pub use peregrine_protocol::message::Start as StartAt;
/// How long a topic keeps its messages, as the protocol has it.
pub use peregrine_protocol::message::TopicRetention;

pub use acknowledgement::Acknowledgements;
pub use aging::Aged;
pub use apply::{Applied, ApplyError, ApplyErrorReason};
pub use catalogue::{
    CatalogueChangeError, CatalogueDecision, CatalogueId, CatalogueSnapshot, CatalogueState, ObjectId,
    RetentionSetting, Topic, TopicState,
};
pub use checkpoint::{CheckpointSave, RestoreError};
pub use group::PlantedInGroups;
pub use group::{
    AckChecked, AckDecision, Group, GroupAck, GroupPlace, GroupStart, GroupState, LagRow, OffsetEntry, OffsetsError,
};
pub use group::{Assignment, HomeEffect, HomeView, Join, Joined, MemberView, Membership, MembershipOptions};
pub use index::{Asked, IndexEntry};
pub use indexed::IndexQuestion;
pub use produce::{BatchOffer, ProduceDecision, StoredBatch};
pub use queue::QueueKey;
pub use queue_starts::{KeepingQueue, QueueStart, StartsEntry, StartsError};
pub use reader::{BatchPlace, Credit, Delivery, ReaderOwner};
pub use reading::{FetchLimits, QueuePlace};
pub use refusal::Refusal;
pub use slice::Slice;

use catalogue::{Catalogue, Removed, Settled};
use checkpoint::Restored;
use group::{GroupQueues, Holders, Share};
use indexed::HeldChunks;
use producer::Ageing;
use queue::Queues;
use reader::{Readers, Turn};
use visibility::Visibility;

/// The shard whose log is the home of the catalogue.
pub const HOME: ShardId = ShardId(0);

/// What `memory` messages get where the ring does not survive the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryLevel {
    /// The ring survives: `memory` is kept as it is.
    #[default]
    Kept,
    /// They are stored at `synced`, and the acknowledgement says so.
    Raised,
    /// They are refused with `LevelUnavailable`.
    Refused,
}

/// Which part of the broker an engine is.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    pub shard: ShardId,
    /// Shards of the broker, this one included.
    pub shards: u16,
    pub memory_level: MemoryLevel,
    /// How long a member that loses a queue to another may still acknowledge what it was handed of it.
    pub group_drain: Nanos,
}

/// How much an engine holds, for `peregrine stats shards`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineCounts {
    pub topics: usize,
    pub groups: usize,
    /// Places that groups have in queues of this shard.
    pub group_places: usize,
    /// Queues of this shard that hold messages or have had a reader or a group's place.
    pub queues: usize,
    pub producers: usize,
    pub subscriptions: usize,
    /// Batches that are not durable.
    pub pending_batches: usize,
}

/// The state of one shard.
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    catalogue: Catalogue,
    queues: Queues,
    group_queues: GroupQueues,
    ageing: Ageing,
    visibility: Visibility,
    readers: Readers,
    holders: Holders,
    /// Of the groups whose home this shard is, from [`Self::start_groups`] on.
    membership: Option<Membership>,
    /// The end of the newest entry.
    applied: LogPosition,
    /// Store time of the newest entry.
    store_time: Nanos,
    published: LogPosition,
    durable: LogPosition,
    /// Catalogue changes that took effect and that the other shards were not told yet.
    effects: VecDeque<CatalogueState>,
    phase: Phase,
    /// A hole in the log was accepted: offsets and sequences may jump behind it.
    holes: bool,
    /// What this start has from a checkpoint.
    restored: Restored,
    /// Entries below it are covered by the checkpoint that this start has; 0 where it has none.
    covered_to: LogPosition,
    /// Batches below it stand in the index files of their segments, and are dropped from the queues' indexes.
    indexed_to: LogPosition,
    chunks: HeldChunks,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Entries come from the log, and all of them count as durable.
    Recovering,
    Running,
    /// A flush failed. What was visible is served; nothing else becomes so.
    Poisoned,
}

impl Engine {
    /// An engine that knows nothing yet and takes what the log holds.
    pub fn new(options: EngineOptions) -> Self {
        assert!(options.shard.0 < options.shards, "the shard is one of the broker's");
        Self {
            options,
            catalogue: Catalogue::default(),
            queues: Queues::default(),
            group_queues: GroupQueues::default(),
            ageing: Ageing::default(),
            visibility: Visibility::default(),
            readers: Readers::default(),
            holders: Holders::default(),
            membership: None,
            applied: LogPosition(0),
            store_time: Nanos::ZERO,
            published: LogPosition(0),
            durable: LogPosition(0),
            effects: VecDeque::new(),
            phase: Phase::Recovering,
            holes: false,
            restored: Restored::default(),
            covered_to: LogPosition(0),
            indexed_to: LogPosition(0),
            chunks: HeldChunks::default(),
        }
    }

    // Starting.

    /// The catalogue as shard 0 knows it, before the first entry is applied. For every shard but shard 0.
    pub fn install_catalogue(&mut self, snapshot: CatalogueSnapshot) {
        assert!(!self.is_home() && self.phase == Phase::Recovering, "a copy is installed at the start");
        self.catalogue.install(snapshot);
    }

    /// The log that is being read back has a hole there that was given up by `--accept-loss`; call it before what lies behind.
    pub fn accept_hole(&mut self, lost: &Range<LogPosition>) {
        assert!(self.phase == Phase::Recovering, "holes are found while the log is read back");
        self.holes = true;
        // A checkpoint may know batches that nobody can read any more.
        self.queues.iter_mut().for_each(|queue| queue.lose(lost));
        if self.is_home() {
            self.catalogue.accept_hole();
        }
    }

    /// The whole log was applied and ends, durable, at `end`; from here on entries are new ones.
    pub fn recovered(&mut self, end: LogPosition) {
        assert!(self.phase == Phase::Recovering, "a start ends once");
        self.end_restored();
        self.chunks.recovered(&self.queues);
        (self.published, self.durable) = (end, end);
        self.holes = false;
        self.phase = Phase::Running;
    }

    // The log moves on.

    /// Everything below `to` is whole in the ring.
    pub fn on_published(&mut self, to: LogPosition) {
        if self.phase != Phase::Running {
            return;
        }
        assert!(to >= self.published, "published never goes back");
        self.published = to;
        self.visibility.publish(to, &mut self.queues, |queue| self.readers.wake(queue));
    }

    /// Everything below `to` is on the device; at most what [`Self::on_published`] was told.
    pub fn on_durable(&mut self, to: LogPosition) {
        if self.phase != Phase::Running {
            return;
        }
        assert!(self.durable <= to && to <= self.published, "durable follows published and never goes back");
        self.durable = to;
        self.visibility.harden(to, &mut self.queues, |queue| self.readers.wake(queue));
        self.settle_catalogue(to);
    }

    /// A flush failed: nothing more becomes visible or takes effect, and every change is refused.
    pub fn on_poisoned(&mut self) {
        self.phase = Phase::Poisoned;
    }

    pub fn is_poisoned(&self) -> bool {
        self.phase == Phase::Poisoned
    }

    /// The end of the newest entry that was applied; at a start from a checkpoint, where the log is to be read back from.
    pub fn applied(&self) -> LogPosition {
        self.applied
    }

    pub fn published(&self) -> LogPosition {
        self.published
    }

    pub fn durable(&self) -> LogPosition {
        self.durable
    }

    // The catalogue.

    /// Whether this engine's log is the home of the catalogue.
    pub fn is_home(&self) -> bool {
        self.options.shard == HOME
    }

    /// Create is idempotent: an equal topic is [`CatalogueDecision::Done`]. At home only, as all changes.
    pub fn decide_create(
        &self,
        name: &str,
        queues: u32,
        retention: TopicRetention,
        now: Nanos,
    ) -> Result<CatalogueDecision, Refusal> {
        self.check_home_writes()?;
        self.catalogue.decide_create(name, queues, retention, self.store_time_at(now))
    }

    /// Alter adds queues, and sets the retention; what is `None` stays as it is.
    pub fn decide_alter(
        &self,
        name: &str,
        queues: Option<u32>,
        retention: Option<TopicRetention>,
        now: Nanos,
    ) -> Result<CatalogueDecision, Refusal> {
        self.check_home_writes()?;
        self.catalogue.decide_alter(name, queues, retention, self.store_time_at(now))
    }

    /// With an id, only the topic of that id: a deletion sent twice never takes a namesake that was made between.
    pub fn decide_delete(&self, name: &str, id: Option<TopicId>, now: Nanos) -> Result<CatalogueDecision, Refusal> {
        self.check_home_writes()?;
        self.catalogue.decide_delete(name, id, self.store_time_at(now))
    }

    /// Makes a group that consumes these topics, or adds them to those of an existing one, where a topic that it consumes
    /// already keeps its start. Idempotent.
    pub fn decide_create_group(
        &self,
        name: &str,
        topics: &[(TopicId, StartAt)],
        now: Nanos,
    ) -> Result<CatalogueDecision<Group>, Refusal> {
        self.check_home_writes()?;
        self.catalogue.decide_create_group(name, topics, now, self.store_time_at(now))
    }

    /// With an id, only the group of that id. Whether it still has members is not looked at: its home shard knows.
    pub fn decide_delete_group(
        &self,
        name: &str,
        id: Option<GroupId>,
        now: Nanos,
    ) -> Result<CatalogueDecision<Group>, Refusal> {
        self.check_home_writes()?;
        self.catalogue.decide_delete_group(name, id, self.store_time_at(now))
    }

    /// At home: the next change that took effect, to be told to every other shard before it is answered.
    pub fn next_catalogue_effect(&mut self) -> Option<CatalogueState> {
        self.effects.pop_front()
    }

    /// At home: the whole catalogue, for the start of the other shards.
    pub fn catalogue_snapshot(&self) -> CatalogueSnapshot {
        assert!(self.is_home(), "only shard 0 hands the catalogue out");
        self.catalogue.snapshot()
    }

    /// In a copy: what shard 0 says about a topic or a group. News that are old or unknown change nothing.
    pub fn catalogue_changed(&mut self, state: &CatalogueState) {
        assert!(!self.is_home(), "shard 0 learns about the catalogue from its own log");
        let known = match state {
            CatalogueState::Topic(TopicState::Live(topic)) => self.catalogue.get(topic.id).map(|known| known.queues),
            _ => None,
        };
        if let Some(removed) = self.catalogue.set(state) {
            self.forget(&removed);
        }
        // A topic is told again to whoever asks for a queue that it lacks, and a new one is nobody's yet: no reason to share the
        // queues of groups anew.
        if let CatalogueState::Topic(TopicState::Live(topic)) = state
            && known.is_none_or(|known| known >= topic.queues)
        {
            return;
        }
        self.groups_follow(state);
    }

    /// The highest id seen here; shard 0 gives new topics and groups ids above those of all shards ([`Self::raise_id`]).
    pub fn highest_id(&self) -> ObjectId {
        self.catalogue.highest()
    }

    pub fn raise_id(&mut self, seen: ObjectId) {
        self.catalogue.raise_highest(seen);
    }

    /// What the catalogue says of an id.
    pub fn catalogue_state(&self, id: CatalogueId) -> CatalogueState {
        match id {
            CatalogueId::Topic(id) => self.topic(id).into(),
            CatalogueId::Group(id) => self.group(id).into(),
        }
    }

    /// What the catalogue says of a topic's id.
    pub fn topic(&self, id: TopicId) -> TopicState {
        self.catalogue.state(id)
    }

    /// What the catalogue says of a group's id.
    pub fn group(&self, id: GroupId) -> GroupState {
        self.catalogue.group_state(id)
    }

    /// The topic of that name. A copy that finds none asks shard 0 before it says so.
    pub fn topic_named(&self, name: &str) -> Option<&Topic> {
        self.catalogue.named(name)
    }

    /// Topics in the order of their names, those behind `after`: a page begins behind the last name of the one before.
    pub fn topics_after(&self, after: Option<&str>) -> impl Iterator<Item = &Topic> + '_ {
        self.catalogue.after(after)
    }

    /// Topics whose names begin with `prefix` and lie above `after`, in order.
    pub fn topics_with_prefix(&self, prefix: &str, after: &str) -> impl Iterator<Item = &Topic> {
        self.catalogue.with_prefix(prefix, after)
    }

    /// The group of that name. A copy that finds none asks shard 0 before it says so.
    pub fn group_named(&self, name: &str) -> Option<&Group> {
        self.catalogue.group_named(name)
    }

    /// Groups in the order of their names, those behind `after`.
    pub fn groups_after(&self, after: Option<&str>) -> impl Iterator<Item = &Group> + '_ {
        self.catalogue.groups_after(after)
    }

    /// Groups whose names begin with `prefix` and lie above `after`, in order.
    pub fn groups_with_prefix(&self, prefix: &str, after: &str) -> impl Iterator<Item = &Group> {
        self.catalogue.groups_with_prefix(prefix, after)
    }

    // Subscriptions, once they are made: see `reading` for how they begin.

    pub fn credit(&mut self, owner: ReaderOwner, id: SubscriptionId, credit: Credit) -> Result<(), Refusal> {
        self.readers.credit(owner, id, credit, &mut self.queues)
    }

    /// What to do next for a reader, or `None` when all are served, without credit, or busy with their last batch.
    pub fn next_delivery(&mut self) -> Option<Delivery> {
        if let Some(question) = self.holders.next_question() {
            return Some(Delivery::Ask { question });
        }
        loop {
            let holders = &self.holders;
            let is_behind = |turn: &Turn| holders.is_behind(Share { group: turn.group, queue: turn.queue });
            match self.readers.next_delivery(&mut self.queues, is_behind) {
                Ok(delivery) => return delivery,
                // Nothing is handed out by an assignment that was overtaken.
                Err(behind) => self.follow_in(behind),
            }
        }
    }

    /// The last batch of this subscription is sent or buffered: it may have the next one.
    pub fn delivered(&mut self, id: SubscriptionId) {
        self.readers.delivered(id, &mut self.queues);
    }

    /// What a [`Delivery::LookUp`] found, in order; nothing where the indexes have nothing of the queue up to `below`, as that said.
    /// One that ended meanwhile is nobody's concern any more.
    pub fn looked_up(&mut self, id: SubscriptionId, below: QueueOffset, found: Vec<IndexEntry>) {
        self.readers.looked_up(id, below, found, &mut self.queues);
    }

    pub fn unsubscribe(&mut self, owner: ReaderOwner, id: SubscriptionId) -> Result<(), Refusal> {
        let left = self.readers.unsubscribe(owner, id, &mut self.queues)?;
        self.turns_left(left.as_slice(), false);
        Ok(())
    }

    /// A connection is gone, and its subscriptions with it; its groups' members have the grace time from `now`, which is
    /// monotonic, to come back.
    pub fn detach(&mut self, owner: ReaderOwner, now: Nanos) {
        let left = self.readers.detach(owner, &mut self.queues);
        self.turns_left(&left, true);
        if let Some(membership) = &mut self.membership {
            membership.detach(owner, now);
        }
    }

    /// Subscriptions of one owner, with those whose end it has still to be told.
    pub fn subscriptions_of(&self, owner: ReaderOwner) -> usize {
        self.readers.len_of(owner)
    }

    pub fn counts(&self) -> EngineCounts {
        EngineCounts {
            topics: self.catalogue.len(),
            groups: self.catalogue.groups().len(),
            group_places: self.group_queues.places(),
            queues: self.queues.len(),
            producers: self.ageing.len(),
            subscriptions: self.readers.len(),
            pending_batches: self.visibility.len(),
        }
    }

    // Used by both halves.

    /// The store time of an entry decided at `now`: it never goes back within a shard.
    fn store_time_at(&self, now: Nanos) -> Nanos {
        now.max(self.store_time)
    }

    fn check_home_writes(&self) -> Result<(), Refusal> {
        assert!(self.phase != Phase::Recovering, "no request is decided before the start is done");
        if !self.is_home() {
            return Err(Refusal::WrongShard(HOME));
        }
        if self.is_poisoned() { Err(Refusal::Poisoned) } else { Ok(()) }
    }

    fn check_topic(&self, id: TopicId) -> Result<&Topic, Refusal> {
        match self.catalogue.get(id) {
            Some(topic) => Ok(topic),
            None if self.catalogue.is_deleted(id) => Err(Refusal::TopicDeleted),
            None => Err(self.unknown(CatalogueId::Topic(id), Refusal::UnknownTopic)),
        }
    }

    /// What is refused because `about` is not known, or not with what the request names: only shard 0 says so by itself.
    fn unknown(&self, about: CatalogueId, refusal: Refusal) -> Refusal {
        if self.is_home() { refusal } else { Refusal::AskHome { about, otherwise: refusal.code() } }
    }

    /// The topic, if it has that queue and the queue is this shard's.
    fn check_queue(&self, topic: TopicId, queue: QueueId) -> Result<&Topic, Refusal> {
        let known = self.check_topic(topic)?;
        if queue.0 >= known.queues {
            return Err(self.unknown(CatalogueId::Topic(topic), Refusal::UnknownQueue));
        }
        match known.shard_of(queue, self.options.shards) {
            owner if owner == self.options.shard => Ok(known),
            owner => Err(Refusal::WrongShard(owner)),
        }
    }

    fn settle_catalogue(&mut self, durable: LogPosition) {
        while let Some(Settled { state, removed, leaves_groups }) = self.catalogue.settle_next(durable) {
            if let Some(removed) = removed {
                self.forget(&removed);
            }
            if !leaves_groups {
                self.groups_follow(&state);
            }
            if self.phase != Phase::Recovering {
                self.effects.push_back(state);
            }
        }
    }

    /// Drops what this shard holds of a topic or a group that is deleted from now on.
    fn forget(&mut self, removed: &Removed) {
        match removed {
            Removed::Topic(topic) => self.forget_topic(topic),
            Removed::Group(group) => self.group_queues.forget_group(group.id, &mut self.queues),
        }
    }

    fn forget_topic(&mut self, topic: &Topic) {
        self.readers.end_topic(topic.id);
        let mut groups = BTreeSet::new();
        for queue in (0..topic.queues).map(QueueId) {
            if let Some(removed) = self.queues.remove(QueueKey { topic: topic.id, queue }) {
                self.ageing.removed(removed.producers.len(), &self.queues);
                groups.extend(removed.groups.iter().map(|place| place.group));
            }
        }
        for group in groups {
            self.group_queues.forget_deleted_queues(group, &self.queues);
        }
    }
}

#[cfg(test)]
mod tests;
