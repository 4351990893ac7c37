//! A broker on a simulated machine serves, is killed, comes back, and does the same when it is asked to again.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use peregrine_protocol::entry::{DirectoryId, DirectorySecret};
use peregrine_protocol::frame::{self, Received};
use peregrine_protocol::ids::{Correlation, DurableLevel, TopicId};
use peregrine_protocol::message::{Answer, CreateTopic, Hello, Produce, Request, Stats, StatsAnswer, TopicRetention};
use peregrine_protocol::preamble::PREAMBLE;

use super::{Network, NetworkConditions, Process, ProcessOptions, Wire, WireState};
use crate::control::settings::{Identity, Settings};
use crate::log::Smallest;
use crate::log::disk::simulated::{Conditions, Crash, Machine};
use crate::shard::tests::serving::{batch, head, settings};
use peregrine_protocol::ids::ShardId;

const SECOND: u64 = 1_000_000_000;

/// A machine, its network, and how brokers are started on it.
struct World {
    machine: Machine,
    network: Network,
    settings: Settings,
    executors: usize,
}

impl World {
    fn new(seed: u64, shards: u16, executors: usize, network: NetworkConditions) -> Self {
        let machine = Machine::new(seed, usize::from(shards), Conditions::default());
        let network = Network::new(&machine, network);
        let settings = Settings {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            ring_bytes: 512 << 10,
            segment_bytes: 256 << 10,
            largest_entry: 128 << 10,
            batch_max: 120 << 10,
            ..settings(Path::new("data"), Path::new("rings"), shards)
        };
        Self { machine, network, settings, executors }
    }

    fn start(&self) -> Process {
        let identity = Identity {
            id: DirectoryId(77),
            secret: DirectorySecret([7; 16]),
            shards: self.settings.shards,
            device: 1,
            inode: 2,
            boot: u128::from_le_bytes(self.machine.boot_id()),
            run: self.machine.draw_run_id(),
        };
        let options = ProcessOptions {
            executors: self.executors,
            smallest: Smallest { ring: 64 << 10, segment: 64 << 10 },
            ..ProcessOptions::default()
        };
        let mut process = Process::start(&self.machine, &self.network, &self.settings, &identity, &options);
        while process.ready().is_none() {
            assert_eq!(process.ended(), None);
            assert!(process.turn(self.machine.now() + 60 * SECOND), "a start comes to its end");
        }
        process
    }
}

/// One connection.
struct Client {
    wire: Wire,
    buffer: Vec<u8>,
    next: u64,
}

impl Client {
    fn connect(world: &World, process: &mut Process, shard: Option<u16>) -> Self {
        let mut client = Client { wire: world.network.connect(), buffer: Vec::new(), next: 1 };
        while client.wire.state() == WireState::Connecting {
            process.turn(u64::MAX);
        }
        assert_eq!(client.wire.send(&PREAMBLE), PREAMBLE.len());
        let hello = Hello { client: "test", shard: shard.map(ShardId), ..Hello::default() };
        client.ask(process, &Request::Hello(hello), |answer| assert!(matches!(answer, Answer::Hello(_)), "{answer:?}"));
        client
    }

    fn ask<T>(&mut self, process: &mut Process, request: &Request<'_>, look: impl FnOnce(Answer<'_>) -> T) -> T {
        let correlation = Correlation(self.next);
        self.next += 1;
        let mut bytes = Vec::new();
        request.encode(correlation, &mut bytes);
        let mut sent = 0;
        loop {
            sent += self.wire.send(&bytes[sent..]);
            self.wire.receive(&mut self.buffer);
            let len = match frame::decode(&self.buffer, u32::MAX) {
                Ok(Received::Frame(frame)) if frame.head.correlation == correlation => {
                    let found = look(Answer::decode(&frame).expect("an answer"));
                    let len = frame.len();
                    self.buffer.drain(..len);
                    return found;
                }
                Ok(Received::Frame(frame)) => frame.len(),
                Ok(Received::Missing(_)) => 0,
                Err(error) => panic!("no frame: {error}"),
            };
            self.buffer.drain(..len);
            assert_eq!(self.wire.state(), WireState::Open);
            process.turn(u64::MAX);
        }
    }

    fn create(&mut self, process: &mut Process, name: &str, queues: u32) -> TopicId {
        let create = CreateTopic { name, queues, retention: TopicRetention::default() };
        self.ask(process, &Request::CreateTopic(create), |answer| match answer {
            Answer::CreateTopic(created) => created.topic.id,
            other => panic!("{other:?}"),
        })
    }

    /// The offset that a message is stored at.
    fn produce(
        &mut self,
        process: &mut Process,
        topic: TopicId,
        queue: u32,
        level: DurableLevel,
        payload: &[u8],
    ) -> u64 {
        let produce = Produce { head: head(topic, queue, level, payload), payload };
        self.ask(process, &Request::Produce(produce), |answer| match answer {
            Answer::Produce(stored) => stored.base_offset.0,
            other => panic!("{other:?}"),
        })
    }
}

fn stop(world: &World, mut process: Process) {
    process.stop();
    while process.ended().is_none() {
        assert!(process.turn(world.machine.now() + 60 * SECOND), "a stop comes to its end");
    }
    assert_eq!(process.ended(), Some(Vec::new()));
    drop(process);
    world.machine.crash(Crash::Kill);
}

/// Creates, produces, kills, produces, stops, starts: the machine's trace.
fn live(seed: u64, shards: u16, executors: usize) -> u64 {
    let slow = NetworkConditions { piece_max: 40, ..NetworkConditions::default() };
    let world = World::new(seed, shards, executors, slow);
    let mut process = world.start();
    let mut client = Client::connect(&world, &mut process, None);
    let topic = client.create(&mut process, "orders", 3);
    let large = batch(&vec![7; 100_000]);
    for number in 0..4 {
        for queue in 0..3 {
            let level = if number % 2 == 0 { DurableLevel::Memory } else { DurableLevel::Synced };
            let payload = if number == 2 { large.clone() } else { batch(format!("{number} of {queue}").as_bytes()) };
            assert_eq!(client.produce(&mut process, topic, queue, level, &payload), number);
        }
    }
    drop(process);
    world.machine.crash(Crash::Kill);
    assert_eq!(client.wire.state(), WireState::Open);

    let mut process = world.start();
    for shard in 0..shards {
        let mut client = Client::connect(&world, &mut process, Some(shard));
        for queue in 0..3 {
            let offset = client.produce(&mut process, topic, queue, DurableLevel::Synced, &batch(b"again"));
            assert_eq!(offset, 4 + u64::from(shard));
        }
        let text = client.ask(&mut process, &Request::Stats(Stats::Shards), |answer| match answer {
            Answer::Stats(StatsAnswer { json, .. }) => String::from_utf8_lossy(json).into_owned(),
            other => panic!("{other:?}"),
        });
        assert_eq!(text.matches("\"published\"").count(), usize::from(shards), "{text}");
    }
    stop(&world, process);
    let process = world.start();
    assert_eq!(process.ready(), Some(0));
    stop(&world, process);
    world.machine.trace()
}

#[test]
fn a_simulated_broker_serves_and_comes_back() {
    for (shards, executors) in [(1, 1), (2, 1), (3, 2), (3, 3)] {
        live(u64::from(shards), shards, executors);
    }
}

#[test]
fn one_seed_gives_one_life() {
    assert_eq!(live(5, 3, 2), live(5, 3, 2));
    assert_ne!(live(5, 3, 2), live(6, 3, 2));
}
