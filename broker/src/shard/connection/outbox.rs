//! What is on its way out of one connection, in order: bytes of its own (answers, the heads of deliveries) and payloads that
//! stand in a shard's log.
//!
//! A payload is not copied here: only its place is kept, and nothing pins the ring. Each send looks the place up again: in the
//! ring if it still stands there, else in the one block that was read from disk for this connection. A slow consumer thus
//! holds [`GATHER_PAYLOADS`] places and, while it is behind the ring, one block; never a message.
//!
//! ```text
//!   pieces   bytes 312 | log 7/65536+1024 | bytes 88 | log 7/66688+1024 | bytes 24
//!   bytes    [answer answer head][head][answer]                       head..
//! ```

use super::Mark;
use crate::limits::{GATHER_BYTES, GATHER_PAYLOADS, OUTPUT_HIGH};
use peregrine_protocol::ids::{LogPosition, ShardId};
use std::collections::VecDeque;

/// Bytes of a shard's log that are to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogBytes {
    pub shard: ShardId,
    /// The position of the first byte not sent yet.
    pub position: LogPosition,
    pub len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    /// The next so many of `bytes`.
    Own(usize),
    Log(LogBytes),
}

/// The queue of pieces, and the bytes that it owns.
#[derive(Debug, Default)]
pub struct Outbox {
    pieces: VecDeque<Piece>,
    bytes: Vec<u8>,
    head: usize,
    log_pieces: usize,
    log_bytes: usize,
    /// Bytes that were ever put in, and of those the ones that left.
    put: u64,
    left: u64,
    /// Times to be recorded, each with how much must have left for it.
    marks: VecDeque<(u64, Mark)>,
}

/// One run of bytes for the send, in order.
#[derive(Clone, Copy, Debug)]
pub enum Run<'a> {
    Own(&'a [u8]),
    Log(LogBytes),
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes of its own that wait.
    pub fn own_len(&self) -> usize {
        self.bytes.len() - self.head
    }

    /// True while so much waits that the connection's requests are not read.
    pub fn is_high(&self) -> bool {
        self.own_len() >= OUTPUT_HIGH
    }

    /// True while another delivery may be added.
    pub fn has_room_for_delivery(&self) -> bool {
        self.log_pieces < GATHER_PAYLOADS && self.log_bytes < GATHER_BYTES && !self.is_high()
    }

    /// Lets `write` append bytes; what it appends goes out in its place.
    pub fn push<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        if self.head == self.bytes.len() {
            self.bytes.clear();
            self.head = 0;
        } else if self.head >= OUTPUT_HIGH / 4 {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
        let before = self.bytes.len();
        let result = write(&mut self.bytes);
        let more = self.bytes.len() - before;
        self.put += more as u64;
        match self.pieces.back_mut() {
            _ if more == 0 => {}
            Some(Piece::Own(len)) => *len += more,
            _ => self.pieces.push_back(Piece::Own(more)),
        }
        result
    }

    /// Appends bytes of the log.
    pub fn push_log(&mut self, bytes: LogBytes) {
        if bytes.len > 0 {
            self.log_pieces += 1;
            self.log_bytes += bytes.len;
            self.put += bytes.len as u64;
            self.pieces.push_back(Piece::Log(bytes));
        }
    }

    /// Remembers a time until all that is in the outbox now has left.
    pub fn mark(&mut self, mark: Mark) {
        self.marks.push_back((self.put, mark));
    }

    /// The next mark whose bytes have left.
    pub fn next_mark(&mut self) -> Option<Mark> {
        let left = self.left;
        self.marks.pop_front_if(|&mut (at, _)| at <= left).map(|(_, mark)| mark)
    }

    /// What is to be sent, in order.
    pub fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        let mut at = self.head;
        self.pieces.iter().map(move |piece| match *piece {
            Piece::Own(len) => {
                at += len;
                Run::Own(&self.bytes[at - len..at])
            }
            Piece::Log(bytes) => Run::Log(bytes),
        })
    }

    /// The socket took `count` bytes.
    pub fn sent(&mut self, mut count: usize) {
        self.left += count as u64;
        while count > 0 {
            let Some(piece) = self.pieces.front_mut() else {
                unreachable!("more was sent than there was");
            };
            let len = match piece {
                Piece::Own(len) | Piece::Log(LogBytes { len, .. }) => len,
            };
            let taken = count.min(*len);
            *len -= taken;
            count -= taken;
            let finished = *len == 0;
            match piece {
                Piece::Own(_) => self.head += taken,
                Piece::Log(bytes) => {
                    bytes.position.0 += taken as u64;
                    self.log_bytes -= taken;
                    self.log_pieces -= usize::from(finished);
                }
            }
            if finished {
                self.pieces.pop_front();
            }
        }
    }

    /// Gives the memory back where nothing waits: an idle connection holds none.
    pub fn release(&mut self) {
        if self.is_empty() {
            (self.bytes, self.head) = (Vec::new(), 0);
            self.pieces = VecDeque::new();
            self.marks = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::stages::Stage;
    use peregrine_protocol::ids::Nanos;

    fn log(position: u64, len: usize) -> LogBytes {
        LogBytes { shard: ShardId(0), position: LogPosition(position), len }
    }

    /// What the runs say, with bytes of the log standing as the low byte of their position.
    fn image(outbox: &Outbox) -> Vec<u8> {
        let mut image = Vec::new();
        for run in outbox.runs() {
            match run {
                Run::Own(bytes) => image.extend_from_slice(bytes),
                Run::Log(bytes) => image.extend((0..bytes.len as u64).map(|at| (bytes.position.0 + at) as u8)),
            }
        }
        image
    }

    #[test]
    fn any_split_of_the_send_keeps_order_and_bytes() {
        for step in 1..40 {
            let mut outbox = Outbox::default();
            outbox.push(|bytes| bytes.extend_from_slice(&[1, 2, 3]));
            outbox.push(|bytes| bytes.extend_from_slice(&[4, 5]));
            outbox.push_log(log(1000, 17));
            outbox.push_log(log(2000, 5));
            outbox.push(|bytes| bytes.push(9));
            let mut expected = image(&outbox);
            assert_eq!(expected.len(), 28);
            while !expected.is_empty() {
                let count = step.min(expected.len());
                outbox.sent(count);
                expected.drain(..count);
                assert_eq!(image(&outbox), expected);
            }
            assert!(outbox.is_empty() && outbox.own_len() == 0 && outbox.log_pieces == 0 && outbox.log_bytes == 0);
        }
    }

    /// A time was recorded when nothing waited any more: for a consumer that is always behind that was never, and the times
    /// piled up.
    #[test]
    fn a_mark_is_due_when_what_stood_before_it_has_left() {
        let mut outbox = Outbox::default();
        let mark = |since| Mark { shard: ShardId(0), stage: Stage::Deliver, since: Nanos(since) };
        let due = |outbox: &mut Outbox| outbox.next_mark().map(|mark| mark.since.0);
        outbox.push(|bytes| bytes.extend_from_slice(&[0; 10]));
        outbox.push_log(log(0, 20));
        outbox.mark(mark(1));
        outbox.push(|bytes| bytes.extend_from_slice(&[0; 5]));
        outbox.mark(mark(2));
        outbox.mark(mark(3));
        outbox.push_log(log(100, 7));
        outbox.sent(29);
        assert_eq!(due(&mut outbox), None);
        outbox.sent(1);
        assert_eq!((due(&mut outbox), due(&mut outbox)), (Some(1), None));
        outbox.sent(6);
        assert_eq!([due(&mut outbox), due(&mut outbox), due(&mut outbox)], [Some(2), Some(3), None]);
        assert!(!outbox.is_empty() && outbox.marks.is_empty());
    }

    #[test]
    fn bytes_already_sent_do_not_pile_up() {
        let mut outbox = Outbox::default();
        for _ in 0..10_000 {
            outbox.push(|bytes| bytes.extend_from_slice(&[0; 100]));
            outbox.sent(if outbox.own_len() > 150 { 100 } else { 50 });
        }
        assert!(outbox.bytes.len() < OUTPUT_HIGH);
    }
}
