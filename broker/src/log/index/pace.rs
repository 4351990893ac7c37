//! Keeps the steps of a long piece of work short. The work counts what it does in nanoseconds as they were measured once, since
//! there is no clock here; between steps of [`limits::INDEX_STEP`] it rests, which is a real turn of the reactor.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use crate::limits;
use crate::log::disk::Disk;

/// Decoding an entry's header, with its checksum.
pub(super) const ENTRY: u64 = 100;
/// Finding a record's key and hashing its first bytes.
pub(super) const RECORD: u64 = 50;
/// Adding a row to a sorter.
pub(super) const ROW: u64 = 20;
/// Sorting one run of rows.
pub(super) const RUN: u64 = 25_000;
/// Taking a row out of a merge and putting it into a leaf.
pub(super) const MERGED_ROW: u64 = 250;
/// Finishing a block, with its checksum.
pub(super) const BLOCK: u64 = 1_500;

/// Bytes that are summed or hashed in a nanosecond.
const BYTES_PER_NANO: u64 = 5;

/// Gives up a long piece of work, where it rests.
#[derive(Clone, Debug, Default)]
pub struct Stop(Rc<Cell<StopState>>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum StopState {
    #[default]
    No,
    Asked,
    Met,
}

impl Stop {
    pub fn ask(&self) {
        if self.0.get() == StopState::No {
            self.0.set(StopState::Asked);
        }
    }

    /// The outcome of work that this may give up; `None` where it was. It rests then, and nothing of it is under way.
    pub async fn or_given_up<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        // Futures of the log's writes are as large as the largest of its tasks.
        let mut work = Box::pin(work);
        poll_fn(|context| match work.as_mut().poll(context) {
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
            Poll::Pending if self.is_met() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// The work rests for good: it may be dropped.
    pub fn is_met(&self) -> bool {
        self.0.get() == StopState::Met
    }
}

/// The step that is under way.
pub(super) struct Pace<D: Disk> {
    disk: D,
    stop: Stop,
    spent: u64,
}

impl<D: Disk> Pace<D> {
    pub fn new(disk: D, stop: Stop) -> Self {
        Self { disk, stop, spent: 0 }
    }

    /// Before so much is done: rests if it would make the step too long.
    pub async fn spend(&mut self, nanos: u64) {
        if self.spent > 0 && self.spent + nanos > limits::INDEX_STEP.0 {
            self.disk.pause(limits::INDEX_REST).await;
            self.spent = 0;
            if self.stop.0.get() != StopState::No {
                self.stop.0.set(StopState::Met);
                return std::future::pending().await;
            }
        }
        self.spent += nanos;
    }

    /// So many bytes are summed or hashed.
    pub async fn spend_bytes(&mut self, bytes: usize) {
        self.spend(bytes as u64 / BYTES_PER_NANO).await;
    }
}
