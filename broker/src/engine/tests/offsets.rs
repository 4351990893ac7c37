//! Where groups stand in queues: what moves a place, what refuses to, what a crash and a deletion leave of it.

use std::sync::Arc;

use peregrine_protocol::ids::DurableLevel::{Memory, Synced};
use peregrine_protocol::ids::{GroupId, MemberId, QueueOffset};

use super::*;

/// The group that [`Bench::with_group`] makes.
pub const GROUP: GroupId = GroupId(2);

impl Bench {
    /// A single shard with one topic of so many queues, and a group that consumes it from `start` on.
    pub fn with_group(queues: u32, start: StartAt) -> Self {
        let mut bench = Self::new(queues);
        bench.create_group("g", &[(TOPIC, start)]);
        bench
    }

    pub fn create_group(&mut self, name: &str, topics: &[(TopicId, StartAt)]) {
        self.change(self.engine.decide_create_group(name, topics, self.now));
        self.harden();
        while self.engine.next_catalogue_effect().is_some() {}
    }

    pub fn append_offset(&mut self, entry: &OffsetEntry) -> EntryHeader {
        self.append(&entry.draft, entry.payload.to_vec())
    }

    /// A member comes, is served from the queue and goes: what writes down where the group begins there, if anything has to.
    pub fn begin(&mut self, group: GroupId, topic: TopicId, queue: QueueId) -> Option<OffsetEntry> {
        let (member, owner, credit) = (MemberId(1), ReaderOwner(1 << 20), Credit { messages: 0, bytes: 0 });
        self.assignments += 2;
        self.engine.assign(group, self.assignments, &Arc::new(Assignment::of([(topic, queue, member)])), &[], self.now);
        let (id, _) = self.engine.subscribe_group(owner, group, member, topic, queue, credit).ok()?;
        let entry = self.engine.next_beginning(self.now);
        self.engine.unsubscribe(owner, id).expect("it is the owner's");
        self.engine.assign(group, self.assignments + 1, &Arc::default(), &[member], self.now);
        entry
    }

    /// Acknowledges in queue 0 all below (epoch, offset), of which everything was delivered; the place that is answered.
    fn ack(&mut self, epoch: Epoch, offset: u64) -> Result<u64, Refusal> {
        self.ack_delivered(epoch, offset, u64::MAX)
    }

    fn ack_delivered(&mut self, epoch: Epoch, offset: u64, delivered_end: u64) -> Result<u64, Refusal> {
        match self.engine.decide_ack(&ack(epoch, offset, delivered_end), self.now)? {
            AckDecision::Append(entry) => {
                self.append_offset(&entry);
                Ok(entry.offset.0)
            }
            AckDecision::Done { offset, .. } => Ok(offset.0),
        }
    }

    fn reset(&mut self, start: StartAt) -> Result<u64, Refusal> {
        let entry = self.engine.decide_reset(GROUP, TOPIC, QueueId(0), start, self.now)?;
        assert_eq!((entry.level, entry.draft.flags.level()), (Synced, Some(Synced)));
        self.append_offset(&entry);
        Ok(entry.offset.0)
    }

    /// Epoch, offset, and whether it is committed.
    fn place(&self) -> (u64, u64, bool) {
        let place = self.engine.group_place(GROUP, TOPIC, QueueId(0)).expect("group and queue are there");
        (place.epoch.0, place.offset.0, place.is_committed)
    }
}

fn ack(epoch: Epoch, offset: u64, delivered_end: u64) -> GroupAck {
    let (offset, delivered_end) = (QueueOffset(offset), QueueOffset(delivered_end));
    GroupAck { group: GROUP, topic: TOPIC, queue: QueueId(0), epoch, offset, delivered_end }
}

fn from_offset(offset: u64) -> StartAt {
    StartAt::Offset { epoch: Epoch::ANY, offset: QueueOffset(offset) }
}

#[test]
fn acknowledgements_go_on_and_never_back() {
    let mut bench = Bench::with_group(1, StartAt::Earliest);
    bench.store(0, 10, Synced);
    bench.harden();
    assert_eq!(bench.place(), (0, 0, false));
    for (offset, delivered_end, expected, entries) in [
        (4, 10, Ok(4), 1),
        (4, 10, Ok(4), 0),
        (1, 10, Ok(4), 0),
        (7, 6, Err(Refusal::InvalidArgument("what was not delivered cannot be acknowledged")), 0),
        (6, 6, Ok(6), 1),
        (11, 20, Err(Refusal::Truncated { at: QueueOffset(10) }), 0),
        (10, 10, Ok(10), 1),
        (0, 10, Ok(10), 0),
    ] {
        let before = bench.log.len();
        assert_eq!(bench.ack_delivered(Epoch::ANY, offset, delivered_end), expected, "{offset} of {delivered_end}");
        assert_eq!(bench.log.len() - before, entries, "{offset} of {delivered_end}");
    }
    assert_eq!(bench.place(), (1, 10, true));
    assert_eq!(replay(ONE_SHARD, &bench.log).digest(), bench.engine.digest());
}

#[test]
fn an_acknowledgement_of_a_removed_offset_is_truncated_and_the_group_goes_on_at_its_place() {
    let mut bench = Bench::with_group(1, StartAt::Earliest);
    bench.store(0, 3, Synced);
    bench.ack(Epoch(1), 2).expect("it was delivered");
    let cut = bench.end;
    bench.store(0, 4, Memory);
    bench.ack(Epoch(1), 7).expect("it was delivered");
    bench.restart(cut);
    bench.store(0, 9, Synced);
    assert_eq!(bench.place(), (1, 2, true), "the acknowledgement went with its messages");
    assert_eq!(bench.ack(Epoch(1), 7), Err(Refusal::Truncated { at: QueueOffset(3) }));
    assert_eq!(bench.ack(Epoch(1), 3), Ok(3));
    assert_eq!(bench.place(), (1, 3, true));
    assert_eq!(bench.ack(Epoch(2), 7), Ok(7));
    assert_eq!(bench.place(), (2, 7, true));
    assert_eq!(bench.ack(Epoch(1), 7), Err(Refusal::Truncated { at: QueueOffset(3) }), "not even as done already");
}

/// Three batches of 2, 3 and 4 records, stored at seconds 10, 20 and 30, of which the last is not visible; where a group
/// begins that was made at second 15 (`made_at`) with that start.
#[track_caller]
fn check_start(start: StartAt, made_at: u64, expected: u64) {
    let mut bench = Bench::new(1);
    let zero = bench.now;
    let mut stored = [(2, 10, Synced), (3, 20, Synced), (4, 30, Synced)].into_iter().peekable();
    for seconds in 0..40 {
        bench.now = zero + Nanos::from_secs(seconds).0;
        if let Some((records, _, level)) = stored.next_if(|&(_, at, _)| at == seconds) {
            bench.store(0, records, level);
        }
        if seconds == made_at {
            bench.create_group("g", &[(TOPIC, start)]);
        }
        if seconds == 25 {
            bench.harden();
        }
    }
    let place = bench.engine.group_place(GROUP, TOPIC, QueueId(0)).expect("group and queue are there");
    assert_eq!((place.offset.0, place.is_committed), (expected, false), "{start:?} made at {made_at}");
    let entry = bench.begin(GROUP, TOPIC, QueueId(0)).expect("it has no place yet");
    assert_eq!((entry.epoch, entry.offset), (place.epoch, place.offset));
    bench.append_offset(&entry);
    bench.harden();
    assert_eq!(bench.place(), (u64::from(expected > 0), expected, true), "a place that was begun at stays");
    assert_eq!(bench.begin(GROUP, TOPIC, QueueId(0)), None);
}

#[test]
fn a_group_begins_where_it_was_asked_to() {
    let at = |seconds: u64| StartAt::Time(Nanos::from_secs(1_700_000_000 + seconds));
    for made_at in [1, 25] {
        check_start(StartAt::Earliest, made_at, 0);
        check_start(at(0), made_at, 0);
        check_start(at(20), made_at, 2);
        check_start(at(21), made_at, 5);
        check_start(at(35), made_at, 5);
        check_start(from_offset(3), made_at, 3);
        check_start(from_offset(100), made_at, 5);
    }
    check_start(StartAt::Latest, 1, 0);
    check_start(StartAt::Latest, 15, 2);
    check_start(StartAt::Latest, 25, 5);
}

#[test]
fn what_a_first_member_had_and_lost_is_not_skipped_though_the_clock_was_ahead() {
    // "Latest" of a group that was made while the clock of its home was a minute ahead of what this queue's shard has now.
    let mut bench = Bench::with_group(1, StartAt::Time(Nanos::from_secs(1_700_000_060)));
    let entry = bench.begin(GROUP, TOPIC, QueueId(0)).expect("it has no place yet");
    bench.append_offset(&entry);
    bench.store(0, 3, Synced);
    bench.harden();
    assert_eq!(bench.place(), (0, 0, true));
}

/// "Latest" was shard 0's store time, which stays where it was when the clock is set back: what a shard that had stored nothing
/// since then stored next was not the group's.
#[test]
fn what_is_stored_after_a_group_was_made_is_the_groups_though_the_clock_was_set_back() {
    let two = EngineOptions { shards: 2, ..ONE_SHARD };
    let mut home = Bench::empty(two);
    home.create("t", 8);
    home.now.0 -= Nanos::from_secs(60).0;
    home.create_group("g", &[(TOPIC, StartAt::Latest)]);
    let mut owner = Bench::empty(EngineOptions { shard: ShardId(1), ..two });
    for about in [CatalogueId::Topic(TOPIC), CatalogueId::Group(GROUP)] {
        owner.engine.catalogue_changed(&home.engine.catalogue_state(about));
    }
    let mut queues = (0..8).filter(|&queue| owner.engine.look_up(TOPIC, QueueId(queue), StartAt::Latest).is_ok());
    let queue = queues.next().expect("one of eight is the shard's");
    for seconds in [1, 2] {
        owner.now = home.now + Nanos::from_secs(seconds).0;
        owner.store(queue, 1, Synced);
    }
    owner.harden();
    let place = owner.engine.group_place(GROUP, TOPIC, QueueId(queue)).expect("group and queue are there");
    assert_eq!((place.offset, place.visible_end), (QueueOffset(0), QueueOffset(2)));
}

#[test]
fn a_reset_goes_anywhere_within_the_queue() {
    let mut bench = Bench::with_group(1, StartAt::Earliest);
    bench.store(0, 10, Synced);
    bench.harden();
    bench.store(0, 2, Synced);
    assert_eq!(bench.ack(Epoch::ANY, 6), Ok(6));
    for (start, expected) in [
        (StartAt::Earliest, Ok(0)),
        (StartAt::Latest, Ok(10)),
        (from_offset(3), Ok(3)),
        (from_offset(12), Ok(12)),
        (from_offset(13), Err(Refusal::Truncated { at: QueueOffset(12) })),
        (StartAt::Time(bench.now), Ok(0)),
    ] {
        assert_eq!(bench.reset(start), expected, "{start:?}");
        if let Ok(offset) = expected {
            assert_eq!((bench.place().1, bench.place().2), (offset, true));
        }
    }
    assert_eq!(bench.ack(Epoch::ANY, 6), Ok(6), "acknowledgements go on from there");
    assert_eq!(replay(ONE_SHARD, &bench.log).digest(), bench.engine.digest());
}

/// The level at which a broker with this memory level acknowledges, and where what is acknowledged twice waits.
#[track_caller]
fn check_level(memory_level: MemoryLevel, expected: DurableLevel) {
    let mut bench = Bench::empty(EngineOptions { memory_level, ..ONE_SHARD });
    bench.create("t", 1);
    bench.create_group("g", &[(TOPIC, StartAt::Earliest)]);
    bench.store(0, 2, Synced);
    bench.harden();
    let Ok(AckDecision::Append(entry)) = bench.engine.decide_ack(&ack(Epoch(1), 1, 2), bench.now) else { panic!() };
    assert_eq!((entry.level, entry.draft.flags.level()), (expected, Some(expected)));
    let first_end = bench.append_offset(&entry).end();
    bench.store(0, 1, Synced);
    match bench.engine.decide_ack(&ack(Epoch(1), 1, 2), bench.now) {
        Ok(AckDecision::Done { end, level, .. }) => assert_eq!((end, level), (first_end, expected)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_acknowledgement_has_the_level_that_survives_the_process_and_its_repetition_waits_as_long() {
    check_level(MemoryLevel::Kept, Memory);
    check_level(MemoryLevel::Raised, Synced);
    check_level(MemoryLevel::Refused, Synced);
}

#[test]
fn a_poisoned_shard_moves_no_place_and_still_says_where_groups_stand() {
    let mut bench = Bench::with_group(1, StartAt::Earliest);
    bench.store(0, 2, Synced);
    bench.harden();
    assert_eq!(bench.ack(Epoch::ANY, 1), Ok(1));
    bench.engine.on_poisoned();
    assert_eq!(bench.ack(Epoch::ANY, 2), Err(Refusal::Poisoned));
    assert_eq!(bench.ack(Epoch::ANY, 1), Err(Refusal::Poisoned), "perhaps it is not on the disk");
    assert_eq!(bench.reset(StartAt::Earliest), Err(Refusal::Poisoned));
    assert_eq!(bench.place(), (1, 1, true));
}

#[test]
fn a_poisoned_shard_writes_no_beginning_down() {
    let mut bench = Bench::with_group(1, StartAt::Earliest);
    bench.engine.on_poisoned();
    assert_eq!(bench.begin(GROUP, TOPIC, QueueId(0)), None);
}

#[test]
fn a_group_has_no_place_in_what_it_does_not_consume() {
    let mut bench = Bench::with_group(2, StartAt::Earliest);
    bench.create("u", 1);
    let place = |group, topic, queue| bench.engine.group_place(GroupId(group), TopicId(topic), QueueId(queue)).err();
    assert_eq!(place(2, 1, 1), None);
    assert_eq!(place(2, 1, 2), Some(Refusal::UnknownQueue));
    assert_eq!(place(2, 3, 0), Some(Refusal::InvalidArgument("the group does not consume that topic")));
    assert_eq!(place(2, 4, 0), Some(Refusal::UnknownTopic));
    assert_eq!(place(1, 1, 0), Some(Refusal::UnknownGroup));
}

#[test]
fn lag_counts_what_is_visible_of_the_queues_that_are_here() {
    let mut bench = Bench::empty(EngineOptions { shards: 2, ..ONE_SHARD });
    bench.create("t", 6);
    bench.create_group("g", &[(TOPIC, StartAt::Earliest)]);
    let here: Vec<QueueId> =
        (0..6).map(QueueId).filter(|&queue| bench.engine.look_up(TOPIC, queue, StartAt::Latest).is_ok()).collect();
    assert_eq!(here.len(), 3);
    let mut times = Vec::new();
    for _ in 0..3 {
        bench.now.0 += 10;
        times.push(bench.now);
        bench.store(here[1].0, 5, Synced);
    }
    bench.harden();
    bench.now.0 += 10;
    bench.store(here[1].0, 5, Synced);
    let lag = |bench: &Bench, first: QueueId, limit| {
        let mut rows = Vec::new();
        let more = bench.engine.group_lag(GROUP, TOPIC, first, limit, &mut rows).expect("group and topic are there");
        let rows: Vec<_> = rows
            .into_iter()
            .map(|row| (row.queue, row.offset.0, row.is_committed, row.end.0, row.oldest_unread))
            .collect();
        (rows, more)
    };
    let none = Nanos::ZERO;
    let expected = vec![(here[0], 0, false, 0, none), (here[1], 0, false, 15, times[0]), (here[2], 0, false, 0, none)];
    assert_eq!(lag(&bench, QueueId(0), 10), (expected.clone(), false));
    assert_eq!(lag(&bench, QueueId(0), 2), (expected[..2].to_vec(), true));
    assert_eq!(lag(&bench, QueueId(here[1].0 + 1), 2), (expected[2..].to_vec(), false));
    for (offset, oldest) in [(4, times[0]), (5, times[1]), (14, times[2]), (15, none)] {
        let ack = GroupAck { queue: here[1], ..ack(Epoch::ANY, offset, 15) };
        let Ok(AckDecision::Append(entry)) = bench.engine.decide_ack(&ack, bench.now) else { panic!() };
        bench.append_offset(&entry);
        assert_eq!(lag(&bench, here[1], 1).0, [(here[1], offset, true, 15, oldest)]);
    }
    let none = bench.engine.group_lag(GROUP, TopicId(9), QueueId(0), 1, &mut Vec::new());
    assert_eq!(none, Err(Refusal::UnknownTopic));
}

#[test]
fn a_deletion_leaves_nothing_of_a_group_or_topic_behind() {
    let mut bench = Bench::with_group(2, StartAt::Earliest);
    bench.create("u", 2);
    for name in ["g", "h"] {
        bench.create_group(name, &[(TOPIC, StartAt::Earliest), (TopicId(3), StartAt::Earliest)]);
    }
    let pin_all = |bench: &mut Bench| {
        for group in bench.engine.groups_after(None).map(|group| group.id).collect::<Vec<_>>() {
            for (topic, queue) in [(1, 0), (1, 1), (3, 0), (3, 1)] {
                if let Some(entry) = bench.begin(group, TopicId(topic), QueueId(queue)) {
                    bench.append_offset(&entry);
                }
            }
        }
        bench.harden();
        bench.engine.counts().group_places
    };
    let held = |bench: &Bench| bench.engine.queues.iter().map(|queue| queue.groups.iter().count()).sum::<usize>();
    assert_eq!(pin_all(&mut bench), 8);
    bench.change(bench.engine.decide_delete("u", None, bench.now));
    bench.harden();
    assert_eq!((bench.engine.counts().group_places, held(&bench)), (4, 4));
    bench.change(bench.engine.decide_delete_group("g", None, bench.now));
    bench.harden();
    assert_eq!((bench.engine.counts().group_places, held(&bench)), (2, 2));
    assert_eq!(bench.engine.group_place(GROUP, TOPIC, QueueId(0)), Err(Refusal::GroupDeleted));
    bench.change(bench.engine.decide_delete_group("h", None, bench.now));
    bench.harden();
    assert_eq!((bench.engine.counts().group_places, held(&bench)), (0, 0));
    bench.create_group("g", &[(TOPIC, StartAt::Earliest)]);
    assert_eq!(pin_all(&mut bench), 2, "a namesake begins anew");
    assert_eq!(replay(ONE_SHARD, &bench.log).digest(), bench.engine.digest());
}
