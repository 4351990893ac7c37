//! Asks for messages by what is known of them: their ids, their keys, their times, and how far a queue goes.

use std::collections::BTreeSet;

use peregrine_broker::log::disk::simulated::Random;
use peregrine_broker::simulated::Network;
use peregrine_client::session::Event;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Correlation, LogPosition, Nanos, QueueId, QueueOffset, ShardId, TopicId};
use peregrine_protocol::message::{
    Answer, ErrorAnswer, FindMessages, Found, GetMessage, LookUp, LookUpAnswer, Request, Start,
};

use super::archive::{Archive, Kept};
use super::link::Link;
use super::message::{any_key, key_of, numbers_of};
use super::statistics::Statistics;
use crate::simulator::{Violation, promise};

/// After a lost connection, and from one question to the next.
const BACK_OFF: u64 = 2_000_000;
/// Messages of one page.
const PAGE: u32 = 3;

/// What it has asked.
enum Question {
    Get {
        queue: QueueId,
        offset: QueueOffset,
        kept: Kept,
    },
    /// All messages with that key in one shard. What was acknowledged before the question must be among them.
    Find {
        key: Vec<u8>,
        wanted: Vec<(QueueOffset, Kept)>,
        found: BTreeSet<u64>,
    },
    /// How far a queue goes.
    End {
        queue: QueueId,
        acknowledged: Option<(QueueOffset, Kept)>,
    },
    /// The first message stored then or later.
    Time {
        queue: QueueId,
        offset: QueueOffset,
        kept: Kept,
        time: Nanos,
    },
}

pub struct Looker {
    topic: TopicId,
    shard: ShardId,
    link: Option<Link>,
    again_at: u64,
    asked: Option<(Correlation, Question)>,
}

impl Looker {
    pub fn new(topic: TopicId, shard: ShardId) -> Self {
        Self { topic, shard, link: None, again_at: 0, asked: None }
    }

    pub fn next_wake(&self) -> u64 {
        self.again_at
    }

    pub fn act(
        &mut self,
        network: &Network,
        now: u64,
        archive: &Archive,
        random: &mut Random,
        statistics: &mut Statistics,
    ) -> Result<(), Violation> {
        let Some(mut link) = self.link.take() else {
            if now >= self.again_at {
                self.link = Some(Link::open(network, "looker", Some(self.shard), archive.power_cuts()));
                self.again_at = u64::MAX;
                statistics.connections += 1;
            }
            return Ok(());
        };
        let was_ready = link.is_ready();
        let mut answered = false;
        let topic = self.topic;
        let asked = &mut self.asked;
        let is_up = link.pump(|speaker, event| {
            let (correlation, answer) = match event {
                Event::Ready(_) => return Ok(()),
                Event::Answered { correlation, answer } => (correlation, answer),
                Event::Refused { correlation, error } => (correlation, Answer::Error(error)),
                other => return Err(Violation(format!("who looked for messages was told {other:?}"))),
            };
            let Some((_, question)) = asked.take_if(|(asked, _)| *asked == correlation) else {
                return Err(Violation(format!("request {correlation:?} was answered twice, or never asked")));
            };
            match judge(topic, question, &answer, archive, statistics)? {
                None => answered = true,
                Some((next, question)) => *asked = Some((speaker.ask(&next.request(topic, &question)), question)),
            }
            Ok(())
        })?;
        if !is_up {
            statistics.disconnections += 1;
            self.asked = None;
            self.again_at = now + BACK_OFF;
            return Ok(());
        }
        if answered || (link.is_ready() && !was_ready) {
            self.again_at = now + random.below(BACK_OFF);
        }
        if link.is_ready() && self.asked.is_none() && now >= self.again_at {
            self.again_at = now + BACK_OFF;
            if let Some((request, question)) = self.think(archive, random) {
                self.asked = Some((link.speaker.ask(&request.request(topic, &question)), question));
                self.again_at = u64::MAX;
            }
        }
        link.flush();
        self.link = Some(link);
        Ok(())
    }

    /// A question whose answer is known.
    fn think(&self, archive: &Archive, random: &mut Random) -> Option<(Ask, Question)> {
        let queue = *random.pick(&archive.queues());
        let acknowledged: Vec<(QueueOffset, Kept)> =
            visible(archive, queue).map(|(offset, kept)| (offset, *kept)).collect();
        match random.below(4) {
            0 => {
                let known: Vec<_> = acknowledged.iter().filter(|(_, kept)| kept.locator.is_some()).collect();
                let &&(offset, kept) = (!known.is_empty()).then(|| random.pick(&known))?;
                Some((Ask::Once, Question::Get { queue, offset, kept }))
            }
            1 => {
                let key = any_key(random);
                let here = archive.queues().into_iter().filter(|&queue| archive.shard_of(queue) == self.shard);
                let all = here.flat_map(|queue| visible(archive, queue));
                let wanted = all.filter(|(_, kept)| key_of(kept.number).as_ref() == Some(&key));
                let wanted = wanted.map(|(offset, kept)| (offset, *kept)).collect();
                Some((Ask::From(LogPosition(0)), Question::Find { key, wanted, found: BTreeSet::new() }))
            }
            2 => Some((Ask::Once, Question::End { queue, acknowledged: acknowledged.last().copied() })),
            _ => {
                let seen: Vec<(QueueOffset, Kept)> =
                    archive.seen_of(queue).map(|(offset, kept)| (offset, *kept)).collect();
                let &(offset, kept) = (!seen.is_empty()).then(|| random.pick(&seen))?;
                Some((Ask::Once, Question::Time { queue, offset, kept, time: kept.store_time? }))
            }
        }
    }
}

/// What was acknowledged and must be found.
fn visible(archive: &Archive, queue: QueueId) -> impl Iterator<Item = (QueueOffset, &Kept)> {
    let end = archive.visible_end(queue);
    archive.acknowledged_of(queue).take_while(move |(offset, _)| *offset < end)
}

/// Which part of the answer is asked for.
#[derive(Clone, Copy)]
enum Ask {
    Once,
    From(LogPosition),
}

impl Ask {
    fn request(self, topic: TopicId, question: &Question) -> Request<'_> {
        let from = if let Self::From(from) = self { from } else { LogPosition(0) };
        match question {
            Question::Get { kept, .. } => match kept.locator {
                Some(message) => Request::GetMessage(GetMessage { message }),
                None => unreachable!("only messages with an id are asked for by it"),
            },
            Question::Find { key, .. } => Request::FindMessages(FindMessages {
                topic,
                key,
                begin: Nanos(0),
                end: Nanos(u64::MAX),
                from,
                limit: PAGE,
            }),
            Question::End { queue, .. } => Request::LookUp(LookUp { topic, queue: *queue, start: Start::Latest }),
            Question::Time { queue, time, .. } => {
                Request::LookUp(LookUp { topic, queue: *queue, start: Start::Time(*time) })
            }
        }
    }
}

/// Compares an answer with what is known. `Some`: the rest is to be asked for.
fn judge(
    topic: TopicId,
    question: Question,
    answer: &Answer<'_>,
    archive: &Archive,
    statistics: &mut Statistics,
) -> Result<Option<(Ask, Question)>, Violation> {
    let must = |kept: &Kept| archive.is_owed(kept) && !archive.gives_up;
    match (question, answer) {
        (Question::Get { queue, offset, kept }, Answer::GetMessage(found)) => {
            let numbers = places_of(topic, found)?;
            promise!(
                numbers == [(queue, offset, kept.number)],
                "message {} of queue {queue} was asked for by its id, and {numbers:?} came",
                kept.number
            );
            statistics.got += 1;
        }
        (Question::Get { queue, kept, .. }, Answer::Error(error)) => {
            let may_be_gone = !must(&kept) && is(error, &[ErrorCode::UnknownMessage, ErrorCode::MessageTooOld]);
            promise!(
                may_be_gone || error.retriable,
                "message {} of queue {queue} was asked for by its id: {}",
                kept.number,
                error.sentence
            );
        }
        (Question::Find { key, wanted, mut found }, Answer::FindMessages(page)) => {
            for (_, _, number) in places_of(topic, page)? {
                promise!(key_of(number).as_ref() == Some(&key), "message {number} was found by a key that it has not");
                promise!(found.insert(number), "message {number} was found twice by its key");
            }
            if let Some(next) = page.next {
                return Ok(Some((Ask::From(next), Question::Find { key, wanted, found })));
            }
            let missing = wanted.iter().find(|(_, kept)| must(kept) && !found.contains(&kept.number));
            promise!(
                missing.is_none(),
                "of the messages with key {:?} this one was not found: {missing:?}",
                String::from_utf8_lossy(&key)
            );
            statistics.found += found.len() as u64;
        }
        (Question::End { queue, acknowledged }, Answer::LookUp(LookUpAnswer { start, end, .. })) => {
            promise!(
                archive.gives_up || *start == QueueOffset(0),
                "queue {queue} is said to begin at {start}, and nothing is given up"
            );
            let beyond = acknowledged.filter(|(offset, kept)| archive.is_owed(kept) && offset >= end);
            promise!(beyond.is_none(), "queue {queue} is said to end at {end}, and {beyond:?} was acknowledged");
            statistics.ends += 1;
        }
        (Question::Time { queue, offset, kept, time }, Answer::LookUp(answer)) => {
            let is_kept = archive.is_owed(&kept) && offset >= answer.start;
            promise!(
                !is_kept || answer.offset <= offset,
                "offset {offset} of queue {queue} was stored at {time}, and {} is said to be the first from then on",
                answer.offset
            );
            let earlier = archive.seen_of(queue).find(|(earlier, kept)| {
                *earlier >= answer.offset && kept.store_time.is_some_and(|stored| stored < time)
            });
            promise!(
                earlier.is_none(),
                "offset {} of queue {queue} is said to be the first stored from {time} on, and {earlier:?} was before",
                answer.offset
            );
            statistics.times += 1;
        }
        (_, Answer::Error(error)) => {
            promise!(error.retriable, "who looked for messages was told: {}", error.sentence);
        }
        (_, other) => return Err(Violation(format!("who looked for messages was answered {other:?}"))),
    }
    Ok(None)
}

fn is(error: &ErrorAnswer<'_>, codes: &[ErrorCode]) -> bool {
    codes.iter().any(|code| code.number() == error.code)
}

fn places_of(topic: TopicId, found: &Found<'_>) -> Result<Vec<(QueueId, QueueOffset, u64)>, Violation> {
    promise!(found.topic == topic, "messages of topic {} were found, and {topic} was asked for", found.topic);
    let mut numbers = Vec::new();
    for (head, bytes) in found.messages.iter() {
        let mut filled = bytes.to_vec();
        filled.resize(bytes.len().next_multiple_of(8), 0);
        for number in numbers_of(&filled, 1)? {
            numbers.push((head.queue, head.offset, number));
        }
    }
    Ok(numbers)
}
