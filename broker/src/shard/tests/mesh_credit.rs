//! What an executor may have under way to a shard of another: its bounds, and that whoever cannot get on holds none of it.

use super::directories;
use super::room::{BODY, Full, switch};
use super::serving::{Client, Said, Serving, batch, head, serve, settings};
use crate::control::settings::{Settings, Switch, TestFault};
use crate::limits::{MESH_BYTES_PER_SHARD, MESH_CREDIT_PER_SHARD};
use peregrine_protocol::ids::{Correlation, DurableLevel, Epoch, QueueId, QueueOffset, ShardId, TopicId};
use peregrine_protocol::message::{Fetch, LookUp, Mode, Produce, Request, Start, Stats, Subscribe};
use peregrine_protocol::placement::shard_of_queue;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a condition may take to come about.
const PATIENCE: Duration = Duration::from_secs(60);

/// Two shards; neither handles what comes over the mesh while `held`.
struct Two {
    serving: Serving,
    held: &'static AtomicBool,
    topic: TopicId,
    /// Queues of shard 0,
    near: Vec<u32>,
    /// and of shard 1.
    far: Vec<u32>,
    observer: Client,
    _directories: (TempDir, TempDir),
}

impl Two {
    fn new() -> Self {
        let directories = directories();
        let held = switch(false);
        let test_faults = vec![TestFault::HoldForwardedWhile(Switch(held))];
        let settings = Settings { test_faults, ..settings(directories.0.path(), directories.1.path(), 2) };
        let serving = serve(&settings);
        let mut observer = serving.client(Some(0));
        let topic = observer.create("held", 8);
        let (near, far) = (0..8).partition(|&queue| shard_of_queue("held", QueueId(queue), 2) == ShardId(0));
        Two { serving, held, topic, near, far, observer, _directories: directories }
    }

    /// Lets the shards handle what comes over the mesh, or not.
    fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Relaxed);
    }

    /// Looks at both shards' figures until it is so.
    fn until(&mut self, is_so: impl Fn(&[serde_json::Value; 2]) -> bool) -> [serde_json::Value; 2] {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let figures: serde_json::Value = match self.observer.ask(&Request::Stats(Stats::Shards)) {
                Said::Json(text) => serde_json::from_str(&text).expect("JSON"),
                other => panic!("{other:?}"),
            };
            let both = [0, 1].map(|shard| figures["shards"][shard].clone());
            if is_so(&both) {
                return both;
            }
            assert!(Instant::now() < deadline, "{both:?}");
        }
    }

    /// A client of shard 0 that asks for all credit of shard 1, whose requests are held.
    fn with_all_credit(&mut self, request: &Request<'_>) -> Client {
        let mut client = self.serving.client(Some(0));
        for _ in 0..MESH_CREDIT_PER_SHARD {
            client.send(request);
        }
        self.until(|[here, _]| executor(here, "mesh_credit_used") == MESH_CREDIT_PER_SHARD as u64);
        client
    }

    fn look_up(&self) -> Request<'static> {
        Request::LookUp(LookUp { topic: self.topic, queue: QueueId(self.far[0]), start: Start::Earliest })
    }

    fn store(&self, client: &mut Client, queue: u32, body: usize) {
        let payload = batch(&vec![7; body]);
        let produce = Produce { head: head(self.topic, queue, DurableLevel::Memory, &payload), payload: &payload };
        assert!(matches!(client.ask(&Request::Produce(produce)), Said::Stored(_)));
    }
}

fn executor(shard: &serde_json::Value, name: &str) -> u64 {
    shard["executor_figures"][name].as_u64().expect(name)
}

/// Credit counted frames: 512 of the largest were 8 GiB.
#[test]
fn large_frames_to_a_shard_that_does_not_get_on_are_bounded_in_bytes_and_get_on_in_order() {
    const EACH: u64 = 60;
    const LARGE: usize = 200_000;
    let mut full = Full::new(&[]);
    full.patient.store(true, Ordering::Relaxed);
    full.forwarded_held.store(true, Ordering::Relaxed);
    let frame = full.frame_len(LARGE);
    assert!(2 * EACH * frame > MESH_BYTES_PER_SHARD as u64 + 2 * frame);
    let mut clients = [0; 2].map(|_| full.serving.client(Some(0)));
    let (topic, queue) = (full.topic, full.queue);
    let sending = clients.each_ref().map(|client| {
        let mut socket = client.socket.try_clone().expect("a second handle");
        std::thread::spawn(move || {
            let payload = batch(&vec![8; LARGE]);
            for number in 0..EACH {
                let (mut bytes, head) = (Vec::new(), head(topic, queue, DurableLevel::Memory, &payload));
                Request::Produce(Produce { head, payload: &payload }).encode(Correlation(number), &mut bytes);
                socket.write_all(&bytes).expect("send");
            }
        })
    });
    let bound = MESH_BYTES_PER_SHARD as u64 / frame;
    let waiting = full.until(|waiting| waiting.for_credit == 2 || waiting.credit > bound);
    assert_eq!((waiting.bytes, waiting.credit), (bound * frame, bound));
    // They come back for want of room, and still hold their bytes; what is no batch passes them.
    full.forwarded_held.store(false, Ordering::Relaxed);
    let waiting = full.until(|waiting| waiting.credit == 0 || waiting.bytes > bound * frame);
    assert_eq!((waiting.returned, waiting.bytes, waiting.for_credit), (bound, bound * frame, 2));
    assert!(matches!(full.fetch(), Said::Fetched { .. }));
    full.release();
    for client in &mut clients {
        let mut last = None;
        for number in 0..EACH {
            match client.receive() {
                (correlation, Said::Stored(stored)) => {
                    assert_eq!(correlation.0, number);
                    assert!(last < Some(stored.base_offset), "{last:?}");
                    last = Some(stored.base_offset);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    for sender in sending {
        sender.join().expect("no panic");
    }
    full.until_nothing_waits();
    assert!(full.serving.stop().is_ok());
}

/// A batch that waited for credit was sent past those that had come back meanwhile, unless the gate is asked again.
#[test]
fn a_batch_that_waited_for_credit_is_not_sent_past_those_that_came_back() {
    let mut full = Full::new(&[]);
    full.patient.store(true, Ordering::Relaxed);
    full.forwarded_held.store(true, Ordering::Relaxed);
    full.send_far(BODY);
    let look_up = LookUp { topic: full.topic, queue: QueueId(full.queue), start: Start::Earliest };
    for _ in 1..MESH_CREDIT_PER_SHARD {
        full.far.send(&Request::LookUp(look_up));
    }
    full.until(|waiting| waiting.credit == MESH_CREDIT_PER_SHARD as u64);
    let mut other = full.serving.client(Some(0));
    let payload = batch(&[8; BODY]);
    other.send(&Request::Produce(full.produce(&payload)));
    let before = full.until(|waiting| waiting.for_credit == 1).forwarded;
    full.forwarded_held.store(false, Ordering::Relaxed);
    let after = full.until(|waiting| waiting.at_gates == 1 || waiting.forwarded > before);
    assert_eq!(after.forwarded, before);
    full.release();
    let first = full.far.until(|said| if let Said::Stored(stored) = said { Some(stored) } else { None });
    let second = other.until(|said| if let Said::Stored(stored) = said { Some(stored) } else { None });
    assert!(first.base_offset < second.base_offset);
    full.until_nothing_waits();
    assert!(full.serving.stop().is_ok());
}

/// Fetches that stood behind deliveries to a client that does not read kept their credit: no other connection of their executor
/// reached that shard until that client was gone.
#[test]
fn fetches_of_a_client_that_does_not_read_leave_their_credit_to_others() {
    /// More than the sockets take.
    const SUBSCRIPTIONS: usize = 40;
    let mut two = Two::new();
    let (small, large) = (two.far[0], two.far[1]);
    let mut producer = two.serving.client(Some(1));
    two.store(&mut producer, small, 10);
    two.hold(false);
    let mut slow = two.serving.client(Some(0));
    for _ in 0..SUBSCRIPTIONS {
        slow.subscribe(two.topic, large);
    }
    two.hold(true);
    let (epoch, offset) = (Epoch::ANY, QueueOffset(0));
    let fetch = Fetch { topic: two.topic, queue: QueueId(small), epoch, offset, max_messages: 1, max_bytes: 1000 };
    let fetches: Vec<_> = (0..MESH_CREDIT_PER_SHARD).map(|_| slow.send(&Request::Fetch(fetch))).collect();
    two.until(|[here, _]| executor(here, "mesh_credit_used") == MESH_CREDIT_PER_SHARD as u64);
    two.store(&mut producer, large, 900_000);
    two.hold(false);
    // What the shard said before it told its figures has been heard when the next ones are asked for.
    two.until(|[_, there]| executor(there, "mesh_unhandled") == 0);
    let [here, _] = two.until(|_| true);
    assert_eq!(executor(&here, "mesh_credit_used"), 0);
    let mut other = two.serving.client(Some(0));
    assert!(matches!(other.ask(&Request::Fetch(fetch)), Said::Fetched { .. }));
    // All that it is owed comes, in order, when it reads.
    for _ in 0..SUBSCRIPTIONS {
        assert!(matches!(slow.receive().1, Said::Batch { .. }));
    }
    for expected in fetches {
        match slow.receive() {
            (correlation, Said::Fetched { batches, .. }) => assert_eq!((correlation, batches.len()), (expected, 1)),
            other => panic!("{other:?}"),
        }
    }
    assert!(two.serving.stop().is_ok());
}

/// The answers of fetches did not count against the window: all of them were made, and waited in memory.
#[test]
fn fetches_of_a_client_that_does_not_read_are_answered_as_it_reads() {
    let mut two = Two::new();
    let queue = two.far[0];
    let mut producer = two.serving.client(Some(1));
    two.store(&mut producer, queue, 900_000);
    let (epoch, offset) = (Epoch::ANY, QueueOffset(0));
    let fetch = Fetch { topic: two.topic, queue: QueueId(queue), epoch, offset, max_messages: 1, max_bytes: 1000 };
    two.hold(true);
    let mut slow = two.serving.client(Some(0));
    let fetches = [0; 64].map(|_| slow.send(&Request::Fetch(fetch)));
    two.until(|[here, _]| executor(here, "mesh_credit_used") == fetches.len() as u64);
    two.hold(false);
    two.until(|[here, there]| executor(there, "mesh_unhandled") == 0 && executor(here, "mesh_credit_used") == 0);
    // All that may be made has been made: the task that makes it does not wait for anything.
    let [_, there] = two.until(|_| true);
    assert!(executor(&there, "held") > 0, "answers that nobody takes were made");
    for expected in fetches {
        match slow.receive() {
            (correlation, Said::Fetched { batches, .. }) => assert_eq!((correlation, batches.len()), (expected, 1)),
            other => panic!("{other:?}"),
        }
    }
    two.until(|[_, there]| executor(there, "held") == 0);
    assert!(two.serving.stop().is_ok());
}

/// A connection ended while its subscription was under way to another executor, which then made it, for nobody and for ever.
#[test]
fn a_subscription_under_way_when_its_connection_ends_goes_with_it() {
    let mut two = Two::new();
    let mut gone = two.serving.client(Some(0));
    for _ in 0..4 {
        gone.subscribe(two.topic, two.near[0]);
    }
    two.hold(true);
    let look_up = two.look_up();
    let asking = two.with_all_credit(&look_up);
    let subscribe = Subscribe {
        topic: two.topic,
        queue: QueueId(two.far[0]),
        mode: Mode::Reader,
        start: Start::Earliest,
        credit_messages: 10,
        credit_bytes: 1000,
    };
    gone.send(&Request::Subscribe(subscribe));
    let [before, _] = two.until(|[here, _]| executor(here, "mesh_credit_waiting") == 1);
    // More is on its way to it than its socket takes: the reset that follows is seen by its writer, while its reader waits.
    let mut producer = two.serving.client(Some(0));
    for _ in 0..8 {
        two.store(&mut producer, two.near[0], 900_000);
    }
    drop(gone);
    let connections = executor(&before, "connections");
    two.until(|[here, _]| executor(here, "connections") == connections);
    two.hold(false);
    let [_, there] = two.until(|[here, there]| {
        let here = ["mesh_credit_used", "mesh_credit_waiting"].map(|name| executor(here, name));
        here == [0, 0] && executor(there, "mesh_unhandled") == 0
    });
    assert_eq!((there["subscriptions"].as_u64(), executor(&there, "connections")), (Some(0), 0));
    drop(asking);
    assert!(two.serving.stop().is_ok());
}
