//! The first life of a seed, which makes the topic, and the last, which is not disturbed: everything is sent to its end, and all that
//! the queues hold is compared with what was promised.

use std::collections::BTreeMap;

use peregrine_broker::simulated::Process;
use peregrine_client::session::Event;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Correlation, Epoch, QueueId, QueueOffset, TopicId};
use peregrine_protocol::message::{
    Answer, CreateTopic, ErrorAnswer, Fetch, FetchAnswer, LookUp, Request, Start, TopicRetention,
};

use super::link::Link;
use super::message::numbers_of;
use super::producer::Producer;
use super::simulation::{PATIENCE, Simulation, TOPIC};
use crate::simulator::{Violation, promise};

impl Simulation {
    pub(super) fn make_topic(&mut self, process: &mut Process) -> Result<(), Violation> {
        let retention = TopicRetention::default();
        let create = CreateTopic { name: TOPIC, queues: self.configuration.queues, retention };
        let mut link = Link::open(&self.network, "administrator", None, 0);
        let topic = self.ask(process, &mut link, &Request::CreateTopic(create), |answer| match answer {
            Answer::CreateTopic(created) => Ok(created.topic.id),
            other => Err(Violation(format!("a topic was to be made: {other:?}"))),
        })?;
        if let Some(topic) = topic {
            self.meet(topic);
        }
        Ok(())
    }

    pub(super) fn finish(&mut self, process: &mut Process) -> Result<(), Violation> {
        let until = self.machine.now() + PATIENCE;
        loop {
            self.act()?;
            let is_done = self.clients.as_ref().is_none_or(|clients| clients.producers.iter().all(Producer::is_idle));
            if is_done {
                break;
            }
            let states = || self.clients.iter().flat_map(|clients| &clients.producers).map(Producer::state);
            promise!(
                self.machine.now() < until,
                "producers do not come to their end: {}",
                states().collect::<Vec<_>>().join("; ")
            );
            process.turn(self.next_wake().min(until));
            promise!(process.ended().is_none(), "the broker ended by itself: {:?}", process.ended());
        }
        let Some(topic) = self.topic else { return Ok(()) };
        for queue in self.archive.queues() {
            let (start, found) = self.read_all(process, topic, queue)?;
            self.archive.check(queue, start, &found)?;
        }
        Ok(())
    }

    /// Everything that a queue holds, and where it begins. What is given up meanwhile lets it begin anew.
    fn read_all(
        &mut self,
        process: &mut Process,
        topic: TopicId,
        queue: QueueId,
    ) -> Result<(QueueOffset, BTreeMap<QueueOffset, u64>), Violation> {
        let mut link = Link::open(&self.network, "auditor", None, self.archive.power_cuts());
        loop {
            let look_up = LookUp { topic, queue, start: Start::Earliest };
            let bounds = self.ask(process, &mut link, &Request::LookUp(look_up), |answer| match answer {
                Answer::LookUp(answer) => Ok((answer.start, answer.end)),
                other => Err(Violation(format!("queue {queue} was asked for its start: {other:?}"))),
            })?;
            let Some((start, mut end)) = bounds else { continue };
            let (mut next, mut found) = (start, BTreeMap::new());
            while next < end {
                let fetch =
                    Fetch { topic, queue, epoch: Epoch::ANY, offset: next, max_messages: 50, max_bytes: 100_000 };
                let fetched = self.ask(process, &mut link, &Request::Fetch(fetch), |answer| {
                    let Answer::Fetch(fetched) = answer else {
                        return Err(Violation(format!("queue {queue} was asked for offset {next}: {answer:?}")));
                    };
                    Ok((take(queue, next, &fetched, &mut found)?, fetched.end))
                })?;
                let Some(after) = fetched else { break };
                (next, end) = after;
            }
            if next >= end {
                found.retain(|offset, _| *offset >= start);
                return Ok((start, found));
            }
        }
    }

    /// Asks until there is an answer; a broker that is busy is asked again. `None`: what was asked for is given up. The other clients
    /// go on meanwhile.
    fn ask<T>(
        &mut self,
        process: &mut Process,
        link: &mut Link,
        request: &Request<'_>,
        mut look: impl FnMut(Answer<'_>) -> Result<T, Violation>,
    ) -> Result<Option<T>, Violation> {
        let gives_up = self.archive.gives_up;
        let until = self.machine.now() + PATIENCE;
        let mut asked: Option<Correlation> = None;
        loop {
            let mut found = None;
            let is_up = link.pump(|_, event| {
                match event {
                    Event::Answered { correlation, answer } if Some(correlation) == asked => {
                        found = Some(Some(look(answer)?));
                    }
                    Event::Refused { correlation, error } if Some(correlation) == asked && error.retriable => {
                        asked = None;
                    }
                    Event::Refused { correlation, error }
                        if Some(correlation) == asked && is_too_old(&error) && gives_up =>
                    {
                        found = Some(None);
                    }
                    Event::Ready(_) => {}
                    other => return Err(Violation(format!("{other:?} came instead of an answer"))),
                }
                Ok(())
            })?;
            if let Some(found) = found {
                return Ok(found);
            }
            promise!(is_up, "a connection was lost on a sound network");
            if link.is_ready() && asked.is_none() {
                asked = Some(link.speaker.ask(request));
                link.flush();
            }
            self.act()?;
            promise!(self.machine.now() < until, "a request is not answered");
            process.turn(self.next_wake().min(until));
        }
    }
}

fn is_too_old(error: &ErrorAnswer<'_>) -> bool {
    error.code == ErrorCode::OffsetTooOld.number()
}

/// Takes what was fetched from `next` on: the offset behind it.
fn take(
    queue: QueueId,
    next: QueueOffset,
    fetched: &FetchAnswer<'_>,
    found: &mut BTreeMap<QueueOffset, u64>,
) -> Result<QueueOffset, Violation> {
    let mut after = next;
    for (head, payload) in fetched.batches.iter() {
        promise!(head.first_wanted == after, "queue {queue}: {after} was asked for, {head:?} came");
        for (index, number) in numbers_of(payload, head.record_count)?.into_iter().enumerate() {
            found.insert(head.base_offset + index as u64, number);
        }
        after = head.end_offset();
    }
    promise!(after > next, "queue {queue} ends at {}, and nothing came from offset {next} on", fetched.end);
    Ok(after)
}
