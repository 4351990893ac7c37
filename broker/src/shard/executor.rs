//! What all tasks of one executor share: its shards, its peers, its ends of the mesh, and its budgets.

use crate::control::settings::{GroupTimes, Idle};
use crate::engine::{HOME, ReaderOwner, Refusal};
use crate::limits::{COLD_BUDGET, COLD_READ, CONNECTIONS_PER_EXECUTOR, RECEIVE_FLOOR, RECEIVE_SCRATCH};
use crate::shard::answers;
use crate::shard::connection::outbox::{LogBytes, Outbox};
use crate::shard::connection::outlet::{ColdBlock, Held, Outlet};
use crate::shard::connection::reader::Reader;
use crate::shard::connection::receive::ReceiveBudget;
use crate::shard::connection::socket::Socket;
use crate::shard::connection::{Connection, writer};
use crate::shard::credit::Credit;
use crate::shard::gate::Gate;
use crate::shard::mesh::Mesh;
use crate::shard::mesh_messages::{HandOver, Request, Return};
use crate::shard::peers::{Peer, PeerId, Peers};
use crate::shard::router::Asker;
use crate::shard::runtime::{self, Background};
use crate::shard::seams::Seams;
use crate::shard::state::Shard;
use crate::shard::tickets::Tickets;
use peregrine_protocol::entry::DirectoryId;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Correlation, Nanos, ShardId, SubscriptionId};
use peregrine_protocol::message::ErrorAnswer;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;

/// How shards lie on executors: shard k on executor k mod executors.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub shards: u16,
    pub executors: usize,
}

impl Layout {
    pub fn executor_of(self, shard: ShardId) -> usize {
        usize::from(shard.0) % self.executors
    }

    pub fn shards_of(self, executor: usize) -> impl Iterator<Item = ShardId> {
        (0..self.shards).map(ShardId).filter(move |&shard| self.executor_of(shard) == executor)
    }
}

/// What connections are told of the broker, and `peregrine stats` of the executor.
#[derive(Clone, Debug)]
pub struct Facts {
    pub directory: DirectoryId,
    pub data: PathBuf,
    pub idle: Idle,
    /// The core that this executor is pinned to.
    pub core: usize,
    pub message_max: u32,
    pub frame_max: u32,
    pub groups: GroupTimes,
}

/// Counts of one executor.
#[derive(Debug, Default)]
pub struct Counters {
    pub accepted: Cell<u64>,
    pub handed_over: Cell<u64>,
    pub forwarded: Cell<u64>,
    /// Batches for shards of other executors that had no room in time.
    pub busy_elsewhere: Cell<u64>,
    pub closed_slow: Cell<u64>,
    pub refused_connections: Cell<u64>,
}

/// What a read of a block came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColdRead {
    Done,
    /// The disk does not give the bytes, and the log says why. The outlet knows, and ends who wants them.
    Unreadable,
    /// The shard is stopped.
    Stopped,
}

/// One executor.
pub struct Executor {
    pub index: usize,
    pub layout: Layout,
    pub facts: Facts,
    pub peers: Peers,
    pub receive: ReceiveBudget,
    /// Where sockets without a large partial frame are read into.
    pub scratch: RefCell<Vec<u8>>,
    pub background: Background,
    pub counters: Counters,
    pub tickets: Tickets,
    shards: RefCell<Vec<Option<Rc<Shard>>>>,
    mesh: OnceCell<Mesh<Request, Return>>,
    /// For requests to each shard of another executor.
    credits: Vec<Credit>,
    /// For batches to each of them.
    gates: Vec<Gate>,
    /// Proxies of other executors' connections.
    pub proxies: RefCell<HashMap<(u16, PeerId), PeerId>>,
    /// Frames from other executors that are not handled yet.
    pub forwarded_here: Cell<usize>,
    /// Bytes of the blocks that outlets hold.
    cold_bytes: Cell<usize>,
    stopping: Cell<bool>,
    pub seams: Seams,
}

impl Executor {
    pub fn new(index: usize, layout: Layout, facts: Facts, background: Background, seams: Seams) -> Rc<Self> {
        Rc::new(Executor {
            index,
            layout,
            facts,
            peers: Peers::default(),
            receive: ReceiveBudget::default(),
            scratch: RefCell::new(vec![0; RECEIVE_SCRATCH + RECEIVE_FLOOR]),
            background,
            counters: Counters::default(),
            tickets: Tickets::default(),
            shards: RefCell::new((0..layout.shards).map(|_| None).collect()),
            mesh: OnceCell::new(),
            credits: (0..layout.shards).map(|_| Credit::default()).collect(),
            gates: (0..layout.shards).map(|_| Gate::default()).collect(),
            proxies: RefCell::default(),
            forwarded_here: Cell::new(0),
            cold_bytes: Cell::new(0),
            stopping: Cell::new(false),
            seams,
        })
    }

    // What lives here.

    pub fn install_mesh(&self, mesh: Mesh<Request, Return>) {
        assert!(self.mesh.set(mesh).is_ok(), "the mesh is connected once");
    }

    pub fn mesh(&self) -> &Mesh<Request, Return> {
        let Some(mesh) = self.mesh.get() else { unreachable!("the mesh is connected before anything is served") };
        mesh
    }

    pub fn install_shard(&self, shard: Rc<Shard>) {
        let id = shard.id;
        self.shards.borrow_mut()[usize::from(id.0)] = Some(shard);
    }

    /// The shard, if it lives on this executor.
    pub fn shard(&self, id: ShardId) -> Option<Rc<Shard>> {
        self.shards.borrow().get(usize::from(id.0)).and_then(Clone::clone)
    }

    /// The shards that live here.
    pub fn local_shards(&self) -> Vec<Rc<Shard>> {
        self.shards.borrow().iter().flatten().cloned().collect()
    }

    pub fn credit(&self, shard: ShardId) -> &Credit {
        &self.credits[usize::from(shard.0)]
    }

    pub fn gate(&self, shard: ShardId) -> &Gate {
        &self.gates[usize::from(shard.0)]
    }

    /// Requests to other executors that are not answered yet.
    pub fn credit_used(&self) -> usize {
        self.credits.iter().map(Credit::used).sum()
    }

    /// Bytes of large frames that are under way to other executors, or came back and wait here.
    pub fn credit_bytes_used(&self) -> usize {
        self.credits.iter().map(Credit::bytes_used).sum()
    }

    /// Connections, and batches that came back, that wait for credit.
    pub fn credit_waiting(&self) -> usize {
        self.credits.iter().map(Credit::waiting).sum()
    }

    /// Connections whose batches wait in their sockets until those that came back are sent again.
    pub fn gates_waiting(&self) -> usize {
        self.gates.iter().map(Gate::waiting_for_it).sum()
    }

    /// Batches that came back from shards without room, and wait here.
    pub fn returned(&self) -> usize {
        self.gates.iter().map(Gate::waiting).sum()
    }

    /// A batch for a shard of another executor was answered `Busy`.
    pub fn count_busy_elsewhere(&self) {
        self.counters.busy_elsewhere.set(self.counters.busy_elsewhere.get() + 1);
    }

    /// The shard whose copy of the catalogue serves the asker.
    pub fn shard_of_asker(&self, asker: Asker) -> ShardId {
        match asker {
            Asker::Here(peer) => self.peers.connection(peer).map_or(HOME, |connection| connection.shard.get()),
            Asker::There { shard, .. } => shard,
        }
    }

    // Connections.

    /// Serves a connection that was accepted here.
    pub fn serve(self: &Rc<Self>, stream: Socket) {
        if self.is_full() {
            return;
        }
        self.counters.accepted.set(self.counters.accepted.get() + 1);
        self.start(stream, crate::shard::clock::monotonic(), false, &[]);
    }

    /// Serves a connection that another executor hands over.
    pub fn take_over(self: &Rc<Self>, handed: HandOver) {
        if self.is_full() {
            return;
        }
        self.start(handed.socket.open(), handed.accepted_at, true, &handed.unread);
    }

    /// Whether one more connection is one too many; it is counted, and closed by whoever drops it.
    fn is_full(&self) -> bool {
        let full = self.peers.len() >= CONNECTIONS_PER_EXECUTOR || self.is_stopping();
        self.counters.refused_connections.set(self.counters.refused_connections.get() + u64::from(full));
        full
    }

    fn start(self: &Rc<Self>, stream: Socket, accepted_at: Nanos, preamble_seen: bool, unread: &[u8]) {
        let mut connection = None;
        self.peers.add(|id| {
            let new = Rc::new(Connection::new(id, stream, accepted_at));
            connection = Some(new.clone());
            Peer::Connection(new)
        });
        let Some(connection) = connection else { unreachable!("it was just made") };
        let reader = Reader::new(self.clone(), connection.clone(), preamble_seen, unread);
        runtime::spawn(reader.run()).detach();
        runtime::spawn(writer::run(self.clone(), connection)).detach();
    }

    /// Hands a connection that has said hello to the executor of `shard`.
    pub fn hand_over(&self, connection: &Connection, shard: ShardId, unread: &[u8]) {
        match connection.duplicate_socket() {
            Ok(socket) => {
                self.counters.handed_over.set(self.counters.handed_over.get() + 1);
                let handed = HandOver { socket, accepted_at: connection.accepted_at, unread: unread.to_vec() };
                connection.hand_over();
                self.mesh().request(self.layout.executor_of(shard), Request::HandOver(Box::new(handed)));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be handed to its shard's executor; it is closed");
            }
        }
    }

    /// The connection's reader is gone: nothing more is asked, and nothing is delivered to it.
    pub fn reader_ended(&self, connection: &Connection) {
        connection.read_ended.set(true);
        // What it fetched is still answered: a client may end its sending side first.
        connection.outlet.held.borrow_mut().retain(Held::is_answer);
        for shard in self.local_shards() {
            shard.detach(connection.id);
        }
        connection.outlet.news.raise();
    }

    /// The connection's writer is gone too: nobody knows it any more.
    pub fn writer_ended(&self, connection: &Connection) {
        self.peers.remove(connection.id);
        self.drop_cold(&connection.outlet);
        for shard in self.local_shards() {
            shard.detach(connection.id);
        }
        for (gate, credit) in self.gates.iter().zip(&self.credits) {
            gate.forget(connection.id, credit);
        }
        for executor in connection.proxied_on() {
            self.mesh().request(executor, Request::Gone { connection: connection.id });
        }
    }

    /// Requests of this connection go to a shard of another executor, which will have to hear of its end.
    pub fn note_proxied(&self, connection: &Connection, shard: ShardId) {
        connection.note_proxied(self.layout.executor_of(shard));
    }

    // Answers.

    /// Answers a request. The asker may be gone; then nobody misses it.
    pub fn answer(&self, asker: Asker, write: impl FnOnce(&mut Vec<u8>)) {
        match asker {
            Asker::Here(peer) => {
                if let Some(connection) = self.peers.connection(peer) {
                    connection.send(write);
                    connection.answered();
                }
            }
            Asker::There { executor, connection, shard } => {
                let mut frame = Vec::with_capacity(128);
                write(&mut frame);
                let frame = frame.into_boxed_slice();
                self.mesh().give_back(usize::from(executor), Return::Answer { connection, shard, frame });
            }
        }
    }

    /// A request that came over the mesh needs no credit any more; its answer, if it has one, goes by [`Self::answer_late`].
    pub fn give_credit_back(&self, asker: Asker) {
        if let Asker::There { executor, connection, shard } = asker {
            let done = Return::Answer { connection, shard, frame: Box::default() };
            self.mesh().give_back(usize::from(executor), done);
        }
    }

    /// Answers a request of another executor's connection, whose credit has gone back. The answer's bytes count against the
    /// connection's window.
    pub fn answer_late(&self, executor: u16, connection: PeerId, frame: Vec<u8>) {
        let frame = frame.into_boxed_slice();
        self.mesh().give_back(usize::from(executor), Return::LateAnswer { connection, frame });
    }

    /// Sends what is no answer.
    pub fn push(&self, asker: Asker, write: impl FnOnce(&mut Vec<u8>)) {
        match asker {
            Asker::Here(peer) => {
                if let Some(connection) = self.peers.connection(peer) {
                    connection.send(write);
                }
            }
            Asker::There { executor, connection, .. } => {
                let mut frame = Vec::with_capacity(128);
                write(&mut frame);
                self.push_there(executor, connection, frame, false);
            }
        }
    }

    /// Sends what is no answer to a peer, which may be gone.
    pub fn push_to(&self, peer: PeerId, write: impl FnOnce(&mut Vec<u8>)) {
        match self.peers.get(peer) {
            Some(Peer::Connection(connection)) => connection.send(write),
            Some(Peer::Proxy(proxy)) => {
                let mut frame = Vec::with_capacity(128);
                write(&mut frame);
                self.push_there(proxy.executor, proxy.connection, frame, false);
            }
            None => {}
        }
    }

    /// Pushes a frame to a connection of another executor.
    pub fn push_there(&self, executor: u16, connection: PeerId, frame: Vec<u8>, counts: bool) {
        let frame = frame.into_boxed_slice();
        self.mesh().give_back(usize::from(executor), Return::Push { connection, frame, counts });
    }

    pub fn refuse(&self, asker: Asker, correlation: Correlation, code: ErrorCode) {
        self.refuse_with(asker, correlation, &ErrorAnswer::new(code));
    }

    pub fn refuse_with(&self, asker: Asker, correlation: Correlation, error: &ErrorAnswer<'_>) {
        self.answer(asker, |out| error.encode(correlation, out));
    }

    /// Answers what the engine refused.
    pub fn refuse_refused(&self, asker: Asker, correlation: Correlation, refusal: &Refusal) {
        self.answer(asker, |out| answers::refusal(refusal, correlation, out));
    }

    // Deliveries.

    /// Subscriptions of a peer at the shards that live here.
    pub fn subscriptions_of(&self, peer: PeerId) -> usize {
        let shards = self.shards.borrow();
        shards.iter().flatten().map(|shard| shard.core.borrow().engine.subscriptions_of(ReaderOwner(peer.0))).sum()
    }

    /// A batch is on its way to its reader, which may be given the next one.
    pub fn delivered(self: &Rc<Self>, shard: ShardId, subscription: SubscriptionId) {
        if let Some(shard) = self.shard(shard) {
            shard.delivered(self, subscription);
        }
    }

    /// Records the times of what was sent.
    pub fn record(&self, outbox: &mut Outbox, now: Nanos) {
        while let Some(mark) = outbox.next_mark() {
            if let Some(shard) = self.shard(mark.shard) {
                shard.record(mark.stage, mark.since, now);
            }
        }
    }

    /// Runs a task in the background queue to its end.
    pub fn spawn_background(&self, work: impl Future<Output = ()> + 'static) {
        self.background.spawn(work).detach();
    }

    /// Reads a block of the log for an outlet, in the background queue: at least `need` bytes from `position`.
    pub async fn read_cold(&self, outlet: &Outlet, missing: LogBytes) -> ColdRead {
        let LogBytes { shard: id, position, len: need } = missing;
        let Some(shard) = self.shard(id) else { return ColdRead::Stopped };
        self.drop_cold(outlet);
        // A block is at least COLD_READ bytes, or one large batch that is fetched whole.
        let bytes = need.max(COLD_READ);
        while self.cold_bytes.get() > 0 && self.cold_bytes.get() + bytes > COLD_BUDGET {
            // Those who hold blocks give them back as their sockets take them; a timer is enough for who is far behind.
            runtime::sleep(std::time::Duration::from_millis(1)).await;
        }
        self.cold_bytes.set(self.cold_bytes.get() + bytes);
        let read = shard.read_disk(position, need, COLD_READ);
        match self.background.spawn(read).await {
            Ok(read) => {
                *outlet.cold.borrow_mut() = Some(ColdBlock { shard: id, start: position, bytes: read, charged: bytes });
                ColdRead::Done
            }
            Err(error) => {
                self.cold_bytes.set(self.cold_bytes.get() - bytes);
                if shard.closed.get() {
                    return ColdRead::Stopped;
                }
                if shard.why_gone(position) == ErrorCode::Damaged {
                    tracing::error!(shard = id.0, position = position.0, %error, "a consumer's messages cannot be read");
                    shard.read_failed.set(true);
                }
                *outlet.cold.borrow_mut() = Some(ColdBlock::unreadable(id, position));
                ColdRead::Unreadable
            }
        }
    }

    /// Reads a batch in blocks, to see that the disk gives all of it. The first of them stays with the outlet.
    pub async fn probe_cold(&self, outlet: &Outlet, batch: LogBytes) -> ColdRead {
        for at in (0..batch.len).step_by(COLD_READ).rev() {
            let block = LogBytes { position: batch.position + at as u64, len: COLD_READ.min(batch.len - at), ..batch };
            match self.read_cold(outlet, block).await {
                ColdRead::Done => {}
                ColdRead::Unreadable => {
                    *outlet.cold.borrow_mut() = Some(ColdBlock::unreadable(batch.shard, batch.position));
                    return ColdRead::Unreadable;
                }
                ColdRead::Stopped => return ColdRead::Stopped,
            }
        }
        outlet.probed.set(Some((batch.shard, batch.position)));
        ColdRead::Done
    }

    /// Gives an outlet's block back.
    pub fn drop_cold(&self, outlet: &Outlet) {
        if let Some(block) = outlet.cold.borrow_mut().take() {
            self.cold_bytes.set(self.cold_bytes.get() - block.charged);
        }
    }

    // Stopping.

    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// No request is read any more.
    pub fn stop_reading(&self) {
        self.stopping.set(true);
        for slot in 0..self.peers.slots() {
            if let Some(Peer::Connection(connection)) = self.peers.at(slot) {
                connection.stop_reading();
            }
        }
    }
}
