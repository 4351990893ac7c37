//! A broker in memory, for tests of the client: it speaks the protocol over TCP, keeps what DESIGN.md says of sequences, epochs and
//! truncation, and fails on command. It has no disk: what is "synced" is what a power cut leaves.

mod connection;
mod groups;
mod queue;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::*;
use tokio::net::TcpListener;
use tokio::sync::broadcast;

use self::connection::Connection;
use self::queue::Queue;

/// What the broker does wrong next.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Closes the connection instead of taking the next produce request.
    DropBefore,
    /// Stores the next batch, then closes the connection instead of answering.
    DropAfter,
    /// Answers the next produce request with this.
    Refuse(ErrorCode),
}

#[derive(Debug)]
struct State {
    shards: u16,
    directory: u128,
    epoch: u64,
    topics: BTreeMap<String, (TopicId, u32)>,
    queues: HashMap<(TopicId, QueueId), Queue>,
    faults: VecDeque<Fault>,
    connections: u64,
    groups: groups::Groups,
}

/// The broker. Dropping it ends it.
pub struct FakeBroker {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    end: broadcast::Sender<()>,
    moved: broadcast::Sender<()>,
}

impl FakeBroker {
    pub async fn start(shards: u16) -> Self {
        let state = State {
            shards,
            directory: 1,
            epoch: 1,
            topics: BTreeMap::new(),
            queues: HashMap::new(),
            faults: VecDeque::new(),
            connections: 0,
            groups: groups::Groups::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let broker = Self {
            state: Arc::new(Mutex::new(state)),
            address,
            end: broadcast::channel(1).0,
            moved: broadcast::channel(16).0,
        };
        broker.listen(listener);
        broker
    }

    fn listen(&self, listener: TcpListener) {
        let (state, end, moved) = (self.state.clone(), self.end.clone(), self.moved.clone());
        let mut ended = end.subscribe();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    Ok((stream, _)) = listener.accept() => {
                        let connection = Connection::new(stream, state.clone(), moved.clone());
                        let mut ended = end.subscribe();
                        tokio::spawn(async move {
                            tokio::select! { _ = connection.serve() => {}, _ = ended.recv() => {} }
                        });
                    }
                    _ = ended.recv() => return,
                }
            }
        });
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    pub fn fault(&self, fault: Fault) {
        self.state.lock().unwrap().faults.push_back(fault);
    }

    pub fn connections(&self) -> u64 {
        self.state.lock().unwrap().connections
    }

    /// Ends every connection and does not listen for a moment.
    pub fn kill(&self) {
        let _ = self.end.send(());
        self.state.lock().unwrap().epoch += 1;
    }

    /// Listens again, on the same port.
    pub async fn restart(&self) {
        loop {
            // The port is free as soon as the old listener's task has ended.
            match TcpListener::bind(self.address).await {
                Ok(listener) => {
                    self.forget_members();
                    return self.listen(listener);
                }
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    /// Takes back, in every queue, what stands behind the last batch that was synced.
    pub fn lose_power(&self) {
        for queue in self.state.lock().unwrap().queues.values_mut() {
            let synced = queue.batches.iter().rposition(|batch| batch.level == DurableLevel::Synced);
            queue.batches.truncate(synced.map_or(0, |place| place + 1));
        }
    }

    pub fn replace_directory(&self) {
        self.state.lock().unwrap().directory += 1;
    }

    /// Flips a bit of a queue's newest batch.
    pub fn corrupt(&self, topic: &str, queue: u32) {
        let mut state = self.state.lock().unwrap();
        let id = state.topics[topic].0;
        let batch = state.queues.get_mut(&(id, QueueId(queue))).unwrap().batches.last_mut().unwrap();
        *batch.payload.last_mut().unwrap() ^= 1;
        batch.payload[8] ^= 1;
    }

    /// The bodies that a queue holds, in order.
    pub fn bodies(&self, topic: &str, queue: u32) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let id = state.topics[topic].0;
        let batches = state.queues.get(&(id, QueueId(queue))).into_iter().flat_map(|queue| &queue.batches);
        batches
            .flat_map(|batch| {
                let records = peregrine_protocol::record::Batch::new(&batch.payload, batch.records).unwrap();
                records.records().map(|r| String::from_utf8(r.unwrap().body().to_vec()).unwrap()).collect::<Vec<_>>()
            })
            .collect()
    }
}

impl Drop for FakeBroker {
    fn drop(&mut self) {
        let _ = self.end.send(());
    }
}
