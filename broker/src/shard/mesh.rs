//! Channels between executors: for each ordered pair one for requests and one for what comes back.
//!
//! ```text
//!   executor a ── requests ──► executor b          each is a lock-free ring of its own, from one thread to one other;
//!   executor a ◄─ returns  ─── executor b          a full one never makes a connection wait
//! ```
//!
//! Forwarded requests are bounded by [`Credit`] per destination shard, which comes back with the answer, and the channels are
//! large enough for all credit: a full one is met only by what has no credit (a hand-off, the end of a connection, news of the
//! catalogue). That waits in a backlog, which one task empties; its bound is the number of connections and of changes.

use crate::limits::{MESH_CHANNEL, MESH_CREDIT_PER_SHARD};
use crate::shard::event::Event;
use glommio::channels::shared_channel::{self, ConnectedReceiver, ConnectedSender, SharedReceiver, SharedSender};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// One executor's ends of all its channels, before they are connected. They may change threads; what is connected may not.
#[derive(Debug)]
pub struct Ends<Q: Send, R: Send> {
    outgoing: Vec<Option<(SharedSender<Q>, SharedSender<R>)>>,
    incoming: Vec<Option<(SharedReceiver<Q>, SharedReceiver<R>)>>,
}

/// The ends for `executors` executors that carry at most `shards_each` shards.
pub fn full<Q: Send, R: Send>(executors: usize, shards_each: usize) -> Vec<Ends<Q, R>> {
    let slots = (shards_each * MESH_CREDIT_PER_SHARD + MESH_CHANNEL).next_power_of_two();
    let none =
        || Ends { outgoing: (0..executors).map(|_| None).collect(), incoming: (0..executors).map(|_| None).collect() };
    let mut all: Vec<Ends<Q, R>> = (0..executors).map(|_| none()).collect();
    for from in 0..executors {
        for to in (0..executors).filter(|&to| to != from) {
            let (request_sender, request_receiver) = shared_channel::new_bounded(slots);
            let (return_sender, return_receiver) = shared_channel::new_bounded(slots);
            all[from].outgoing[to] = Some((request_sender, return_sender));
            all[to].incoming[from] = Some((request_receiver, return_receiver));
        }
    }
    all
}

/// What an executor sends through.
pub struct Mesh<Q: Send + 'static, R: Send + 'static> {
    requests: Vec<Option<Rc<Outgoing<Q>>>>,
    returns: Vec<Option<Rc<Outgoing<R>>>>,
}

/// What an executor receives from, by the peer's number.
pub struct Incoming<Q: Send + 'static, R: Send + 'static> {
    pub requests: Vec<(usize, ConnectedReceiver<Q>)>,
    pub returns: Vec<(usize, ConnectedReceiver<R>)>,
}

impl<Q: Send + 'static, R: Send + 'static> Ends<Q, R> {
    /// Connects every end; ready when every other executor has done so. Until then the executor spins.
    pub async fn connect(self) -> (Mesh<Q, R>, Incoming<Q, R>) {
        let mut requests: Vec<Option<_>> = Vec::new();
        let mut returns: Vec<Option<_>> = Vec::new();
        // All at once: an end is connected only when its peer is, so that one after the other could wait in a circle.
        for pair in self.outgoing {
            let (request, back) = pair.unzip();
            requests.push(request.map(|sender| glommio::spawn_local(sender.connect())));
            returns.push(back.map(|sender| glommio::spawn_local(sender.connect())));
        }
        let mut receivers = Vec::new();
        for (peer, pair) in self.incoming.into_iter().enumerate() {
            if let Some((request, back)) = pair {
                receivers.push((peer, glommio::spawn_local(request.connect()), glommio::spawn_local(back.connect())));
            }
        }
        let mesh = Mesh { requests: outgoing(requests).await, returns: outgoing(returns).await };
        let mut incoming = Incoming { requests: Vec::new(), returns: Vec::new() };
        for (peer, request, back) in receivers {
            incoming.requests.push((peer, request.await));
            incoming.returns.push((peer, back.await));
        }
        (mesh, incoming)
    }
}

async fn outgoing<T: Send + 'static>(
    connecting: Vec<Option<glommio::Task<ConnectedSender<T>>>>,
) -> Vec<Option<Rc<Outgoing<T>>>> {
    let mut all = Vec::new();
    for task in connecting {
        all.push(match task {
            None => None,
            Some(task) => Some(Outgoing::start(task.await)),
        });
    }
    all
}

impl<Q: Send + 'static, R: Send + 'static> Mesh<Q, R> {
    /// Sends a request to another executor.
    pub fn request(&self, to: usize, message: Q) {
        if let Some(outgoing) = &self.requests[to] {
            outgoing.send(message);
        }
    }

    /// Sends back an answer, a delivery, or news.
    pub fn give_back(&self, to: usize, message: R) {
        if let Some(outgoing) = &self.returns[to] {
            outgoing.send(message);
        }
    }

    /// The numbers of all other executors.
    pub fn peers(&self) -> impl Iterator<Item = usize> + '_ {
        self.requests.iter().enumerate().filter_map(|(peer, outgoing)| outgoing.as_ref().map(|_| peer))
    }

    /// Messages that found a channel full and wait.
    pub fn backlog(&self) -> usize {
        let requests = self.requests.iter().flatten().map(|outgoing| outgoing.backlog.borrow().len());
        let returns = self.returns.iter().flatten().map(|outgoing| outgoing.backlog.borrow().len());
        requests.sum::<usize>() + returns.sum::<usize>()
    }
}

/// One channel's sending end.
struct Outgoing<T: Send + 'static> {
    sender: ConnectedSender<T>,
    backlog: RefCell<VecDeque<T>>,
    news: Event,
}

impl<T: Send + 'static> Outgoing<T> {
    fn start(sender: ConnectedSender<T>) -> Rc<Self> {
        let outgoing = Rc::new(Outgoing { sender, backlog: RefCell::default(), news: Event::default() });
        let emptier = outgoing.clone();
        glommio::spawn_local(async move {
            loop {
                emptier.news.wait().await;
                loop {
                    let next = emptier.backlog.borrow_mut().pop_front();
                    let Some(message) = next else { break };
                    if emptier.sender.send(message).await.is_err() {
                        return;
                    }
                }
            }
        })
        .detach();
        outgoing
    }

    fn send(&self, message: T) {
        let rest = if self.backlog.borrow().is_empty() {
            match self.sender.try_send(message) {
                Err(glommio::GlommioError::WouldBlock(glommio::ResourceType::Channel(rest))) => rest,
                // A peer that is gone has ended the process or is about to.
                Ok(()) | Err(_) => return,
            }
        } else {
            message
        };
        self.backlog.borrow_mut().push_back(rest);
        self.news.raise();
    }
}

/// How many more requests this executor may send to one shard of another; the rest of its connections' requests wait in their
/// sockets.
#[derive(Debug)]
pub struct Credit {
    left: Cell<usize>,
    waiting: RefCell<VecDeque<Waker>>,
}

impl Default for Credit {
    fn default() -> Self {
        Credit { left: Cell::new(MESH_CREDIT_PER_SHARD), waiting: RefCell::default() }
    }
}

impl Credit {
    pub fn take(&self) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }

    pub fn give_back(&self) {
        self.left.set(self.left.get() + 1);
        assert!(self.left.get() <= MESH_CREDIT_PER_SHARD, "more credit came back than was taken");
        if let Some(waker) = self.waiting.borrow_mut().pop_front() {
            waker.wake();
        }
    }

    /// Takes one, as soon as there is one.
    pub async fn taken(&self) {
        poll_fn(|context| {
            if self.take() {
                // Whoever was woken beside this one and finds more has its turn.
                if self.left.get() > 0
                    && let Some(waker) = self.waiting.borrow_mut().pop_front()
                {
                    waker.wake();
                }
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push_back(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
