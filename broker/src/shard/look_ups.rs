//! Look-ups in the indexes of sealed segments, for readers that are far behind and for requests about what was stored long ago.
//!
//! ```text
//!   engine: Delivery::LookUp ─► due ─► a few at once, in the background queue ─► engine.looked_up ─► deliveries
//!                                ▲              │ its index is not made yet
//!                                └── index news ┴─► waiting
//! ```
//!
//! A look-up is some direct reads of 4 KiB. A reader has one under way at the most; a request waits for its own as for anything else
//! that its frame needs. A crash ends those who asked.

use crate::engine::Slice;
use crate::engine::{Asked, IndexEntry, IndexQuestion, QueueKey, ReaderOwner};
use crate::limits::{INDEX_DROP_SLICE, LOOK_AGAIN_AFTER, LOOK_UP_BATCHES, LOOK_UPS_AT_ONCE, ROOM_WITHIN};
use crate::log::index::{IndexLookUpError, IndexedBatch};
use crate::shard::answers;
use crate::shard::clock;
use crate::shard::executor::Executor;
use crate::shard::peers::PeerId;
use crate::shard::runtime::turn;
use crate::shard::state::{Shard, ShardIndexes};
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{LogPosition, Nanos, QueueOffset, SubscriptionId};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// What a shard has to look up for its engine.
#[derive(Debug, Default)]
pub struct LookUps {
    due: RefCell<VecDeque<LookUp>>,
    /// For an index to be made.
    waiting: RefCell<Vec<LookUp>>,
    running: Cell<usize>,
    is_dropping: Cell<bool>,
}

#[derive(Clone, Copy, Debug)]
pub enum LookUp {
    Batches {
        owner: ReaderOwner,
        subscription: SubscriptionId,
        queue: QueueKey,
        offset: QueueOffset,
        below: QueueOffset,
        behind: LogPosition,
    },
    One(IndexQuestion),
}

/// Looks up, soon.
pub fn ask(executor: &Rc<Executor>, shard: &Rc<Shard>, look_up: LookUp) {
    shard.look_ups.due.borrow_mut().push_back(look_up);
    work(executor, shard);
}

/// An index was made, or cannot be: who waits for one asks again, and what is indexed is dropped from memory.
pub fn indexed(executor: &Rc<Executor>, shard: &Rc<Shard>) {
    let to = shard.indexes().map_or(LogPosition(0), |indexes| indexes.indexed_to());
    shard.core.borrow_mut().engine.indexed(to);
    let waiting = std::mem::take(&mut *shard.look_ups.waiting.borrow_mut());
    shard.look_ups.due.borrow_mut().extend(waiting);
    shard.index_news.call();
    work(executor, shard);
    if !shard.look_ups.is_dropping.replace(true) {
        let shard = shard.clone();
        in_background(executor, async move {
            while shard.core.borrow_mut().engine.drop_indexed(&mut Slice::new(INDEX_DROP_SLICE)) {
                turn().await;
            }
            shard.look_ups.is_dropping.set(false);
        });
    }
}

/// Finds the answer to a question of the engine and tells it. A request waits for that, and others behind it: where the index is
/// not made in time, it is to come again.
pub async fn answer(shard: &Rc<Shard>, question: &IndexQuestion) -> Result<(), ErrorCode> {
    let deadline = clock::monotonic() + Nanos::from(ROOM_WITHIN).0;
    loop {
        let indexes = shard.indexes().ok_or(ErrorCode::Busy)?;
        match find(&indexes, question).await {
            Ok(found) => {
                shard.core.borrow_mut().engine.answered(question, found.as_ref());
                return Ok(());
            }
            Err(IndexLookUpError::NotMade) => {
                // The log makes it, if it does not know yet that it has to.
                shard.work.raise();
                if !shard.index_news.called(deadline).await {
                    return Err(ErrorCode::Busy);
                }
            }
            Err(error) => {
                tracing::error!(shard = shard.id.0, %error, "what was stored long ago cannot be looked up");
                return Err(ErrorCode::Damaged);
            }
        }
    }
}

/// The batches of a queue from `offset` on, for a fetch.
pub async fn batches(shard: &Rc<Shard>, queue: QueueKey, offset: QueueOffset) -> Option<Vec<IndexEntry>> {
    loop {
        let indexes = shard.indexes()?;
        match indexes.lookup(queue.topic, queue.queue, offset, LogPosition(0), LOOK_UP_BATCHES).await {
            Ok(found) => return Some(found.iter().map(entry).collect()),
            Err(IndexLookUpError::NotMade) => wait(shard).await?,
            Err(error) => {
                tracing::error!(shard = shard.id.0, %error, "what was stored long ago cannot be looked up");
                return None;
            }
        }
    }
}

/// Runs `task` where it holds nobody up.
pub fn in_background(executor: &Executor, task: impl Future<Output = ()> + 'static) {
    executor.spawn_background(task);
}

/// Until an index is made. None once the log is closed.
async fn wait(shard: &Rc<Shard>) -> Option<()> {
    // The log makes it, if it does not know yet that it has to.
    shard.work.raise();
    shard.index_news.called(clock::monotonic() + Nanos::from(LOOK_AGAIN_AFTER).0).await;
    (!shard.closed.get()).then_some(())
}

fn work(executor: &Rc<Executor>, shard: &Rc<Shard>) {
    let look_ups = &shard.look_ups;
    while look_ups.running.get() < LOOK_UPS_AT_ONCE.min(look_ups.running.get() + look_ups.due.borrow().len()) {
        let Some(look_up) = look_ups.due.borrow_mut().pop_front() else { return };
        look_ups.running.set(look_ups.running.get() + 1);
        let (executor, shard) = (executor.clone(), shard.clone());
        in_background(&executor.clone(), async move {
            let mut next = Some(look_up);
            while let Some(look_up) = next {
                carry_out(&executor, &shard, look_up).await;
                next = shard.look_ups.due.borrow_mut().pop_front();
            }
            shard.look_ups.running.set(shard.look_ups.running.get() - 1);
        });
    }
}

async fn carry_out(executor: &Rc<Executor>, shard: &Rc<Shard>, look_up: LookUp) {
    let Some(indexes) = shard.indexes() else { return };
    let is_told = match look_up {
        LookUp::Batches { owner, subscription, queue, offset, below, behind } => {
            match indexes.lookup(queue.topic, queue.queue, offset, behind, LOOK_UP_BATCHES).await {
                Ok(found) => {
                    let found = found.iter().map(entry).collect();
                    shard.core.borrow_mut().engine.looked_up(subscription, below, found);
                    true
                }
                Err(IndexLookUpError::NotMade) => false,
                Err(error) => {
                    tracing::error!(shard = shard.id.0, %error, "a consumer's messages cannot be looked up");
                    end_damaged(executor, shard, PeerId(owner.0), subscription);
                    true
                }
            }
        }
        LookUp::One(question) => match find(&indexes, &question).await {
            Ok(found) => {
                shard.core.borrow_mut().engine.answered(&question, found.as_ref());
                true
            }
            // Who waits for it has no other way on. A segment that cannot be read is tried again, or in the end taken for damaged.
            Err(_) => false,
        },
    };
    if is_told {
        shard.hand_out_now(executor);
    } else {
        shard.look_ups.waiting.borrow_mut().push(look_up);
    }
    // A group may have found its place, or an index is to be made: both are the shard's task.
    shard.work.raise();
}

fn end_damaged(executor: &Rc<Executor>, shard: &Rc<Shard>, owner: PeerId, subscription: SubscriptionId) {
    if let Some(peer) = executor.peers.get(owner)
        && shard.end_damaged(owner, peer.outlet(), subscription)
    {
        executor.push_to(owner, |out| answers::ended(out, shard.id, subscription, ErrorCode::Damaged));
    }
}

async fn find(indexes: &ShardIndexes, question: &IndexQuestion) -> Result<Option<IndexEntry>, IndexLookUpError> {
    let QueueKey { topic, queue } = question.queue;
    let found = match question.asked {
        Asked::Time(time) => indexes.lookup_time(topic, queue, time, question.below).await?,
        // Of what is damaged nothing is known but that its time lies before that of what comes behind.
        Asked::Offset(offset) => indexes.first_readable(topic, queue, offset).await?,
    };
    Ok(found.as_ref().map(entry))
}

fn entry(found: &IndexedBatch) -> IndexEntry {
    let &IndexedBatch { offset, records, position, length, store_time } = found;
    IndexEntry { offset, records, position, length, store_time }
}
