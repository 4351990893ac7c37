//! Batches for a shard of another executor that had no room for them. They wait here, where they came from, and hold no credit, so
//! that everything else for that shard goes on. What moves a group's place takes room too, and counts as a batch.
//!
//! ```text
//!            a batch comes back            the shard has room           all are sent again
//!   Open ──────────────────────► Asked ──────────────────────► Sending ────────────────────► Open
//!                                  ▲                              │
//!                                  └───── a batch comes back ─────┘
//! ```
//!
//! A shard that finds no room for a batch sends it back, and with it every batch that comes from the same executor behind it,
//! until it meets that executor's [`Request::AskRoom`]; other requests it handles. The channels keep their order, so that all
//! batches that were under way have come back, in the order in which they were sent, when the answer to that comes. Until they
//! are sent again no other batch leaves for that shard, and sockets that have one are not read: the batches of a connection are
//! stored in the order in which it sent them. One that waited for [`crate::limits::ROOM_WITHIN`] is answered `Busy` here.

use crate::limits::{MESH_PER_TURN, MESH_RETURNED_PER_SHARD};
use crate::shard::answers;
use crate::shard::clock;
use crate::shard::credit::Credit;
use crate::shard::crowd::Crowd;
use crate::shard::event::Event;
use crate::shard::executor::Executor;
use crate::shard::mesh_messages::Request;
use crate::shard::peers::PeerId;
use crate::shard::router::Asker;
use crate::shard::runtime::{self, turn};
use peregrine_protocol::frame::{self, Received};
use peregrine_protocol::ids::{Nanos, ShardId};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// Batches came, or may still come, back; the shard was asked to say when it has room.
    Asked,
    /// It has room: what waits is sent again.
    Sending,
}

/// A batch that came back: a whole produce frame.
pub struct Batch {
    pub connection: PeerId,
    pub received_at: Nanos,
    pub frame: Box<[u8]>,
}

/// The way to one shard of another executor, as far as batches are concerned.
#[derive(Default)]
pub struct Gate {
    state: Cell<State>,
    /// Came back since the shard was asked, in the order in which they were sent.
    returned: RefCell<VecDeque<Batch>>,
    /// To be sent again, behind those.
    unsent: RefCell<VecDeque<Batch>>,
    news: Event,
    opened: Crowd,
}

impl Gate {
    pub fn is_open(&self) -> bool {
        self.state.get() == State::Open
    }

    /// True when the gate is opened before `deadline`.
    pub async fn opened(&self, deadline: Nanos) -> bool {
        self.opened.called(deadline).await
    }

    /// Batches that wait.
    pub fn waiting(&self) -> usize {
        self.returned.borrow().len() + self.unsent.borrow().len()
    }

    /// Connections that wait for it to be opened.
    pub fn waiting_for_it(&self) -> usize {
        self.opened.waiting()
    }

    /// A connection is gone: nobody wants to know what becomes of its batches. Their bytes go back to `credit`.
    pub fn forget(&self, connection: PeerId, credit: &Credit) {
        for waiting in [&self.returned, &self.unsent] {
            waiting.borrow_mut().retain(|batch| {
                let stays = batch.connection != connection;
                if !stays {
                    credit.bytes_back(batch.frame.len());
                }
                stays
            });
        }
    }

    /// There is room: what came back is sent again, before what was still to be sent again when it came.
    fn resume(&self) {
        self.returned.borrow_mut().append(&mut self.unsent.borrow_mut());
        self.returned.swap(&self.unsent);
    }

    /// What was received at `since` or before.
    fn take_overdue(&self, since: Nanos) -> Vec<Batch> {
        let mut overdue = Vec::new();
        for waiting in [&self.returned, &self.unsent] {
            let waiting = &mut *waiting.borrow_mut();
            if waiting.iter().any(|batch| batch.received_at <= since) {
                let (late, rest) = waiting.drain(..).partition(|batch| batch.received_at <= since);
                *waiting = rest;
                let late: VecDeque<Batch> = late;
                overdue.extend(late);
            }
        }
        overdue
    }

    /// When the first of those that wait was received.
    fn oldest(&self) -> Option<Nanos> {
        let (returned, unsent) = (self.returned.borrow(), self.unsent.borrow());
        returned.iter().chain(&*unsent).map(|batch| batch.received_at).min()
    }
}

/// A batch came back from `shard`; so did its place among the requests.
pub fn take_back(executor: &Rc<Executor>, shard: ShardId, batch: Batch) {
    let gate = executor.gate(shard);
    let state = gate.state.replace(State::Asked);
    if state != State::Asked {
        executor.mesh().request(executor.layout.executor_of(shard), Request::AskRoom { shard });
    }
    if executor.peers.connection(batch.connection).is_some() {
        gate.returned.borrow_mut().push_back(batch);
        assert!(gate.waiting() <= MESH_RETURNED_PER_SHARD, "each had credit while no other was sent");
    } else {
        executor.credit(shard).bytes_back(batch.frame.len());
    }
    if state == State::Open {
        runtime::spawn(tend(executor.clone(), shard)).detach();
    }
    gate.news.raise();
}

/// The shard has room, and all that it sent back is here.
pub fn room_came(executor: &Executor, shard: ShardId) {
    let gate = executor.gate(shard);
    assert_eq!(gate.state.replace(State::Sending), State::Asked, "a shard speaks of room when it is asked");
    gate.resume();
    gate.news.raise();
}

/// Runs from the first batch that comes back until the gate is open again.
async fn tend(executor: Rc<Executor>, shard: ShardId) {
    let gate = executor.gate(shard);
    let mut sent = 0;
    loop {
        let within = executor.seams.room_within().0;
        for batch in gate.take_overdue(Nanos(clock::monotonic().saturating_sub(Nanos(within)))) {
            executor.credit(shard).bytes_back(batch.frame.len());
            answer_busy(&executor, &batch);
        }
        let next_deadline = gate.oldest().map(|at| at + within);
        let late = async {
            match next_deadline {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
            false
        };
        if gate.state.get() == State::Asked {
            let news = async {
                gate.news.wait().await;
                true
            };
            futures_lite::future::or(news, late).await;
            continue;
        }
        if next_deadline.is_none() {
            break;
        }
        let credit = executor.credit(shard);
        let taken = async {
            credit.place_taken().await;
            true
        };
        if !futures_lite::future::or(taken, late).await {
            continue;
        }
        // While credit was waited for, another may have come back, or the last connection have gone.
        let next = if gate.state.get() == State::Sending { gate.unsent.borrow_mut().pop_front() } else { None };
        let Some(Batch { connection, received_at, frame }) = next else {
            credit.place_back();
            continue;
        };
        let to = executor.layout.executor_of(shard);
        executor.mesh().request(to, Request::Forward { shard, connection, received_at, frame });
        sent += 1;
        if sent % MESH_PER_TURN == 0 {
            turn().await;
        }
    }
    gate.state.set(State::Open);
    gate.opened.call();
}

async fn sleep_until(at: Nanos) {
    runtime::sleep(Duration::from_nanos(at.saturating_sub(clock::monotonic()))).await;
}

fn answer_busy(executor: &Executor, batch: &Batch) {
    let Ok(Received::Frame(frame)) = frame::decode(&batch.frame, executor.facts.frame_max) else {
        unreachable!("the frame was whole when it was sent")
    };
    executor.count_busy_elsewhere();
    executor.refuse_with(Asker::Here(batch.connection), frame.head.correlation, &answers::busy());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(number: u64) -> Batch {
        Batch { connection: PeerId(number), received_at: Nanos(number), frame: Box::default() }
    }

    #[test]
    fn what_came_back_again_goes_before_what_was_not_sent_again_yet() {
        let gate = Gate::default();
        gate.unsent.borrow_mut().extend([3, 4].map(batch));
        gate.returned.borrow_mut().extend([1, 2].map(batch));
        gate.resume();
        let unsent: Vec<u64> = gate.unsent.borrow().iter().map(|batch| batch.connection.0).collect();
        assert_eq!((unsent, gate.returned.borrow().len()), (vec![1, 2, 3, 4], 0));
    }
}
