//! Channels between executors: for each ordered pair one for requests and one for what comes back.
//!
//! ```text
//!   executor a ── requests ──► executor b          each is a lock-free ring of its own, from one thread to one other;
//!   executor a ◄─ returns  ─── executor b          a full one never makes a connection wait
//! ```
//!
//! Forwarded requests are bounded by [`super::credit`] per destination shard, which comes back with the answer (its bytes in a
//! message of their own), and the channels are large enough for all credit: a full one is met only by what has no credit (a
//! hand-off, the end of a connection, news of the catalogue, a delivery). That waits in a backlog, which one task empties; its bound is the number of connections and of changes.

use crate::limits::{MESH_CHANNEL, MESH_CREDIT_PER_SHARD};
use crate::shard::event::Event;
use crate::shard::runtime;
use crate::shard::runtime::channel::{self, Receiver, ReceiverEnd, Refused, Sender, SenderEnd};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// One executor's ends of all its channels, before they are connected. They may change threads; what is connected may not.
#[derive(Debug)]
pub struct Ends<Q: Send + 'static, R: Send + 'static> {
    outgoing: Vec<Option<(SenderEnd<Q>, SenderEnd<R>)>>,
    incoming: Vec<Option<(ReceiverEnd<Q>, ReceiverEnd<R>)>>,
}

/// The ends for `executors` executors that carry at most `shards_each` shards.
pub fn full<Q: Send + 'static, R: Send + 'static>(executors: usize, shards_each: usize) -> Vec<Ends<Q, R>> {
    let slots = (2 * shards_each * MESH_CREDIT_PER_SHARD + MESH_CHANNEL).next_power_of_two();
    let none =
        || Ends { outgoing: (0..executors).map(|_| None).collect(), incoming: (0..executors).map(|_| None).collect() };
    let mut all: Vec<Ends<Q, R>> = (0..executors).map(|_| none()).collect();
    for from in 0..executors {
        for to in (0..executors).filter(|&to| to != from) {
            let (request_sender, request_receiver) = channel::bounded(slots);
            let (return_sender, return_receiver) = channel::bounded(slots);
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
    pub requests: Vec<(usize, Receiver<Q>)>,
    pub returns: Vec<(usize, Receiver<R>)>,
}

impl<Q: Send + 'static, R: Send + 'static> Ends<Q, R> {
    /// Connects every end; ready when every other executor has done so. Until then the executor spins.
    pub async fn connect(self) -> (Mesh<Q, R>, Incoming<Q, R>) {
        let mut requests: Vec<Option<_>> = Vec::new();
        let mut returns: Vec<Option<_>> = Vec::new();
        // All at once: an end is connected only when its peer is, so that one after the other could wait in a circle.
        for pair in self.outgoing {
            let (request, back) = pair.unzip();
            requests.push(request.map(|sender| runtime::spawn(sender.connect())));
            returns.push(back.map(|sender| runtime::spawn(sender.connect())));
        }
        let mut receivers = Vec::new();
        for (peer, pair) in self.incoming.into_iter().enumerate() {
            if let Some((request, back)) = pair {
                receivers.push((peer, runtime::spawn(request.connect()), runtime::spawn(back.connect())));
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
    connecting: Vec<Option<runtime::Task<Sender<T>>>>,
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
        let requests = self.requests.iter().flatten().map(|outgoing| outgoing.backlog());
        let returns = self.returns.iter().flatten().map(|outgoing| outgoing.backlog());
        requests.sum::<usize>() + returns.sum::<usize>()
    }
}

/// One channel's sending end.
struct Outgoing<T: Send + 'static> {
    sender: Sender<T>,
    backlog: RefCell<VecDeque<T>>,
    /// The first of the backlog waits in the channel's own hands: nothing may go before it.
    sending: Cell<bool>,
    news: Event,
}

impl<T: Send + 'static> Outgoing<T> {
    fn start(sender: Sender<T>) -> Rc<Self> {
        let outgoing = Rc::new(Outgoing {
            sender,
            backlog: RefCell::default(),
            sending: Cell::new(false),
            news: Event::default(),
        });
        let emptier = outgoing.clone();
        runtime::spawn(async move {
            loop {
                emptier.news.wait().await;
                loop {
                    let next = emptier.backlog.borrow_mut().pop_front();
                    let Some(message) = next else { break };
                    emptier.sending.set(true);
                    if !emptier.sender.send(message).await {
                        return;
                    }
                    emptier.sending.set(false);
                }
            }
        })
        .detach();
        outgoing
    }

    fn backlog(&self) -> usize {
        self.backlog.borrow().len() + usize::from(self.sending.get())
    }

    /// Sends a message, behind all that were sent before: who receives relies on their order.
    fn send(&self, message: T) {
        let rest = if self.backlog.borrow().is_empty() && !self.sending.get() {
            match self.sender.try_send(message) {
                Err(Refused::Full(rest)) => rest,
                // A peer that is gone has ended the process or is about to.
                Ok(()) | Err(Refused::Gone) => return,
            }
        } else {
            message
        };
        self.backlog.borrow_mut().push_back(rest);
        self.news.raise();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn spin_until(count: &AtomicU32, at_least: u32) {
        while count.load(Ordering::Acquire) < at_least {
            std::thread::yield_now();
        }
    }

    /// The first of the backlog was taken off it before it was in the channel: what was sent meanwhile went before it.
    #[test]
    fn nothing_overtakes_a_message_that_found_the_channel_full() {
        const SLOTS: usize = 2;
        let (sender, receiver) = channel::bounded::<usize>(SLOTS);
        let (full, taken) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let builder = || glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound);
        let receiving = {
            let (full, taken) = (full.clone(), taken.clone());
            builder().spawn(move || async move {
                let receiver = receiver.connect().await;
                spin_until(&full, 1);
                let mut got = vec![receiver.recv().await];
                taken.fetch_add(1, Ordering::Release);
                spin_until(&full, 2);
                while let Some(message) = receiver.recv().await {
                    got.push(Some(message));
                    if got.len() == SLOTS + 2 {
                        break;
                    }
                }
                got
            })
        };
        let sending = builder().spawn(move || async move {
            let outgoing = Outgoing::start(sender.connect().await);
            for message in 0..=SLOTS {
                outgoing.send(message);
            }
            assert_eq!(outgoing.backlog(), 1);
            // Its task takes the one that is over, and waits.
            runtime::turn().await;
            assert_eq!(outgoing.backlog(), 1);
            full.fetch_add(1, Ordering::Release);
            spin_until(&taken, 1);
            // There is room, and nobody has seen it yet.
            outgoing.send(SLOTS + 1);
            full.fetch_add(1, Ordering::Release);
            while outgoing.backlog() > 0 {
                runtime::turn().await;
            }
        });
        sending.expect("an executor").join().expect("no panic");
        let got = receiving.expect("an executor").join().expect("no panic");
        assert_eq!(got, (0..SLOTS + 2).map(Some).collect::<Vec<_>>());
    }
}
