//! One direction of a simulated connection: bytes that are on their way, and bytes that have arrived.

use std::collections::VecDeque;
use std::task::Waker;

#[derive(Debug, Default)]
pub struct Pipe {
    /// Sent, and not there yet.
    pub on_the_way: usize,
    arrived: VecDeque<u8>,
    /// When what was sent last arrives: nothing overtakes it.
    pub last_due: u64,
    /// The sender has ended it; and the receiver has met that end.
    pub is_finished: bool,
    pub end_arrived: bool,
    /// The receiver wants no more.
    pub is_deaf: bool,
    pub sender: Option<Waker>,
    pub receiver: Option<Waker>,
}

impl Pipe {
    /// How many more bytes a sender may send.
    pub fn room(&self, window: usize) -> usize {
        window.saturating_sub(self.on_the_way + self.arrived.len())
    }

    pub fn arrive(&mut self, bytes: &[u8]) {
        self.on_the_way -= bytes.len();
        if !self.is_deaf {
            self.arrived.extend(bytes);
        }
        self.wake_receiver();
    }

    pub fn end(&mut self) {
        self.end_arrived = true;
        self.wake_receiver();
    }

    pub fn has_arrived(&self) -> usize {
        self.arrived.len()
    }

    /// Takes what has arrived, as much as there is place for.
    pub fn take(&mut self, into: &mut [u8]) -> usize {
        let count = into.len().min(self.arrived.len());
        for (to, byte) in into.iter_mut().zip(self.arrived.drain(..count)) {
            *to = byte;
        }
        if count > 0 {
            self.wake_sender();
        }
        count
    }

    pub fn take_all(&mut self, into: &mut Vec<u8>) -> usize {
        let count = self.arrived.len();
        into.extend(self.arrived.drain(..));
        if count > 0 {
            self.wake_sender();
        }
        count
    }

    pub fn wake_sender(&mut self) {
        if let Some(waker) = self.sender.take() {
            waker.wake();
        }
    }

    pub fn wake_receiver(&mut self) {
        if let Some(waker) = self.receiver.take() {
            waker.wake();
        }
    }
}
