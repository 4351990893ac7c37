//! Batches for a shard of another executor whose ring is full: they wait where they came from.

use super::directories;
use super::serving::{Client, Said, Serving, batch, head, serve, settings};
use crate::control::settings::{Settings, Switch, TestFault};
use crate::limits::ROOM_WITHIN;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Correlation, DurableLevel, Epoch, QueueId, QueueOffset, ShardId, TopicId};
use peregrine_protocol::message::{Ack, Credit, Fetch, Produce, Request, Stats};
use peregrine_protocol::placement::shard_of_queue;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Bytes of each batch; 1 MiB of ring holds some 100.
const BODY: usize = 10_000;
/// A test whose machine was too slow to see what it waits for begins again, with a broker that has sent nothing back yet, for so
/// long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Two shards; no flush of either is issued while `held`, and the ring of shard 1 is full.
struct Full {
    serving: Serving,
    held: &'static AtomicBool,
    topic: TopicId,
    /// A queue of shard 1.
    queue: u32,
    /// At shard 1 itself.
    near: Client,
    /// At shard 0: what it sends to the queue crosses the mesh.
    far: Client,
    /// At shard 0 as well.
    observer: Client,
    _directories: (TempDir, TempDir),
}

/// What waits at shard 0's executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiting {
    returned: u64,
    credit: u64,
    busy: u64,
}

impl Full {
    fn new(faults: &[TestFault]) -> Self {
        let directories = directories();
        let (data, rings) = (directories.0.path(), directories.1.path());
        let mut settings = Settings { ring_bytes: 1 << 20, largest_entry: 256 << 10, ..settings(data, rings, 2) };
        // With flushes held the topic could not become durable: it comes from an earlier run.
        let serving = serve(&settings);
        let topic = serving.client(None).create("full", 4);
        assert!(serving.stop().is_ok());
        let held: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(true)));
        settings.test_faults = [&[TestFault::HoldFlushesWhile(Switch(held))], faults].concat();
        let queue = (0..4).find(|&queue| shard_of_queue("full", QueueId(queue), 2) == ShardId(1)).expect("one of four");
        let serving = serve(&settings);
        let (near, far, observer) = (serving.client(Some(1)), serving.client(Some(0)), serving.client(Some(0)));
        let mut full = Full { serving, held, topic, queue, near, far, observer, _directories: directories };
        full.fill();
        full
    }

    fn fill(&mut self) {
        let payload = batch(&[7; BODY]);
        loop {
            match self.near.ask(&Request::Produce(self.produce(&payload))) {
                Said::Stored(_) => {}
                Said::Error { code } => return assert_eq!(code, ErrorCode::Busy.number()),
                other => panic!("{other:?}"),
            }
        }
    }

    fn produce<'a>(&self, payload: &'a [u8]) -> Produce<'a> {
        Produce { head: head(self.topic, self.queue, DurableLevel::Memory, payload), payload }
    }

    fn send_far(&mut self, body: usize) -> Correlation {
        let payload = batch(&vec![8; body]);
        let produce = self.produce(&payload);
        self.far.send(&Request::Produce(produce))
    }

    /// Flushes are issued again; a batch at the shard itself lets it see that.
    fn release(&mut self) {
        self.held.store(false, Ordering::Relaxed);
        let payload = batch(&[9; BODY]);
        let produce = self.produce(&payload);
        self.near.send(&Request::Produce(produce));
    }

    fn figures(&mut self) -> serde_json::Value {
        match self.observer.ask(&Request::Stats(Stats::Shards)) {
            Said::Json(text) => serde_json::from_str(&text).expect("JSON"),
            other => panic!("{other:?}"),
        }
    }

    fn waiting(&mut self) -> Waiting {
        let figures = self.figures();
        let figure = |name: &str| figures["shards"][0]["executor_figures"][name].as_u64().expect(name);
        Waiting {
            returned: figure("mesh_returned"),
            credit: figure("mesh_credit_used"),
            busy: figure("busy_elsewhere"),
        }
    }

    /// Whether exactly so many batches are seen to wait, before any of them is answered.
    fn sees_waiting(&mut self, returned: u64) -> bool {
        let deadline = Instant::now() + ROOM_WITHIN;
        while Instant::now() < deadline {
            let waiting = self.waiting();
            if waiting.returned == returned && waiting.credit == 0 {
                return true;
            }
        }
        false
    }

    fn until_nothing_waits(&mut self) -> Waiting {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let waiting = self.waiting();
            if (waiting.returned, waiting.credit) == (0, 0) {
                return waiting;
            }
            assert!(Instant::now() < deadline, "{waiting:?}");
        }
    }
}

/// Whether an attempt succeeds.
fn in_time(mut attempt: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if attempt() {
            return true;
        }
    }
    false
}

fn is(said: &Said, expected: ErrorCode) -> bool {
    matches!(said, Said::Error { code } if *code == expected.number())
}

#[test]
fn batches_without_room_wait_without_credit_and_hold_up_no_other_request() {
    let seen = in_time(|| {
        let mut full = Full::new(&[]);
        let subscription = full.observer.subscribe(full.topic, full.queue).subscription;
        let sent = [BODY, BODY, 200_000].map(|body| full.send_far(body));
        let seen = full.sees_waiting(sent.len() as u64) && {
            let (epoch, offset) = (Epoch::ANY, QueueOffset(0));
            let credit = Credit { subscription, messages: 1, bytes: 1 };
            full.observer.send(&Request::Credit(credit));
            full.observer.ask(&Request::Ack(Ack { subscription, epoch, offset }));
            let (topic, queue) = (full.topic, QueueId(full.queue));
            let fetch = Fetch { topic, queue, epoch, offset, max_messages: 1, max_bytes: 50_000 };
            assert!(matches!(full.observer.ask(&Request::Fetch(fetch)), Said::Fetched { .. }));
            full.waiting().returned == sent.len() as u64
        };
        for expected in sent {
            let (correlation, said) = full.far.receive();
            assert!(is(&said, ErrorCode::Busy), "{said:?}");
            assert_eq!(correlation, expected);
        }
        full.until_nothing_waits();
        seen
    });
    assert!(seen, "other requests are answered while batches wait");
}

#[test]
fn a_batch_that_finds_no_room_elsewhere_in_time_is_answered_busy_and_the_next_ones_get_on() {
    let mut full = Full::new(&[]);
    for _ in 0..3 {
        let before = full.waiting().busy;
        let began = Instant::now();
        let sent = [0; 20].map(|_| full.send_far(BODY));
        for expected in sent {
            let (correlation, said) = full.far.receive();
            assert!(is(&said, ErrorCode::Busy), "{said:?}");
            assert_eq!(correlation, expected);
        }
        assert!(began.elapsed() >= ROOM_WITHIN);
        assert_eq!(full.until_nothing_waits(), Waiting { returned: 0, credit: 0, busy: before + sent.len() as u64 });
    }
    full.release();
    let stored = in_time(|| {
        full.send_far(BODY);
        match full.far.receive().1 {
            Said::Stored(_) => true,
            said => {
                assert!(is(&said, ErrorCode::Busy), "{said:?}");
                false
            }
        }
    });
    assert!(stored);
    full.until_nothing_waits();
    assert!(full.serving.stop().is_ok());
}

/// Of two connections, small batches and large ones: each connection's are stored in the order in which it sent them, through
/// many rounds of a full ring.
#[test]
fn batches_that_waited_for_room_are_stored_in_the_order_in_which_they_were_sent() {
    const EACH: usize = 400;
    let mut full = Full::new(&[]);
    let mut other = full.serving.client(Some(0));
    let payload_of = |number: usize| batch(&vec![number as u8; if number % 16 == 5 { 150_000 } else { BODY }]);
    let (topic, queue) = (full.topic, full.queue);
    let mut sending = Vec::new();
    for client in [&mut full.far, &mut other] {
        let mut socket = client.socket.try_clone().expect("a second handle");
        sending.push(std::thread::spawn(move || {
            for number in 0..EACH {
                let payload = payload_of(number);
                let mut bytes = Vec::new();
                let head = head(topic, queue, DurableLevel::Memory, &payload);
                Request::Produce(Produce { head, payload: &payload }).encode(Correlation(number as u64), &mut bytes);
                std::io::Write::write_all(&mut socket, &bytes).expect("send");
            }
        }));
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while full.waiting().returned == 0 {
        assert!(Instant::now() < deadline, "some come back");
    }
    full.release();
    let mut stored_in_all = 0;
    for client in [&mut full.far, &mut other] {
        let mut stored = Vec::new();
        for _ in 0..EACH {
            match client.receive() {
                (correlation, Said::Stored(answer)) => stored.push((correlation.0, answer.base_offset.0)),
                (_, said) => assert!(is(&said, ErrorCode::Busy), "{said:?}"),
            }
        }
        stored.sort_unstable();
        assert!(stored.is_sorted_by_key(|&(_, offset)| offset), "{stored:?}");
        stored_in_all += stored.len();
    }
    assert!(stored_in_all > 0, "room came");
    for sender in sending {
        sender.join().expect("no panic");
    }
    full.until_nothing_waits();
    assert!(full.serving.stop().is_ok());
}

#[test]
fn a_log_that_is_poisoned_while_batches_wait_elsewhere_answers_them() {
    let mut full = Full::new(&[TestFault::FailWrite(1)]);
    full.send_far(BODY);
    full.sees_waiting(1);
    full.release();
    let poisoned = in_time(|| {
        let said = full.far.receive().1;
        let poisoned = is(&said, ErrorCode::Poisoned);
        if !poisoned {
            assert!(is(&said, ErrorCode::Busy), "{said:?}");
            full.send_far(BODY);
        }
        poisoned
    });
    assert!(poisoned);
    full.until_nothing_waits();
}

#[test]
fn a_connection_that_is_closed_while_its_batches_wait_leaves_nothing_behind() {
    let connections = |full: &mut Full| {
        let figures = full.figures();
        [0, 1].map(|shard| figures["shards"][shard]["executor_figures"]["connections"].as_u64().expect("a number"))
    };
    let dropped = in_time(|| {
        let mut full = Full::new(&[]);
        let before = (full.until_nothing_waits().busy, connections(&mut full));
        let mut gone = full.serving.client(Some(0));
        // It has a proxy at the other executor, too.
        gone.subscribe(full.topic, full.queue);
        let payload = batch(&[8; BODY]);
        let produce = full.produce(&payload);
        for _ in 0..5 {
            gone.send(&Request::Produce(produce));
        }
        let seen = full.sees_waiting(5);
        drop(gone);
        let after = full.until_nothing_waits().busy;
        let deadline = Instant::now() + Duration::from_secs(20);
        while connections(&mut full) != before.1 {
            assert!(Instant::now() < deadline, "{:?}", before.1);
        }
        seen && after == before.0
    });
    assert!(dropped, "they were forgotten, and not answered in vain");
}
