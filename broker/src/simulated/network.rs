//! The simulated network: connections whose bytes arrive late, in pieces of any size, and which are cut.
//!
//! As on TCP, what arrives is a prefix of what was sent, in order. A connection that is cut loses what was on its way, in both
//! directions, and both ends find out; one whose process ended delivers what it had sent, and then ends.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::collections::btree_map::{BTreeMap, OccupiedEntry};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::pipe::Pipe;
use super::scheduler::Scheduler;
use crate::log::disk::simulated::{Machine, Random};

/// How the network behaves: delays in nanoseconds of simulated time, one in so many, 0 = never.
#[derive(Clone, Copy, Debug)]
pub struct NetworkConditions {
    pub delay_min: u64,
    pub delay_max: u64,
    /// Of the pieces that arrive, one in so many finds its connection cut.
    pub cut_one_in: u64,
    /// A piece has at most so many bytes.
    pub piece_max: usize,
    /// Bytes of one direction that were sent and not taken.
    pub window: usize,
}

impl Default for NetworkConditions {
    fn default() -> Self {
        Self { delay_min: 5_000, delay_max: 200_000, cut_one_in: 0, piece_max: 16_384, window: 65_536 }
    }
}

/// What a connection is to its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireState {
    Connecting,
    Open,
    /// It was refused, cut or ended: no more bytes come than [`Wire::receive`] still gives.
    Ended,
}

#[derive(Debug)]
enum Arrival {
    Connects,
    ToBroker(Vec<u8>),
    ToClient(Vec<u8>),
    BrokerEnds,
    ClientEnds,
}

#[derive(Debug)]
struct Connection {
    state: WireState,
    to_broker: Pipe,
    to_client: Pipe,
    was_cut: bool,
    /// Ends that the broker holds: two while a connection is handed over.
    broker_ends: usize,
    has_client: bool,
}

#[derive(Debug)]
struct State {
    conditions: NetworkConditions,
    random: Random,
    next_connection: u64,
    connections: BTreeMap<u64, Connection>,
    next_arrival: u64,
    arrivals: BTreeMap<(u64, u64), (u64, Arrival)>,
    is_listening: bool,
    backlog: VecDeque<u64>,
    acceptor: Option<Waker>,
    cuts: u64,
    news: u64,
}

/// A handle on the network; clones share it.
#[derive(Clone)]
pub struct Network {
    machine: Machine,
    state: Rc<RefCell<State>>,
}

impl Network {
    pub fn new(machine: &Machine, conditions: NetworkConditions) -> Self {
        let state = State {
            conditions,
            random: machine.fork_random(),
            next_connection: 0,
            connections: BTreeMap::new(),
            next_arrival: 0,
            arrivals: BTreeMap::new(),
            is_listening: false,
            backlog: VecDeque::new(),
            acceptor: None,
            cuts: 0,
            news: 0,
        };
        Self { machine: machine.clone(), state: Rc::new(RefCell::new(state)) }
    }

    pub fn set_conditions(&self, conditions: NetworkConditions) {
        self.state.borrow_mut().conditions = conditions;
    }

    /// Connections that were cut so far.
    pub fn cuts(&self) -> u64 {
        self.state.borrow().cuts
    }

    /// Changes whenever a client may have something to receive, or room to send.
    pub fn news(&self) -> u64 {
        self.state.borrow().news
    }

    /// A client connects.
    pub fn connect(&self) -> Wire {
        let mut state = self.state.borrow_mut();
        let id = state.next_connection;
        state.next_connection += 1;
        let connection = Connection {
            state: WireState::Connecting,
            to_broker: Pipe::default(),
            to_client: Pipe::default(),
            was_cut: false,
            broker_ends: 0,
            has_client: true,
        };
        state.connections.insert(id, connection);
        state.send(self.machine.now(), id, Arrival::Connects);
        drop(state);
        Wire { network: self.clone(), id }
    }

    // The broker's process.

    pub(super) fn listen(&self) {
        self.state.borrow_mut().is_listening = true;
    }

    /// The next connection.
    pub async fn accept(&self) -> Socket {
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            let Some(id) = state.backlog.pop_front() else {
                state.acceptor = Some(context.waker().clone());
                return Poll::Pending;
            };
            drop(state);
            Poll::Ready(self.socket(id))
        })
        .await
    }

    /// A broker's end of a connection.
    fn socket(&self, id: u64) -> Socket {
        if let Some(connection) = self.state.borrow_mut().connections.get_mut(&id) {
            connection.broker_ends += 1;
        }
        Socket { network: self.clone(), id }
    }

    /// The process is gone: its sockets end, and nobody listens.
    pub(super) fn process_ended(&self) {
        let now = self.machine.now();
        let mut state = self.state.borrow_mut();
        state.is_listening = false;
        state.acceptor = None;
        state.backlog.clear();
        // Who is still connecting finds whoever listens then.
        let known = state.connections.iter().filter(|(_, connection)| connection.state != WireState::Connecting);
        let open: Vec<u64> = known.map(|(id, _)| *id).collect();
        for id in open {
            state.broker_closes(now, id, true);
        }
    }

    // Time.

    pub(super) fn next_due(&self) -> Option<u64> {
        self.state.borrow().arrivals.first_key_value().map(|(&(due, _), _)| due)
    }

    /// Delivers the first that is due.
    pub(super) fn deliver(&self) {
        let now = self.machine.now();
        let mut state = self.state.borrow_mut();
        let due = state.arrivals.first_entry().filter(|first| first.key().0 <= now);
        let Some((id, arrival)) = due.map(OccupiedEntry::remove) else { return };
        let what = match &arrival {
            Arrival::Connects => ("connects", 0),
            Arrival::ToBroker(bytes) => ("to the broker", bytes.len()),
            Arrival::ToClient(bytes) => ("to the client", bytes.len()),
            Arrival::BrokerEnds => ("the broker ends", 0),
            Arrival::ClientEnds => ("the client ends", 0),
        };
        self.machine.note(&("network", id, what));
        state.arrive(id, arrival);
    }
}

impl State {
    fn send(&mut self, now: u64, id: u64, arrival: Arrival) {
        let delay = self.random.between(self.conditions.delay_min, self.conditions.delay_max);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let pipe = match &arrival {
            Arrival::Connects | Arrival::ToBroker(_) | Arrival::ClientEnds => &mut connection.to_broker,
            Arrival::ToClient(_) | Arrival::BrokerEnds => &mut connection.to_client,
        };
        let due = (now + delay).max(pipe.last_due);
        pipe.last_due = due;
        let number = self.next_arrival;
        self.next_arrival += 1;
        self.arrivals.insert((due, number), (id, arrival));
    }

    /// Sends bytes in pieces of any size.
    fn send_bytes(&mut self, now: u64, id: u64, bytes: &[u8], wrap: impl Fn(Vec<u8>) -> Arrival) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let most = rest.len().min(self.conditions.piece_max.max(1));
            let count = if self.random.coin() { most } else { self.random.between(1, most as u64) as usize };
            let (piece, behind) = rest.split_at(count);
            self.send(now, id, wrap(piece.to_vec()));
            rest = behind;
        }
    }

    fn arrive(&mut self, id: u64, arrival: Arrival) {
        self.news += u64::from(!matches!(arrival, Arrival::ToBroker(_) | Arrival::ClientEnds));
        let is_piece = matches!(arrival, Arrival::ToBroker(_) | Arrival::ToClient(_));
        if is_piece && self.random.one_in(self.conditions.cut_one_in) {
            self.cut(id);
            return;
        }
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match arrival {
            Arrival::Connects if self.is_listening => {
                connection.state = WireState::Open;
                self.backlog.push_back(id);
                if let Some(waker) = self.acceptor.take() {
                    waker.wake();
                }
            }
            Arrival::Connects => connection.state = WireState::Ended,
            Arrival::ToBroker(bytes) => connection.to_broker.arrive(&bytes),
            Arrival::ToClient(bytes) => connection.to_client.arrive(&bytes),
            Arrival::ClientEnds => connection.to_broker.end(),
            Arrival::BrokerEnds => {
                connection.to_client.end();
                connection.state = WireState::Ended;
            }
        }
    }

    /// What was on its way is lost, and both ends find out.
    fn cut(&mut self, id: u64) {
        self.cuts += 1;
        self.news += 1;
        self.arrivals.retain(|_, (of, _)| *of != id);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.was_cut = true;
        connection.state = WireState::Ended;
        for pipe in [&mut connection.to_broker, &mut connection.to_client] {
            pipe.on_the_way = 0;
            pipe.end();
            pipe.wake_sender();
        }
    }

    /// The broker's side sends no more; and, where its socket is `closed`, takes no more.
    fn broker_closes(&mut self, now: u64, id: u64, closed: bool) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if closed {
            connection.to_broker.is_deaf = true;
        }
        if !std::mem::replace(&mut connection.to_client.is_finished, true) {
            self.send(now, id, Arrival::BrokerEnds);
        }
    }

    fn forget_unused(&mut self, id: u64) {
        let unused = self.connections.get(&id).is_some_and(|one| !one.has_client && one.broker_ends == 0);
        if unused && !self.backlog.contains(&id) {
            self.connections.remove(&id);
        }
    }
}

/// The broker's end of a connection.
pub struct Socket {
    network: Network,
    id: u64,
}

impl Socket {
    /// Another end of the connection, for the executor that it is handed to.
    pub fn hand_over(&self) -> HandedSocket {
        self.with((), |connection| connection.broker_ends += 1);
        HandedSocket { id: Some(self.id) }
    }

    fn with<T>(&self, gone: T, look: impl FnOnce(&mut Connection) -> T) -> T {
        self.network.state.borrow_mut().connections.get_mut(&self.id).map_or(gone, look)
    }

    /// Zero bytes are the end.
    pub fn poll_read(&self, context: &Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = self.poll_arrived(context, into);
        self.network.state.borrow_mut().news += u64::from(read.is_ready());
        read
    }

    fn poll_arrived(&self, context: &Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        self.with(Poll::Ready(Ok(0)), |connection| {
            if connection.was_cut {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let pipe = &mut connection.to_broker;
            match pipe.take(into) {
                0 if pipe.end_arrived || pipe.is_deaf => Poll::Ready(Ok(0)),
                0 => {
                    pipe.receiver = Some(context.waker().clone());
                    Poll::Pending
                }
                count => Poll::Ready(Ok(count)),
            }
        })
    }

    /// How many bytes it takes now.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let now = self.network.machine.now();
        let mut state = self.network.state.borrow_mut();
        let window = state.conditions.window;
        let Some(connection) = state.connections.get_mut(&self.id) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        if connection.was_cut || connection.to_client.is_finished {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = connection.to_client.room(window).min(bytes.len());
        connection.to_client.on_the_way += count;
        state.send_bytes(now, self.id, &bytes[..count], Arrival::ToClient);
        Ok(count)
    }

    pub fn poll_write(&self, context: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.try_write(bytes) {
            Ok(0) if !bytes.is_empty() => {
                self.with((), |connection| connection.to_client.sender = Some(context.waker().clone()));
                Poll::Pending
            }
            written => Poll::Ready(written),
        }
    }

    /// Ends both directions.
    pub fn shut_down(&self) {
        let now = self.network.machine.now();
        self.shut_reading();
        let mut state = self.network.state.borrow_mut();
        state.broker_closes(now, self.id, true);
        if let Some(connection) = state.connections.get_mut(&self.id) {
            connection.to_client.wake_sender();
        }
    }

    /// Whoever reads finds the end, behind what has arrived.
    pub fn shut_reading(&self) {
        self.with((), |connection| {
            connection.to_broker.is_deaf = true;
            connection.to_broker.wake_receiver();
        });
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let now = self.network.machine.now();
        // A crash may unwind out of the network's own code, which never happens in its middle.
        let Ok(mut state) = self.network.state.try_borrow_mut() else { return };
        let Some(connection) = state.connections.get_mut(&self.id) else { return };
        connection.broker_ends -= 1;
        if connection.broker_ends == 0 {
            state.broker_closes(now, self.id, true);
        }
        state.forget_unused(self.id);
    }
}

/// A broker's end on its way from one executor to another.
#[derive(Debug)]
pub struct HandedSocket {
    id: Option<u64>,
}

impl HandedSocket {
    pub fn open(mut self) -> Socket {
        match self.take() {
            Some(socket) => socket,
            None => unreachable!("executors of a simulation run on its schedulers"),
        }
    }

    fn take(&mut self) -> Option<Socket> {
        let id = self.id.take()?;
        Scheduler::with_here(|scheduler| Socket { network: scheduler.network().clone(), id })
    }
}

impl Drop for HandedSocket {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// The client's end. Dropped, it resets the connection.
pub struct Wire {
    network: Network,
    id: u64,
}

impl Wire {
    pub fn state(&self) -> WireState {
        self.network.state.borrow().connections.get(&self.id).map_or(WireState::Ended, |connection| connection.state)
    }

    /// How many bytes were taken.
    pub fn send(&self, bytes: &[u8]) -> usize {
        let now = self.network.machine.now();
        let mut state = self.network.state.borrow_mut();
        let window = state.conditions.window;
        let Some(connection) = state.connections.get_mut(&self.id) else { return 0 };
        if connection.state != WireState::Open || connection.to_broker.is_finished {
            return 0;
        }
        let count = connection.to_broker.room(window).min(bytes.len());
        connection.to_broker.on_the_way += count;
        state.send_bytes(now, self.id, &bytes[..count], Arrival::ToBroker);
        count
    }

    /// Appends what has arrived.
    pub fn receive(&self, into: &mut Vec<u8>) -> usize {
        let mut state = self.network.state.borrow_mut();
        state.connections.get_mut(&self.id).map_or(0, |connection| connection.to_client.take_all(into))
    }

    /// Whether the network ended it, and not the broker.
    pub fn was_cut(&self) -> bool {
        self.network.state.borrow().connections.get(&self.id).is_some_and(|connection| connection.was_cut)
    }

    /// Bytes that have arrived and were not received.
    pub fn has_arrived(&self) -> usize {
        let state = self.network.state.borrow();
        state.connections.get(&self.id).map_or(0, |connection| connection.to_client.has_arrived())
    }

    /// Ends the sending direction, behind what was sent.
    pub fn finish(&self) {
        let now = self.network.machine.now();
        let mut state = self.network.state.borrow_mut();
        let Some(connection) = state.connections.get_mut(&self.id) else { return };
        if !std::mem::replace(&mut connection.to_broker.is_finished, true) {
            state.send(now, self.id, Arrival::ClientEnds);
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let mut state = self.network.state.borrow_mut();
        let Some(connection) = state.connections.get_mut(&self.id) else { return };
        connection.has_client = false;
        let ended = connection.state == WireState::Ended;
        if ended {
            connection.to_broker.end();
        } else {
            let cuts = state.cuts;
            state.cut(self.id);
            state.cuts = cuts;
        }
        state.forget_unused(self.id);
    }
}
