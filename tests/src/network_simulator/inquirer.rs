//! Who looks things up: messages by id and by key, offsets by time, ends, and batches from an offset. What may be answered is decided
//! when the question is asked: whatever was promised before it must be found.

use std::collections::BTreeSet;

use peregrine_client::error::Refusal;
use peregrine_protocol::entry::DirectoryId;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Epoch, LogPosition, MessageId, Nanos, QueueId, QueueOffset, ShardId, TopicId};
use peregrine_protocol::limits::ENTRY_HEADER_LEN;
use peregrine_protocol::locator::MessageLocator;
use peregrine_protocol::message::{
    Answer, Fetch, FetchAnswer, FindMessages, Found, FoundHead, GetMessage, LookUp, LookUpAnswer, Request, Start,
};
use peregrine_protocol::placement::TopicHash;
use peregrine_protocol::record::Batch;

use super::ledger::{Queue, Told};
use super::link::{Link, Reply, Said};
use super::message::{Message, Number};
use super::world::World;
use crate::simulator::{Violation, promise};

/// Questions that wait for an answer at once.
const AT_ONCE: usize = 4;

/// What was asked, and what must be found.
#[derive(Clone, Debug)]
enum Question {
    /// `must`: it was visible before.
    Get {
        number: Number,
        shard: ShardId,
        must: bool,
    },
    Find {
        topic: TopicId,
        key: u64,
        expected: BTreeSet<Number>,
        found: BTreeSet<Number>,
    },
    /// Offsets and store times of what was visible before.
    Time {
        queue: Queue,
        time: Nanos,
        visible: Vec<(QueueOffset, Nanos)>,
    },
    End {
        queue: Queue,
        start: Start,
        floor: QueueOffset,
    },
    Fetch {
        queue: Queue,
        offset: QueueOffset,
        floor: QueueOffset,
        must: bool,
    },
}

pub struct Inquirer {
    name: String,
    shard: ShardId,
    directory: DirectoryId,
    link: Link<Question>,
    pause: u64,
    next_question: u64,
}

impl Inquirer {
    pub fn new(world: &mut World, number: u64, directory: DirectoryId, pause: u64) -> Self {
        let (name, shard, seed) = (format!("inquirer-{number}"), ShardId(world.pick_shard()), world.random.next_u64());
        Self { link: Link::new(name.clone(), Some(shard), seed), name, shard, directory, pause, next_question: 0 }
    }

    pub fn next_wake(&self, now: u64) -> u64 {
        let ready = self.link.is_ready() && self.link.outstanding() < AT_ONCE;
        self.link.next_wake(now).min(if ready { self.next_question } else { u64::MAX })
    }

    pub fn act(&mut self, world: &mut World) -> Result<(), Violation> {
        for said in self.link.turn(world)? {
            match said {
                Said::Ready | Said::Lost => {}
                Said::Answered { asked, answer } => self.answered(world, asked, &answer)?,
                Said::Refused { asked, refusal } => self.refused(world, &asked, &refusal)?,
                _ => return Err(Violation(format!("{} was told what it did not ask", self.name))),
            }
        }
        if self.link.is_ready() && self.link.outstanding() < AT_ONCE && world.now() >= self.next_question {
            self.ask(world);
            self.next_question = world.now() + world.random.below(self.pause + 1);
        }
        Ok(())
    }

    fn ask(&mut self, world: &mut World) {
        let queues: Vec<Queue> = world.ledger.queues().collect();
        if queues.is_empty() {
            return;
        }
        let queue = *world.random.pick(&queues);
        match world.random.below(6) {
            0 | 1 => self.ask_for_one(world),
            2 => self.ask_for_key(world, queue.0),
            3 => self.ask_for_time(world, queue),
            4 => self.ask_for_end(world, queue),
            _ => self.ask_for_batches(world, queue),
        }
    }

    fn ask_for_one(&mut self, world: &mut World) {
        let number = world.random.below(world.ledger.count().max(1));
        let Some((place, queue)) = world.ledger.sent(number).and_then(|sent| Some((*sent.place()?, sent.queue))) else {
            return;
        };
        let (Some((entry, start)), Some(topic)) = (place.position, world.catalogue.find(queue.0)) else { return };
        let shard = TopicHash::of(&topic.name).shard_of(queue.1, world.shards);
        let must = world.ledger.owed(number).is_some() && place.offset < world.ledger.visible_floor(queue);
        let record = world.ledger.sent(number).map(|sent| sent.message.record()).unwrap_or_default();
        let checksum = record.get(4..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let id = MessageId::new(shard, LogPosition(entry.0 + ENTRY_HEADER_LEN as u64 + u64::from(start)));
        let request = Request::GetMessage(GetMessage { message: MessageLocator::new(self.directory, id, checksum) });
        world.count_request(self.shard, shard);
        self.link.request(world.now(), &request, Question::Get { number, shard, must });
    }

    fn ask_for_key(&mut self, world: &mut World, topic: TopicId) {
        let Some(name) = world.catalogue.find(topic).map(|topic| topic.name.clone()) else { return };
        let key = Message::random_key(&mut world.random);
        let hash = TopicHash::of(&name);
        let queues = world
            .ledger
            .queues()
            .filter(|(of, queue)| *of == topic && hash.shard_of(*queue, world.shards) == self.shard);
        let visible = queues.flat_map(|queue| world.ledger.visible_in(queue)).map(|(number, _)| number);
        let has_key = |number: &Number| world.ledger.sent(*number).is_some_and(|sent| sent.message.key == Some(key));
        let expected = visible.filter(has_key).collect();
        let question = Question::Find { topic, key, expected, found: BTreeSet::new() };
        self.ask_for_page(world, question, LogPosition(0));
    }

    fn ask_for_page(&mut self, world: &mut World, question: Question, from: LogPosition) {
        let Question::Find { topic, key, .. } = question else { return };
        let (key, limit) = (Message::key_bytes(key), *world.random.pick(&[1, 3, 256]));
        let find = FindMessages { topic, key: &key, begin: Nanos::ZERO, end: Nanos::MAX, from, limit };
        self.link.request(world.now(), &Request::FindMessages(find), question);
    }

    fn ask_for_time(&mut self, world: &mut World, queue: Queue) {
        let known = world.ledger.visible_in(queue);
        let visible: Vec<_> = known.filter_map(|(_, place)| Some((place.offset, place.store_time?))).collect();
        let time = match (visible.is_empty(), world.random.below(4)) {
            (true, _) | (_, 0) => Nanos(world.wall()),
            (_, 1) => Nanos::ZERO,
            _ => Nanos(world.random.pick(&visible).1.0 + world.random.below(2)),
        };
        let request = LookUp { topic: queue.0, queue: queue.1, start: Start::Time(time) };
        self.count(world, queue);
        self.link.request(world.now(), &Request::LookUp(request), Question::Time { queue, time, visible });
    }

    fn ask_for_end(&mut self, world: &mut World, queue: Queue) {
        let start = if world.random.coin() { Start::Latest } else { Start::Earliest };
        let floor = world.ledger.visible_floor(queue);
        let request = LookUp { topic: queue.0, queue: queue.1, start };
        self.count(world, queue);
        self.link.request(world.now(), &Request::LookUp(request), Question::End { queue, start, floor });
    }

    fn ask_for_batches(&mut self, world: &mut World, queue: Queue) {
        let visible: Vec<_> = world.ledger.visible_in(queue).map(|(_, place)| (place.epoch, place.offset)).collect();
        let floor = world.ledger.visible_floor(queue);
        let (must, (epoch, offset)) = if visible.is_empty() {
            (false, (Epoch::ANY, QueueOffset(0)))
        } else {
            (true, *world.random.pick(&visible))
        };
        let epoch = if world.random.coin() { epoch } else { Epoch::ANY };
        let fetch = Fetch {
            topic: queue.0,
            queue: queue.1,
            epoch,
            offset,
            max_messages: world.random.between(1, 50) as u32,
            max_bytes: *world.random.pick(&[1, 3_000, 20_000]),
        };
        self.count(world, queue);
        let question = Question::Fetch { queue, offset, floor, must };
        self.link.request(world.now(), &Request::Fetch(fetch), question);
    }

    fn count(&self, world: &mut World, (topic, queue): (TopicId, QueueId)) {
        let name = world.catalogue.find(topic).map(|topic| topic.name.clone());
        if let Some(name) = name {
            let shard = TopicHash::of(&name).shard_of(queue, world.shards);
            world.count_request(self.shard, shard);
        }
    }

    fn answered(&mut self, world: &mut World, asked: Question, reply: &Reply) -> Result<(), Violation> {
        match (asked, reply.answer()) {
            (Question::Get { number, shard, .. }, Some(Answer::GetMessage(found))) => {
                self.got(world, number, shard, &found)
            }
            (question @ Question::Find { .. }, Some(Answer::FindMessages(found))) => {
                self.found(world, question, &found)
            }
            (Question::Time { queue, time, visible }, Some(Answer::LookUp(answer))) => {
                Self::found_time(world, queue, time, &visible, &answer)
            }
            (Question::End { queue, start, floor }, Some(Answer::LookUp(answer))) => {
                Self::found_end(world, queue, start, floor, &answer)
            }
            (Question::Fetch { queue, offset, floor, .. }, Some(Answer::Fetch(answer))) => {
                self.fetched(world, queue, offset, floor, &answer)
            }
            (asked, _) => Err(Violation(format!("{} was answered otherwise than it asked: {asked:?}", self.name))),
        }
    }

    fn got(&mut self, world: &mut World, number: Number, shard: ShardId, found: &Found<'_>) -> Result<(), Violation> {
        world.statistics.got += 1;
        promise!(
            found.messages.len() == 1 && found.shard == shard,
            "message {number} of shard {shard:?} was asked for, and {} of {:?} came",
            found.messages.len(),
            found.shard
        );
        let Some((head, record)) = found.messages.iter().next() else { return Ok(()) };
        promise!(self.note_found(world, found.topic, &head, record)? == number, "another message than {number} came");
        Ok(())
    }

    /// A message that an answer holds: one of ours, where it may be.
    fn note_found(
        &self,
        world: &mut World,
        topic: TopicId,
        head: &FoundHead,
        record: &[u8],
    ) -> Result<Number, Violation> {
        let queue = (topic, head.queue);
        let mut filled = record.to_vec();
        filled.resize(record.len().next_multiple_of(8), 0);
        let number = Batch::new(&filled, 1).ok().and_then(|batch| batch.records().next());
        let number = number.and_then(Result::ok).and_then(|record| Message::number_of(&record));
        let Some(number) = number else {
            return Err(Violation(format!("what was found at {head:?} of {queue:?} is none of ours")));
        };
        world.ledger.is_ours(number, queue, record)?;
        let told = Told {
            epoch: head.epoch,
            offset: head.offset,
            position: None,
            store_time: Some(head.store_time),
            level: head.flags.level().unwrap_or_default(),
            power_cuts: self.link.power_cuts(),
            is_visible: true,
        };
        world.ledger.stands(number, told)?;
        Ok(number)
    }

    fn found(&mut self, world: &mut World, question: Question, page: &Found<'_>) -> Result<(), Violation> {
        let Question::Find { topic, key, expected, mut found } = question else { return Ok(()) };
        promise!(page.topic == topic && page.shard == self.shard, "a look-up in {topic:?} found some of {page:?}");
        for (head, record) in page.messages.iter() {
            let number = self.note_found(world, topic, &head, record)?;
            let has_key = world.ledger.sent(number).is_some_and(|sent| sent.message.key == Some(key));
            promise!(has_key, "message {number} was found by key {key}, which it does not have");
            promise!(found.insert(number), "message {number} was found twice by its key");
            world.statistics.found += 1;
        }
        if let Some(next) = page.next {
            self.ask_for_page(world, Question::Find { topic, key, expected, found }, next);
            return Ok(());
        }
        if world.ledger.keeps_all(topic) && !world.ledger.is_doomed(topic) {
            let missing: Vec<_> = expected.difference(&found).collect();
            promise!(missing.is_empty(), "messages {missing:?} of {topic:?} were not found by their key {key}");
        }
        Ok(())
    }

    fn found_time(
        world: &mut World,
        queue: Queue,
        time: Nanos,
        visible: &[(QueueOffset, Nanos)],
        answer: &LookUpAnswer,
    ) -> Result<(), Violation> {
        world.statistics.times += 1;
        for (offset, stored) in visible {
            let is_behind = *offset >= answer.offset || *offset < answer.start;
            promise!(
                if *stored >= time { is_behind } else { *offset < answer.offset || *offset < answer.start },
                "queue {queue:?} at {time} is said to begin at {}, and offset {offset} was stored at {stored}",
                answer.offset
            );
        }
        world.ledger.given_up(queue, answer.start, world.wall())
    }

    fn found_end(
        world: &mut World,
        queue: Queue,
        start: Start,
        floor: QueueOffset,
        answer: &LookUpAnswer,
    ) -> Result<(), Violation> {
        world.statistics.ends += 1;
        let expected = if start == Start::Latest { answer.end } else { answer.start };
        promise!(
            answer.offset == expected && answer.start <= answer.end && answer.end >= floor,
            "the place {start:?} of {queue:?}, whose end is at or above {floor}, was answered {answer:?}"
        );
        world.ledger.given_up(queue, answer.start, world.wall())
    }

    fn fetched(
        &self,
        world: &mut World,
        queue: Queue,
        offset: QueueOffset,
        floor: QueueOffset,
        answer: &FetchAnswer<'_>,
    ) -> Result<(), Violation> {
        promise!(answer.end >= floor, "the end of {queue:?} is {} after {floor} was visible", answer.end);
        let mut next = offset;
        for (head, payload) in answer.batches.iter() {
            promise!(head.first_wanted == next, "a fetch of {queue:?} at {next} got {}", head.first_wanted);
            next = head.end_offset();
            world.statistics.fetched += next.0 - head.first_wanted.0;
            world.ledger.seen(queue, &head, payload, self.link.power_cuts())?;
        }
        promise!(
            next > offset || answer.end <= offset,
            "a fetch of {queue:?} at {offset} got nothing below the end {}",
            answer.end
        );
        Ok(())
    }

    fn refused(&mut self, world: &mut World, asked: &Question, refusal: &Refusal) -> Result<(), Violation> {
        world.statistics.questions_refused += 1;
        let topic = match asked {
            Question::Get { number, .. } => world.ledger.sent(*number).map(|sent| sent.queue.0),
            Question::Find { topic, .. } => Some(*topic),
            Question::Time { queue, .. } | Question::End { queue, .. } | Question::Fetch { queue, .. } => Some(queue.0),
        };
        let topic = topic.unwrap_or_default();
        if refusal.retriable || world.ledger.is_doomed(topic) {
            return Ok(());
        }
        let gives_up = !world.ledger.keeps_all(topic);
        let (code, offset) = (refusal.code(), refusal.detail.offset.map(QueueOffset));
        match (asked, code) {
            (Question::Get { must, .. }, Some(ErrorCode::UnknownMessage | ErrorCode::MessageTooOld))
                if !must || gives_up =>
            {
                world.statistics.not_got += 1;
                Ok(())
            }
            (Question::Fetch { queue, .. }, Some(ErrorCode::OffsetTooOld)) if gives_up => {
                world.ledger.given_up(*queue, offset.unwrap_or_default(), world.wall())
            }
            (Question::Fetch { must: false, .. }, Some(ErrorCode::Truncated)) => Ok(()),
            _ => Err(Violation(format!("{} was refused {asked:?}: {refusal}", self.name))),
        }
    }
}
