//! What came over the mesh for one shard, handled in the order in which it came.
//!
//! A request that has to wait for news of a topic, or that takes several turns, holds back those behind it and nobody else; they
//! are as many as their senders had credit for. None waits for room here: a batch that finds none goes back to its origin, and so
//! does every batch that comes from the same executor behind it, until that asks for room ([`super::gate`] says why).

use crate::limits::MESH_PER_TURN;
use crate::shard::clock;
use crate::shard::credit::charge;
use crate::shard::event::Event;
use crate::shard::executor::Executor;
use crate::shard::mesh_messages::Return;
use crate::shard::peers::PeerId;
use crate::shard::proxy;
use crate::shard::requests;
use crate::shard::router::{self, Asker, Wait, Waited};
use crate::shard::runtime::{self, turn};
use peregrine_protocol::frame::{self, Frame, Received};
use peregrine_protocol::ids::{Nanos, ShardId};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// A frame from another executor.
pub struct Forwarded {
    pub executor: u16,
    pub connection: PeerId,
    pub received_at: Nanos,
    pub frame: Box<[u8]>,
}

/// A connection of another executor that is gone. Its end takes effect when every shard here has met it, behind all that the
/// connection asked for: a subscription that is made after it would be nobody's for ever.
pub struct Departed {
    pub executor: u16,
    pub connection: PeerId,
    /// Shards that have not met it yet.
    pub left: Cell<usize>,
}

/// What lies in an inbox.
pub enum Item {
    Frame(Forwarded),
    /// An executor got batches back and sends no others: it wants to hear of room.
    AskRoom {
        executor: u16,
    },
    Gone(Rc<Departed>),
}

/// One shard's.
#[derive(Default)]
pub struct Inbox {
    items: RefCell<VecDeque<Item>>,
    news: Event,
}

impl Inbox {
    pub fn put(&self, item: Item) {
        self.items.borrow_mut().push_back(item);
        self.news.raise();
    }
}

/// Handles what comes, for ever.
pub async fn run(executor: Rc<Executor>, shard: ShardId, inbox: Rc<Inbox>) {
    // Executors whose batches go back, and the size of the first that did.
    let mut full: HashMap<u16, usize> = HashMap::new();
    let mut handled = 0;
    loop {
        while executor.seams.holds_forwarded() {
            runtime::sleep(Duration::from_millis(1)).await;
        }
        let next = inbox.items.borrow_mut().pop_front();
        match next {
            None => {
                inbox.news.wait().await;
                continue;
            }
            Some(Item::Frame(forwarded)) => {
                handle(&executor, shard, &mut full, forwarded).await;
                executor.forwarded_here.set(executor.forwarded_here.get() - 1);
            }
            Some(Item::AskRoom { executor: to }) => {
                let payload = full.remove(&to).unwrap_or_default();
                runtime::spawn(tell_room(executor.clone(), shard, to, payload)).detach();
            }
            Some(Item::Gone(departed)) => {
                departed.left.set(departed.left.get() - 1);
                if departed.left.get() == 0 {
                    proxy::end(&executor, departed.executor, departed.connection);
                }
            }
        }
        handled += 1;
        if handled == MESH_PER_TURN {
            handled = 0;
            turn().await;
        }
    }
}

async fn handle(executor: &Rc<Executor>, shard: ShardId, full: &mut HashMap<u16, usize>, forwarded: Forwarded) {
    let Forwarded { executor: from, connection, received_at, .. } = forwarded;
    let Ok(Received::Frame(frame)) = frame::decode(&forwarded.frame, executor.facts.frame_max) else {
        unreachable!("the frame was whole when it was sent on")
    };
    let asker = Asker::There { executor: from, connection, shard };
    let goes_back = router::is_batch(&frame) && full.contains_key(&from);
    if goes_back || !finds_room(executor, asker, &frame, received_at).await {
        full.entry(from).or_insert(frame.body.len());
        let frame = forwarded.frame;
        executor.mesh().give_back(usize::from(from), Return::Full { connection, shard, received_at, frame });
        return;
    }
    if !requests::is_answered(frame.head.kind) {
        // Its credit goes back without an answer.
        executor.give_credit_back(asker);
    }
    let bytes = forwarded.frame.len();
    drop(forwarded.frame);
    if charge(bytes) > 0 {
        executor.mesh().give_back(usize::from(from), Return::Handled { shard, bytes });
    }
}

/// Handles a frame, unless it is a batch for which there is no room.
async fn finds_room(executor: &Rc<Executor>, asker: Asker, frame: &Frame<'_>, received_at: Nanos) -> bool {
    let mut routed = router::route(executor, asker, frame, received_at);
    loop {
        let wait = match routed {
            Ok(()) => return true,
            Err(Wait::Room(_)) => return false,
            Err(wait) => wait,
        };
        routed = match router::wait(executor, asker, frame, received_at, wait).await {
            Waited::Handled => Ok(()),
            Waited::Again => router::route(executor, asker, frame, received_at),
            Waited::Then(wait) => Err(wait),
        };
    }
}

/// Tells an executor that there is room for the first batch that it got back, or that it will be refused without any.
async fn tell_room(executor: Rc<Executor>, shard: ShardId, to: u16, payload: usize) {
    if let Some(there) = executor.shard(shard) {
        while !there.has_room_for(payload) {
            there.room(clock::monotonic() + executor.seams.room_within().0).await;
        }
    }
    executor.mesh().give_back(usize::from(to), Return::Room { shard });
}
