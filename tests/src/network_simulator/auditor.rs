//! Who reads a queue from its beginning to its end, by fetching, and says all that it holds.

use peregrine_client::error::Refusal;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Epoch, QueueOffset};
use peregrine_protocol::message::{Answer, Fetch, LookUp, Request, Start};

use super::ledger::Queue;
use super::link::{Link, Said};
use super::message::Number;
use super::world::World;
use crate::simulator::{Violation, promise};

/// What a queue holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    pub start: QueueOffset,
    pub end: QueueOffset,
    /// From the start on, without a gap.
    pub numbers: Vec<Number>,
}

pub struct Auditor {
    queue: Queue,
    link: Link<()>,
    /// Known from the answer to where it begins.
    next: Option<QueueOffset>,
    holding: Holding,
    is_done: bool,
}

impl Auditor {
    pub fn new(world: &mut World, queue: Queue) -> Self {
        let link = Link::new("auditor".to_owned(), None, world.random.next_u64());
        Self { queue, link, next: None, holding: Holding::default(), is_done: false }
    }

    /// What it found, once it is through.
    pub fn holding(&self) -> Option<&Holding> {
        self.is_done.then_some(&self.holding)
    }

    pub fn next_wake(&self, now: u64) -> u64 {
        self.link.next_wake(now)
    }

    pub fn act(&mut self, world: &mut World) -> Result<(), Violation> {
        for said in self.link.turn(world)? {
            match said {
                Said::Ready | Said::Lost => {}
                Said::Answered { answer, .. } => match answer.answer() {
                    Some(Answer::LookUp(answer)) => {
                        world.ledger.given_up(self.queue, answer.start, world.wall())?;
                        self.holding = Holding { start: answer.start, end: answer.end, numbers: Vec::new() };
                        self.next = Some(answer.start);
                    }
                    Some(Answer::Fetch(answer)) => {
                        for (head, payload) in answer.batches.iter() {
                            promise!(
                                Some(head.first_wanted) == self.next,
                                "an audit of {:?} at {:?} got {}",
                                self.queue,
                                self.next,
                                head.first_wanted
                            );
                            let all = world.ledger.seen(self.queue, &head, payload, self.link.power_cuts())?;
                            let skipped = (head.first_wanted.0 - head.base_offset.0) as usize;
                            self.holding.numbers.extend(&all[skipped..]);
                            self.next = Some(head.end_offset());
                        }
                        self.holding.end = answer.end;
                        let is_empty = answer.batches.is_empty();
                        promise!(
                            !is_empty || self.next >= Some(answer.end),
                            "an audit of {:?} at {:?} got nothing below {}",
                            self.queue,
                            self.next,
                            answer.end
                        );
                    }
                    _ => return Err(Violation("an auditor was answered otherwise".to_owned())),
                },
                Said::Refused { refusal, .. } => self.refused(world, &refusal)?,
                _ => return Err(Violation("an auditor was told what it did not ask".to_owned())),
            }
        }
        self.is_done |= self.next.is_some_and(|next| next >= self.holding.end) && self.link.outstanding() == 0;
        if !self.is_done && self.link.is_ready() && self.link.outstanding() == 0 {
            self.ask(world);
        }
        Ok(())
    }

    fn ask(&mut self, world: &World) {
        let (topic, queue) = self.queue;
        let request = match self.next {
            None => Request::LookUp(LookUp { topic, queue, start: Start::Earliest }),
            Some(offset) => {
                Request::Fetch(Fetch { topic, queue, epoch: Epoch::ANY, offset, max_messages: 100, max_bytes: 1 << 17 })
            }
        };
        self.link.request(world.now(), &request, ());
    }

    fn refused(&mut self, world: &World, refusal: &Refusal) -> Result<(), Violation> {
        let too_old = refusal.code() == Some(ErrorCode::OffsetTooOld) && !world.ledger.keeps_all(self.queue.0);
        promise!(refusal.retriable || too_old, "an audit of {:?} was refused: {refusal}", self.queue);
        if too_old {
            self.next = None;
        }
        Ok(())
    }
}
