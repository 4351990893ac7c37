//! A connection: a reader task and a writer task around one socket.
//!
//! The reader handles frames as they come and never waits for an answer; answers, acknowledgements and deliveries collect in
//! the outbox, and the writer, which runs after everybody who was runnable in this turn, sends them with one system call.
//! Neither task is ever cancelled: a connection that is to end has its socket shut down, and both tasks find that out.

pub mod outbox;
pub mod outlet;
pub mod reader;
pub mod receive;
pub mod socket;
pub mod writer;

use crate::engine::HOME;
use crate::limits::OUTSTANDING_PER_CONNECTION;
use crate::shard::event::Event;
use crate::shard::executor::Executor;
use crate::shard::mesh_messages::Request;
use crate::shard::peers::PeerId;
use crate::shard::stages::Stage;
use outbox::Outbox;
use outlet::Outlet;
use peregrine_protocol::ids::{Nanos, ShardId};
use socket::{HandedSocket, Socket};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// A time to be recorded once the bytes that it belongs to are sent.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    pub shard: ShardId,
    pub stage: Stage,
    pub since: Nanos,
}

/// What the tasks of a connection, the shards and the sweeper share of it.
pub struct Connection {
    pub id: PeerId,
    pub outlet: Outlet,
    socket: Socket,
    pub outbox: RefCell<Outbox>,
    /// Requests that are not answered yet.
    outstanding: Cell<usize>,
    /// Raised when the reader may go on: there is room for answers again.
    pub reading: Event,
    closing: Cell<bool>,
    doomed: Cell<bool>,
    /// The reader is gone; the writer ends when all is sent.
    pub read_ended: Cell<bool>,
    pub greeted: Cell<bool>,
    pub accepted_at: Nanos,
    /// Since when a frame has begun and received nothing more.
    pub frame_since: Cell<Option<Nanos>>,
    /// Bytes of the frame that has begun.
    pub frame_bytes: Cell<usize>,
    /// The next bytes of the frame have to wait for memory that other frames hold.
    pub waits_for_memory: Cell<bool>,
    /// Since when the socket has taken nothing of what waits.
    pub stuck_since: Cell<Option<Nanos>>,
    pub last_used: Cell<Nanos>,
    /// The shard that it named, or that was chosen for it.
    pub shard: Cell<ShardId>,
    /// Executors that its requests were forwarded to, and the bytes of their deliveries that wait here.
    proxied: RefCell<Vec<(usize, usize)>>,
}

impl Connection {
    pub fn new(id: PeerId, socket: Socket, accepted_at: Nanos) -> Self {
        Connection {
            id,
            outlet: Outlet::default(),
            socket,
            outbox: RefCell::default(),
            outstanding: Cell::new(0),
            reading: Event::default(),
            closing: Cell::new(false),
            doomed: Cell::new(false),
            read_ended: Cell::new(false),
            greeted: Cell::new(false),
            accepted_at,
            frame_since: Cell::new(None),
            frame_bytes: Cell::new(0),
            waits_for_memory: Cell::new(false),
            stuck_since: Cell::new(None),
            last_used: Cell::new(accepted_at),
            shard: Cell::new(HOME),
            proxied: RefCell::default(),
        }
    }

    /// Appends an answer or a push, and lets the writer know.
    pub fn send(&self, write: impl FnOnce(&mut Vec<u8>)) {
        self.outbox.borrow_mut().push(write);
        self.outlet.news.raise();
    }

    /// A request came; if it is one that is `answered`, an answer is owed.
    pub fn asked_if(&self, answered: bool) {
        self.outstanding.set(self.outstanding.get() + usize::from(answered));
    }

    /// The request could not be handled yet and will come again.
    pub fn unasked_if(&self, answered: bool) {
        self.outstanding.set(self.outstanding.get() - usize::from(answered));
    }

    /// A request was answered.
    pub fn answered(&self) {
        let outstanding = self.outstanding.get();
        assert!(outstanding > 0, "each request is answered once");
        self.outstanding.set(outstanding - 1);
        if outstanding == OUTSTANDING_PER_CONNECTION {
            self.reading.raise();
        }
    }

    pub fn outstanding(&self) -> usize {
        self.outstanding.get()
    }

    /// True while its requests are not to be read: too much is unanswered, or waits for the socket.
    pub fn is_full(&self) -> bool {
        self.outstanding.get() >= OUTSTANDING_PER_CONNECTION || self.outbox.borrow().is_high()
    }

    pub fn mark(&self, mark: Mark) {
        self.outbox.borrow_mut().mark(mark);
    }

    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Ends the connection: nothing more is read or sent. Its tasks end by themselves.
    pub fn close(&self) {
        if !self.closing.replace(true) {
            self.socket.shut_down();
            self.reading.raise();
            self.outlet.news.raise();
        }
    }

    /// Gives back what an idle connection does not need.
    pub fn release_buffers(&self) {
        self.outbox.borrow_mut().release();
        let mut held = self.outlet.held.borrow_mut();
        if held.is_empty() {
            *held = VecDeque::new();
        }
    }

    /// The connection ends with what is in its outbox: no later frame of it can be understood.
    pub fn doom(&self) {
        self.doomed.set(true);
    }

    pub fn is_doomed(&self) -> bool {
        self.doomed.get()
    }

    /// Reading ends; what is owed is still sent.
    pub fn stop_reading(&self) {
        self.socket.shut_reading();
        self.reading.raise();
    }

    /// Its requests go to a shard of that executor.
    pub fn note_proxied(&self, executor: usize) {
        let mut proxied = self.proxied.borrow_mut();
        if !proxied.iter().any(|&(known, _)| known == executor) {
            proxied.push((executor, 0));
        }
    }

    pub fn proxied_on(&self) -> Vec<usize> {
        self.proxied.borrow().iter().map(|&(executor, _)| executor).collect()
    }

    /// A delivery of so many bytes came from another executor, which sends on when it hears that they have room.
    pub fn note_window(&self, executor: usize, bytes: usize) {
        for (_, waiting) in self.proxied.borrow_mut().iter_mut().filter(|(known, _)| *known == executor) {
            *waiting += bytes;
        }
    }

    /// The outbox has room: whoever delivers over the mesh may send on.
    pub fn return_window(&self, executor: &Executor) {
        for (to, waiting) in self.proxied.borrow_mut().iter_mut().filter(|(_, waiting)| *waiting > 0) {
            let bytes = std::mem::take(waiting);
            executor.mesh().request(*to, Request::Window { connection: self.id, bytes });
        }
    }

    /// The socket once more, for the executor that it is handed to.
    pub fn duplicate_socket(&self) -> std::io::Result<HandedSocket> {
        self.socket.duplicate()
    }

    /// The socket lives on elsewhere: ending this connection only closes its own descriptor.
    pub fn hand_over(&self) {
        self.closing.set(true);
        self.reading.raise();
        self.outlet.news.raise();
    }
}
