//! Batches for a shard of another executor whose ring is full: they wait where they came from.

use super::directories;
use super::serving::{Client, Said, Serving, batch, head, serve, settings};
use crate::control::settings::{Settings, Switch, TestFault};
use crate::limits::ROOM_WITHIN;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Correlation, DurableLevel, Epoch, QueueId, QueueOffset, ShardId, TopicId};
use peregrine_protocol::message::{Credit, Fetch, Produce, Request, Stats, Unsubscribe};
use peregrine_protocol::placement::shard_of_queue;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Bytes of each batch; 1 MiB of ring holds some 100.
pub const BODY: usize = 10_000;
/// How long a condition may take to come about.
const PATIENCE: Duration = Duration::from_secs(60);

/// Two shards; no flush of either is issued while `held`, and the ring of shard 1 is full.
pub struct Full {
    pub serving: Serving,
    held: &'static AtomicBool,
    /// While it is on, batches wait for room without end.
    pub patient: &'static AtomicBool,
    /// While it is on, shards handle nothing that comes over the mesh.
    pub forwarded_held: &'static AtomicBool,
    pub topic: TopicId,
    /// A queue of shard 1.
    pub queue: u32,
    /// At shard 1 itself.
    near: Client,
    /// At shard 0: what it sends to the queue crosses the mesh.
    pub far: Client,
    /// At shard 0 as well.
    pub observer: Client,
    _directories: (TempDir, TempDir),
}

/// What waits at shard 0's executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub returned: u64,
    pub credit: u64,
    pub bytes: u64,
    /// Connections that wait for credit.
    pub for_credit: u64,
    /// And those whose batches wait behind others that came back.
    pub at_gates: u64,
    pub forwarded: u64,
    /// At the other shard.
    pub unhandled: u64,
    pub busy: u64,
}

/// A switch for the rest of the process.
pub fn switch(on: bool) -> &'static AtomicBool {
    Box::leak(Box::new(AtomicBool::new(on)))
}

impl Full {
    pub fn new(faults: &[TestFault]) -> Self {
        let directories = directories();
        let (data, rings) = (directories.0.path(), directories.1.path());
        let mut settings = Settings { ring_bytes: 1 << 20, largest_entry: 256 << 10, ..settings(data, rings, 2) };
        // With flushes held the topic could not become durable: it comes from an earlier run.
        let serving = serve(&settings);
        let topic = serving.client(None).create("full", 4);
        assert!(serving.stop().is_ok());
        let (held, patient, forwarded_held) = (switch(true), switch(false), switch(false));
        let switches = [
            TestFault::HoldFlushesWhile(Switch(held)),
            TestFault::PatientWhile(Switch(patient)),
            TestFault::HoldForwardedWhile(Switch(forwarded_held)),
        ];
        settings.test_faults = [&switches, faults].concat();
        let queue = (0..4).find(|&queue| shard_of_queue("full", QueueId(queue), 2) == ShardId(1)).expect("one of four");
        let serving = serve(&settings);
        let (near, far, observer) = (serving.client(Some(1)), serving.client(Some(0)), serving.client(Some(0)));
        let mut full = Full {
            serving,
            held,
            patient,
            forwarded_held,
            topic,
            queue,
            near,
            far,
            observer,
            _directories: directories,
        };
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

    pub fn produce<'a>(&self, payload: &'a [u8]) -> Produce<'a> {
        Produce { head: head(self.topic, self.queue, DurableLevel::Memory, payload), payload }
    }

    pub fn send_far(&mut self, body: usize) -> Correlation {
        let payload = batch(&vec![8; body]);
        let produce = self.produce(&payload);
        self.far.send(&Request::Produce(produce))
    }

    /// Flushes are issued again; a batch at the shard itself lets it see that.
    pub fn release(&mut self) {
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

    pub fn waiting(&mut self) -> Waiting {
        let figures = self.figures();
        let figure_of =
            |shard: usize, name: &str| figures["shards"][shard]["executor_figures"][name].as_u64().expect(name);
        let figure = |name: &str| figure_of(0, name);
        Waiting {
            returned: figure("mesh_returned"),
            credit: figure("mesh_credit_used"),
            bytes: figure("mesh_credit_bytes"),
            for_credit: figure("mesh_credit_waiting"),
            at_gates: figure("mesh_gates_waiting"),
            forwarded: figure("forwarded"),
            unhandled: figure_of(1, "mesh_unhandled"),
            busy: figure("busy_elsewhere"),
        }
    }

    /// Looks until it is so.
    pub fn until(&mut self, is_so: impl Fn(&Waiting) -> bool) -> Waiting {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let waiting = self.waiting();
            if is_so(&waiting) {
                return waiting;
            }
            assert!(Instant::now() < deadline, "{waiting:?}");
        }
    }

    /// So many batches, whatever `send` sends, find no room, all of them before the first has come back.
    pub fn send_back(&mut self, returned: usize, send: impl FnOnce(&mut Self)) -> Waiting {
        self.patient.store(true, Ordering::Relaxed);
        self.forwarded_held.store(true, Ordering::Relaxed);
        send(self);
        self.until(|waiting| waiting.credit == returned as u64);
        self.forwarded_held.store(false, Ordering::Relaxed);
        self.until(|waiting| waiting.returned == returned as u64 && waiting.credit == 0)
    }

    pub fn until_nothing_waits(&mut self) -> Waiting {
        self.until(|waiting| [waiting.returned, waiting.credit, waiting.for_credit, waiting.unhandled] == [0; 4]);
        // What the other shard said before it told its figures has been heard when the next ones are asked for.
        let waiting = self.waiting();
        assert_eq!(waiting.bytes, 0, "nobody holds them: {waiting:?}");
        waiting
    }

    /// Bytes of the frame of such a batch.
    pub fn frame_len(&self, body: usize) -> u64 {
        let (payload, mut bytes) = (batch(&vec![8; body]), Vec::new());
        Request::Produce(self.produce(&payload)).encode(Correlation(0), &mut bytes);
        bytes.len() as u64
    }

    /// A fetch of the queue's first batch, by the observer.
    pub fn fetch(&mut self) -> Said {
        let (topic, queue) = (self.topic, QueueId(self.queue));
        let (epoch, offset) = (Epoch::ANY, QueueOffset(0));
        self.observer.ask(&Request::Fetch(Fetch { topic, queue, epoch, offset, max_messages: 1, max_bytes: 50_000 }))
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
    let mut full = Full::new(&[]);
    let subscription = full.observer.subscribe(full.topic, full.queue).subscription;
    let bodies = [BODY, BODY, 200_000];
    let mut sent: Vec<Correlation> = Vec::new();
    let waiting = full.send_back(bodies.len(), |full| sent.extend(bodies.map(|body| full.send_far(body))));
    assert_eq!(waiting.bytes, bodies.iter().map(|&body| full.frame_len(body)).sum::<u64>());
    let credit = Credit { subscription, messages: 1, bytes: 1 };
    full.observer.send(&Request::Credit(credit));
    full.observer.ask(&Request::Unsubscribe(Unsubscribe { subscription }));
    assert!(matches!(full.fetch(), Said::Fetched { .. }));
    let before = full.waiting();
    assert_eq!(before.returned, sent.len() as u64);
    // Another batch of theirs is not sent past them.
    sent.push(full.send_far(BODY));
    let after = full.until(|waiting| waiting.at_gates == 1 || waiting.forwarded > before.forwarded);
    assert_eq!(after.forwarded, before.forwarded);
    full.release();
    let mut last = None;
    for expected in sent {
        match full.far.receive() {
            (correlation, Said::Stored(stored)) => {
                assert_eq!(correlation, expected);
                assert!(last < Some(stored.base_offset), "{last:?}");
                last = Some(stored.base_offset);
            }
            other => panic!("{other:?}"),
        }
    }
    full.until_nothing_waits();
    assert!(full.serving.stop().is_ok());
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
        assert_eq!(full.until_nothing_waits().busy, before + sent.len() as u64);
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
    let mut sent = Vec::new();
    full.send_back(2, |full| sent.extend([BODY, 200_000].map(|body| full.send_far(body))));
    full.release();
    for expected in sent {
        let (correlation, said) = full.far.receive();
        assert!(is(&said, ErrorCode::Poisoned), "{said:?}");
        assert_eq!(correlation, expected);
    }
    full.until_nothing_waits();
}

#[test]
fn a_connection_that_is_closed_while_its_batches_wait_leaves_nothing_behind() {
    let connections = |full: &mut Full| {
        let figures = full.figures();
        [0, 1].map(|shard| figures["shards"][shard]["executor_figures"]["connections"].as_u64().expect("a number"))
    };
    let mut full = Full::new(&[]);
    let before = (full.waiting().busy, connections(&mut full));
    let mut gone = full.serving.client(Some(0));
    let payload = batch(&[8; BODY]);
    let produce = full.produce(&payload);
    full.send_back(5, |_| {
        for _ in 0..5 {
            gone.send(&Request::Produce(produce));
        }
    });
    // It has a proxy at the other executor, too, and more is on its way to it than its socket takes: the reset that follows is
    // seen by both of its tasks.
    for _ in 0..8 {
        gone.subscribe(full.topic, full.queue);
    }
    drop(gone);
    let deadline = Instant::now() + PATIENCE;
    while connections(&mut full)[0] != before.1[0] {
        assert!(Instant::now() < deadline, "{:?}", before.1);
    }
    let after = full.waiting();
    assert_eq!((after.returned, after.bytes, after.busy), (0, 0, before.0), "they are forgotten, not answered in vain");
    while connections(&mut full) != before.1 {
        assert!(Instant::now() < deadline, "{:?}", before.1);
    }
}

#[test]
fn a_batch_that_comes_back_to_a_connection_that_is_gone_leaves_nothing_behind() {
    let mut full = Full::new(&[]);
    full.patient.store(true, Ordering::Relaxed);
    let near = (0..4).find(|&queue| shard_of_queue("full", QueueId(queue), 2) == ShardId(0)).expect("one of four");
    let connections =
        |full: &mut Full| full.figures()["shards"][0]["executor_figures"]["connections"].as_u64().expect("a number");
    let before = connections(&mut full);
    let mut gone = full.serving.client(Some(0));
    for _ in 0..50 {
        gone.subscribe(full.topic, near);
    }
    full.forwarded_held.store(true, Ordering::Relaxed);
    let payload = batch(&[8; BODY]);
    gone.send(&Request::Produce(full.produce(&payload)));
    full.until(|waiting| waiting.credit == 1);
    // More is on its way to it than its socket takes: the reset that follows is seen by its writer.
    let large = batch(&vec![8; 200_000]);
    for _ in 0..4 {
        let head = head(full.topic, near, DurableLevel::Memory, &large);
        let stored = full.observer.ask(&Request::Produce(Produce { head, payload: &large }));
        assert!(matches!(stored, Said::Stored(_)), "{stored:?}");
    }
    drop(gone);
    let deadline = Instant::now() + PATIENCE;
    while connections(&mut full) != before {
        assert!(Instant::now() < deadline, "it is still there");
    }
    full.forwarded_held.store(false, Ordering::Relaxed);
    full.until_nothing_waits();
}
