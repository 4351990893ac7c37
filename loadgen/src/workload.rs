//! What one run sends: the schedule, the size and the content of its messages, shared by all its threads.

use crate::content::Content;
use crate::schedule::{Place, Schedule};
use crate::stamp::Stamp;

/// The messages of a run.
#[derive(Debug)]
pub struct Workload {
    /// A random number that tells this run's messages from any other's.
    pub run: u64,
    /// Bytes of a message body, stamp included.
    pub size: usize,
    /// When each is due.
    pub schedule: Schedule,
    /// What is in them.
    pub content: Content,
}

/// One message, not yet made: its body is written where it is sent from.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    workload: &'a Workload,
    /// Its index in the run.
    pub index: u64,
    /// Where it comes from and goes to.
    pub place: Place,
}

impl Workload {
    /// Message `index`.
    pub fn message(&self, index: u64) -> Message<'_> {
        Message { workload: self, index, place: self.schedule.place(index) }
    }
}

impl Message<'_> {
    /// Bytes of the body.
    pub fn len(&self) -> usize {
        self.workload.size
    }

    /// A body holds at least its stamp.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes the body into `body`, which has [`Message::len`] bytes.
    pub fn write(&self, body: &mut [u8]) {
        self.workload.content.fill(self.index, &mut body[crate::stamp::STAMP_BYTES..]);
        Stamp::of(self.workload.run, &self.workload.schedule, self.index).seal(body);
    }
}
