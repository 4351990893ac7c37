//! The reader task: receives, takes frames apart in place and gives each to the router, until the connection ends.
//!
//! ```text
//!   receive ──► frames in place ──► router ──┬── handled: next frame
//!      ▲             ▲                       └── must wait (ring full, no credit, large, topic to be asked for …)
//!      │             └────────── backlog ◄──────────── kept from that frame on, waited for, tried again
//!      └── when nothing is kept but a partial frame
//! ```
//!
//! After 64 frames or 64 KiB the others have their turn, the reactor included: a client that never stops sending must not keep
//! completions from being seen.

use super::Connection;
use super::receive::Backlog;
use crate::limits::{BYTES_PER_TURN, FRAMES_PER_TURN, RECEIVE_FLOOR};
use crate::shard::clock;
use crate::shard::executor::Executor;
use crate::shard::greeting::{self, Greeting};
use crate::shard::requests;
use crate::shard::router::{self, Asker, Wait, Waited};
use crate::shard::runtime::turn;
use peregrine_protocol::frame::{self, FrameHead, Received};
use peregrine_protocol::ids::{Correlation, Nanos};
use peregrine_protocol::limits::FRAME_HEAD_LEN;
use peregrine_protocol::message::ErrorAnswer;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

/// Why the handling of received bytes stopped.
enum Stop {
    /// No whole frame is left.
    Partial,
    /// The frame at the front cannot be handled now.
    Wait(Wait),
    /// The turn is over.
    Turn,
    /// The connection is full of answers.
    Full,
    /// The connection ends.
    End,
}

/// One connection's reader.
pub struct Reader {
    executor: Rc<Executor>,
    connection: Rc<Connection>,
    backlog: Backlog,
    received_at: Nanos,
    preamble_seen: bool,
}

impl Reader {
    /// A reader of a fresh connection, or of one that was handed over with bytes that are not handled yet.
    pub fn new(executor: Rc<Executor>, connection: Rc<Connection>, preamble_seen: bool, unread: &[u8]) -> Self {
        let mut backlog = Backlog::default();
        backlog.keep(unread, connection.id.0, &executor.receive);
        Reader { executor, connection, backlog, received_at: clock::monotonic(), preamble_seen }
    }

    /// Runs until the connection ends; then the connection is taken off the executor.
    pub async fn run(mut self) {
        let mut stop = self.handle_backlog();
        loop {
            stop = match stop {
                Stop::End => break,
                Stop::Partial if self.executor.is_stopping() => break,
                Stop::Partial => match poll_fn(|context| self.poll_receive(context)).await {
                    Ok(stop) => stop,
                    Err(_) => break,
                },
                Stop::Turn => {
                    turn().await;
                    self.handle_backlog()
                }
                Stop::Full => {
                    self.connection.reading.wait().await;
                    self.handle_backlog()
                }
                Stop::Wait(wait) => {
                    if !self.wait(wait).await {
                        break;
                    }
                    self.handle_backlog()
                }
            };
            if self.connection.is_closing() {
                break;
            }
        }
        self.backlog.release(self.connection.id.0, &self.executor.receive);
        self.connection.frame_since.set(None);
        self.executor.reader_ended(&self.connection);
    }

    /// Waits for what the frame at the front needs, and handles it where waiting does. False ends the connection.
    async fn wait(&mut self, mut wait: Wait) -> bool {
        let frame = match wait {
            Wait::HandOver(shard) => {
                self.executor.hand_over(&self.connection, shard, self.backlog.bytes());
                return false;
            }
            Wait::End => return false,
            _ => match frame::decode(self.backlog.bytes(), self.executor.facts.frame_max) {
                Ok(Received::Frame(frame)) => frame,
                _ => unreachable!("a frame that waits is whole"),
            },
        };
        let asker = Asker::Here(self.connection.id);
        let len = frame.len();
        self.connection.asked_if(requests::is_answered(frame.head.kind));
        loop {
            match router::wait(&self.executor, asker, &frame, self.received_at, wait).await {
                Waited::Handled => break,
                Waited::Again => {
                    self.connection.unasked_if(requests::is_answered(frame.head.kind));
                    return true;
                }
                Waited::Then(Wait::End) => return false,
                Waited::Then(next) => wait = next,
            }
        }
        self.backlog.handled(len, self.connection.id.0, &self.executor.receive);
        true
    }

    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Stop>> {
        if self.connection.is_full() {
            return Poll::Ready(Ok(Stop::Full));
        }
        if self.backlog.bytes().len() > RECEIVE_FLOOR {
            return self.poll_receive_large(context);
        }
        let executor = self.executor.clone();
        let mut scratch = executor.scratch.borrow_mut();
        let kept = self.backlog.bytes().len();
        let until = kept + executor.receive.scratch();
        let count = {
            match self.connection.socket.poll_read(context, &mut scratch[kept..until])? {
                Poll::Ready(count) => count,
                Poll::Pending => return Poll::Pending,
            }
        };
        if count == 0 {
            return Poll::Ready(Ok(Stop::End));
        }
        self.note_receipt();
        let id = self.connection.id.0;
        scratch[..kept].copy_from_slice(self.backlog.bytes());
        self.backlog.handled(kept, id, &executor.receive);
        let bytes = &scratch[..kept + count];
        let (handled, stop) = self.handle(bytes);
        self.backlog.keep(&bytes[handled..], id, &executor.receive);
        self.note_partial(&stop);
        Poll::Ready(Ok(stop))
    }

    /// Receives the rest of a large frame into a buffer of its own.
    fn poll_receive_large(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Stop>> {
        let wanted = match self.backlog.bytes().first_chunk::<FRAME_HEAD_LEN>() {
            Some(head) => match FrameHead::decode(head, self.executor.facts.frame_max) {
                Ok(head) => head.frame_len(),
                Err(_) => return Poll::Ready(Ok(Stop::End)),
            },
            None => FRAME_HEAD_LEN,
        };
        let room = self.backlog.room(wanted, self.connection.id.0, &self.executor.receive);
        self.connection.waits_for_memory.set(room.is_none());
        let Some(room) = room else {
            self.executor.receive.wait(context.waker());
            return Poll::Pending;
        };
        let count = match self.connection.socket.poll_read(context, room)? {
            Poll::Ready(count) => count,
            Poll::Pending => return Poll::Pending,
        };
        if count == 0 {
            return Poll::Ready(Ok(Stop::End));
        }
        self.note_receipt();
        self.backlog.received(count);
        Poll::Ready(Ok(self.handle_backlog()))
    }

    fn note_receipt(&mut self) {
        self.received_at = clock::monotonic();
        self.connection.last_used.set(self.received_at);
    }

    /// A partial frame is to make progress; what waits for us is not the client's fault.
    fn note_partial(&self, stop: &Stop) {
        let partial = matches!(stop, Stop::Partial) && !self.backlog.is_empty();
        self.connection.frame_since.set(partial.then_some(self.received_at));
        self.connection.frame_bytes.set(self.backlog.bytes().len());
    }

    fn handle_backlog(&mut self) -> Stop {
        // The backlog is lent out for the call: handling may look at everything else of the reader.
        let mut backlog = std::mem::take(&mut self.backlog);
        let (handled, stop) = self.handle(backlog.bytes());
        backlog.handled(handled, self.connection.id.0, &self.executor.receive);
        self.backlog = backlog;
        self.note_partial(&stop);
        stop
    }

    /// Handles whole frames at the front of `bytes`: how many bytes they took, and why it stopped.
    fn handle(&mut self, bytes: &[u8]) -> (usize, Stop) {
        let mut at = 0;
        if !self.preamble_seen {
            match greeting::preamble(&self.connection, bytes) {
                Greeting::Partial => return (0, Stop::Partial),
                Greeting::Refused => {
                    self.connection.doom();
                    return (0, Stop::End);
                }
                Greeting::Taken(len) => {
                    at = len;
                    self.preamble_seen = true;
                }
            }
        }
        for _ in 0..FRAMES_PER_TURN {
            if at >= BYTES_PER_TURN {
                return (at, Stop::Turn);
            }
            if self.connection.is_full() {
                return (at, Stop::Full);
            }
            let frame = match frame::decode(&bytes[at..], self.executor.facts.frame_max) {
                Ok(Received::Frame(frame)) => frame,
                Ok(Received::Missing(_)) => return (at, Stop::Partial),
                Err(error) => {
                    tracing::debug!(%error, "a connection sent what is no frame; it is closed");
                    let answer = ErrorAnswer::new(error.code());
                    self.connection.send(|out| answer.encode(Correlation(0), out));
                    self.connection.doom();
                    return (at, Stop::End);
                }
            };
            let answered = requests::is_answered(frame.head.kind);
            self.connection.asked_if(answered);
            let routed = if self.connection.greeted.get() {
                router::route(&self.executor, Asker::Here(self.connection.id), &frame, self.received_at)
            } else {
                greeting::hello(&self.executor, &self.connection, &frame)
            };
            match routed {
                Ok(()) => at += frame.len(),
                Err(Wait::End) => {
                    self.connection.doom();
                    return (at, Stop::End);
                }
                Err(wait) => {
                    self.connection.unasked_if(answered);
                    return (at, Stop::Wait(wait));
                }
            }
        }
        if at == bytes.len() { (at, Stop::Partial) } else { (at, Stop::Turn) }
    }
}
