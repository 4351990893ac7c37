//! Two shards, the first of them home, with their logs, that save checkpoints while random things happen to them, and crash.

use std::collections::VecDeque;

use peregrine_protocol::ids::{GroupId, QueueOffset};

use super::*;

const SHARDS: u16 = 2;
pub const TOPICS: [&str; 3] = ["a", "b", "c"];
pub const GROUPS: [&str; 2] = ["g", "h"];

/// A checkpoint that was saved whole.
pub struct Saved {
    pub sections: Vec<Vec<u8>>,
    pub end: LogPosition,
}

pub struct Member {
    pub bench: Bench,
    saving: Option<(CheckpointSave, Vec<Vec<u8>>)>,
    pub saved: Vec<Saved>,
}

pub struct World {
    pub members: [Member; SHARDS as usize],
    /// Changes of the catalogue that the second shard was not told yet.
    untold: VecDeque<CatalogueState>,
}

pub fn options(shard: usize) -> EngineOptions {
    EngineOptions { shard: ShardId(shard as u16), shards: SHARDS, ..ONE_SHARD }
}

impl World {
    pub fn new() -> Self {
        let member = |shard| Member { bench: Bench::empty(options(shard)), saving: None, saved: Vec::new() };
        Self { members: [member(0), member(1)], untold: VecDeque::new() }
    }

    pub fn topic(&self, name: usize) -> Option<TopicId> {
        self.members[0].bench.engine.topic_named(TOPICS[name]).map(|topic| topic.id)
    }

    pub fn group(&self, name: usize) -> Option<GroupId> {
        self.members[0].bench.engine.group_named(GROUPS[name]).map(|group| group.id)
    }

    /// A change of the catalogue, where it is one.
    pub fn change<T>(&mut self, decide: impl FnOnce(&Engine, Nanos) -> Result<CatalogueDecision<T>, Refusal>) {
        let home = &mut self.members[0].bench;
        if let Ok(CatalogueDecision::Append { draft, payload }) = decide(&home.engine, home.now) {
            home.append(&draft, payload);
        }
    }

    /// So many batches of one record into a queue, where it is the shard's; of an idempotent producer unless `producer` is 0.
    pub fn store(&mut self, shard: usize, key: QueueKey, batches: usize, producer: u64, raise: bool) {
        let bench = &mut self.members[shard].bench;
        for number in 0..batches {
            let state = bench.engine.queues.by_key(key).and_then(|queue| queue.producers.get(&ProducerId(producer)));
            let time = bench.now.max(bench.engine.store_time);
            let (epoch, next) = match state.filter(|state| !state.is_forgotten(time)) {
                Some(state) if raise && number == 0 => (state.parts().0.0 + 1, Sequence(0)),
                Some(state) => (state.parts().0.0, state.parts().1),
                None => (3, Sequence(0)),
            };
            let offer = BatchOffer {
                topic: key.topic,
                producer_id: ProducerId(producer),
                producer_epoch: ProducerEpoch(epoch),
                sequence: next,
                payload_crc: bench.log.len() as u32,
                records: 1 + number as u32 % 3,
                ..offer(key.queue.0)
            };
            match bench.engine.decide_produce(&offer, bench.now) {
                Ok(ProduceDecision::Append(draft)) => bench.append(&draft, Vec::new()),
                Ok(ProduceDecision::Duplicate(stored)) => panic!("{stored:?} was never sent"),
                Err(_) => return,
            };
            bench.now.0 += 1;
        }
    }

    /// An entry that moves the group's places in those of the queues that are the shard's.
    pub fn move_places(&mut self, shard: usize, mut rows: Vec<(QueueKey, OffsetEntry)>) {
        rows.sort_by_key(|(key, _)| *key);
        rows.dedup_by_key(|(key, _)| *key);
        let Some((_, first)) = rows.first() else { return };
        let mut payload = first.payload[..8].to_vec();
        payload[4] = rows.len() as u8;
        for (_, row) in &rows {
            payload.extend(&row.payload[8..]);
        }
        let without = EntryDraft::without_records(first.draft.kind, &payload, first.draft.store_time);
        let draft = EntryDraft { length: without.length, payload_crc: without.payload_crc, ..first.draft };
        self.members[shard].bench.append(&draft, payload);
    }

    /// Durable moves on by some of the entries that are not.
    pub fn harden(&mut self, shard: usize, entries: usize) {
        let bench = &mut self.members[shard].bench;
        bench.publish();
        let durable = bench.engine.durable();
        let ends = bench.log.iter().map(|(header, _)| header.end()).filter(|&end| end > durable);
        if let Some(to) = ends.take(entries).last() {
            bench.engine.on_durable(to);
        }
        while let Some(effect) = self.members[0].bench.engine.next_catalogue_effect() {
            self.untold.push_back(effect);
        }
    }

    /// The second shard hears of some changes of the catalogue.
    pub fn tell(&mut self, changes: usize) {
        for effect in self.untold.drain(..changes.min(self.untold.len())) {
            self.members[1].bench.engine.catalogue_changed(&effect);
        }
    }

    /// Saves a slice of the shard's checkpoint, of a new one where none is under way.
    pub fn save(&mut self, shard: usize, budget: usize) {
        let Member { bench, saving, saved } = &mut self.members[shard];
        let (save, sections) = saving.get_or_insert_with(|| (bench.engine.begin_checkpoint(), Vec::new()));
        let mut section = Vec::new();
        let is_done = bench.engine.save_slice(save, &mut section, budget);
        assert_eq!(is_done, save.end().is_some());
        sections.push(section);
        if let Some(end) = save.end() {
            let sections = std::mem::take(sections);
            saved.push(Saved { sections, end });
            *saving = None;
            self.check(shard);
        }
    }

    /// A new process: of each log all that is durable comes back, and so many entries more. Every shard starts from its newest
    /// checkpoint that holds, and is what it is when the whole log is read.
    pub fn crash(&mut self, beyond: [usize; 2]) {
        for (member, beyond) in self.members.iter_mut().zip(beyond) {
            let durable = member.bench.engine.durable();
            let kept = member.bench.log.partition_point(|(header, _)| header.end() <= durable);
            member.bench.log.truncate(kept + beyond);
            let cut = member.bench.log.last().map_or(LogPosition(0), |(header, _)| header.end());
            member.saved.retain(|saved| saved.end <= cut);
            member.saving = None;
        }
        self.untold.clear();
        let mut engines = [0, 1].map(|shard| self.check(shard));
        for (member, engine) in self.members.iter_mut().zip(&mut engines) {
            member.bench.end += 1 << 30;
            member.bench.epoch.0 += 1;
            engine.recovered(member.bench.end);
        }
        let highest = engines.iter().map(Engine::highest_id).max().expect("there are two");
        engines[0].raise_id(highest);
        for (member, engine) in self.members.iter_mut().zip(engines) {
            member.bench.engine = engine;
        }
    }

    /// What the whole log of home says.
    pub fn catalogue(&self) -> CatalogueSnapshot {
        replay(options(0), &self.members[0].bench.log).catalogue_snapshot()
    }

    /// From each of the two newest checkpoints the shard is what it is when the whole log is read. The engine of the newest, or of
    /// the log where there is none.
    pub fn check(&mut self, shard: usize) -> Engine {
        let log = &self.members[shard].bench.log;
        let catalogue = (shard > 0).then(|| self.catalogue());
        let mut whole = Engine::new(options(shard));
        if let Some(catalogue) = &catalogue {
            whole.install_catalogue(catalogue.clone());
        }
        for (header, payload) in log {
            whole.apply(header, payload).expect("a log can be read back");
        }
        let mut newest = None;
        for saved in self.members[shard].saved.iter().rev().take(2) {
            let restored = restore(options(shard), catalogue.clone(), &saved.sections, log);
            check_same(&restored, &whole);
            check_cut_short(shard, catalogue.clone(), &saved.sections);
            newest.get_or_insert(restored);
        }
        newest.unwrap_or(whole)
    }

    /// With a hole in one log behind the begin of its newest checkpoint, every shard starts from its own all the same, and holds
    /// no place of a batch that is lost.
    pub fn lose(&self, (torn, part, entries): (usize, usize, usize)) {
        let mut catalogue = None;
        for shard in 0..2 {
            let Member { bench, saved, .. } = &self.members[shard];
            let sections = saved.last().map_or(&[][..], |saved| &saved.sections);
            let mut engine = put_back(options(shard), catalogue.take(), sections);
            if !sections.is_empty() {
                engine.restore_end().expect("all of it");
            }
            let begin = engine.applied();
            let left: Vec<_> = bench.log.iter().filter(|(header, _)| header.position >= begin).collect();
            let hole = left.len() * part / 256..left.len() * part / 256 + entries;
            let is_lost = |number: &usize| shard == torn && hole.contains(number);
            let mut lost = Vec::new();
            for (number, (header, payload)) in left.iter().enumerate() {
                if is_lost(&number) {
                    lost.push(header.position);
                    engine.accept_hole(&extent_of(header));
                } else {
                    engine.apply(header, payload).expect("a hole was accepted");
                }
            }
            engine.recovered(bench.end);
            catalogue = engine.is_home().then(|| engine.catalogue_snapshot());
            check_derived(&engine);
            for queue in engine.queues.iter() {
                let QueueKey { topic, queue: number } = queue.key;
                let topic = engine.topic(topic);
                assert!(matches!(&topic, TopicState::Live(topic) if topic.queues > number.0), "{topic:?} {number}");
                let is_known = |group| matches!(engine.group(group), GroupState::Live(_));
                assert!(queue.groups.iter().all(|place| is_known(place.group)));
            }
            let held = |position| {
                engine.queues.iter().flat_map(|queue| queue.index.iter()).any(|entry| entry.position == position)
            };
            assert!(lost.into_iter().all(|position| !held(position)));
        }
    }

    /// How far a group's acknowledgement goes that lies `ahead` of its place.
    pub fn ahead_of_place(&self, shard: usize, group: GroupId, key: QueueKey, ahead: u64) -> QueueOffset {
        let queue = self.members[shard].bench.engine.queues.by_key(key);
        let place = queue.and_then(|queue| queue.groups.get(group)).map_or(QueueOffset(0), |place| place.offset);
        place + ahead
    }
}

/// `restored` has the durable state of `whole`, and what is derived from it fits.
fn check_same(restored: &Engine, whole: &Engine) {
    assert_eq!(restored.digest(), whole.digest(), "{restored:#?}\n\n{whole:#?}");
    assert_eq!(restored.counts().group_places, whole.counts().group_places);
    assert_eq!((restored.applied(), restored.highest_id()), (whole.applied(), whole.highest_id()));
    check_derived(restored);
}

/// Ageing and the lists of groups know what the queues have.
pub fn check_derived(engine: &Engine) {
    let producers: usize = engine.queues.iter().map(|queue| queue.producers.len()).sum();
    let places: usize = engine.queues.iter().map(|queue| queue.groups.iter().count()).sum();
    let counts = engine.counts();
    assert_eq!((counts.producers, counts.group_places), (producers, places));
}

/// Sections that do not reach the end are no checkpoint.
fn check_cut_short(shard: usize, catalogue: Option<CatalogueSnapshot>, sections: &[Vec<u8>]) {
    let kept = sections.len() * 2 / 3;
    let mut engine = put_back(options(shard), catalogue, &sections[..kept]);
    if kept < sections.len() {
        assert_eq!(engine.restore_end(), Err(RestoreError::Incomplete));
    }
}
