//! A message's way through a shard that serves sockets allocates nothing: what is allocated is the runtime's, per turn and per
//! flush, and so the same for a turn with 16 messages as for one with 64.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use peregrine_broker::{control, shard};
use peregrine_protocol::frame::{self, Received};
use peregrine_protocol::ids::{Correlation, DurableLevel, TopicId};
use peregrine_protocol::message::{Produce, Request};
use serving::{Client, batch, head, serve, settings};

#[allow(dead_code, reason = "the shards' own tests use all of it")]
#[path = "../src/shard/tests/serving.rs"]
mod serving;

struct Counting;

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whether this thread is an executor; `None` until it was looked up.
    static EXECUTOR: Cell<Option<bool>> = const { Cell::new(None) };
}

fn count() {
    if COUNTING.load(Ordering::Relaxed) && EXECUTOR.try_with(is_executor).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

fn is_executor(known: &Cell<Option<bool>>) -> bool {
    known.get().unwrap_or_else(|| {
        let mut name = [0_u8; 16];
        // SAFETY: the buffer is as long as the call is told; the name in it ends with a zero.
        let result = unsafe { libc::pthread_getname_np(libc::pthread_self(), name.as_mut_ptr().cast(), name.len()) };
        let executor = result == 0 && name.starts_with(b"shard-");
        known.set(Some(executor));
        executor
    })
}

// SAFETY: every call is handed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROUNDS: u64 = 300;

/// Allocations of the executor while it takes `ROUNDS` times `messages` messages, each round in one write, and delivers them.
fn allocations(client: &mut Client, topic: TopicId, messages: u64) -> u64 {
    use std::io::Write;
    let payload = batch(&[7; 100]);
    let mut bytes = Vec::new();
    for _ in 0..messages {
        let produce = Produce { head: head(topic, 0, DurableLevel::Memory, &payload), payload: &payload };
        Request::Produce(produce).encode(Correlation(9), &mut bytes);
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..ROUNDS {
        client.socket.write_all(&bytes).expect("send");
        // One acknowledgement and one delivery for each message.
        for _ in 0..2 * messages {
            let frame = client.receive_frame();
            assert!(matches!(frame::decode(&frame, u32::MAX), Ok(Received::Frame(_))));
        }
    }
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

#[test]
fn a_message_allocates_nothing() {
    let data = tempfile::tempdir().expect("a directory");
    let rings = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
    let serving = serve(&settings(data.path(), rings.path(), 1));
    let mut client = serving.client(None);
    let topic = client.create("allocations", 1);
    client.subscribe(topic, 0);
    COUNTING.store(true, Ordering::Relaxed);
    // What grows to its size does so first.
    allocations(&mut client, topic, 64);
    let (few, many) = (allocations(&mut client, topic, 16), allocations(&mut client, topic, 64));
    COUNTING.store(false, Ordering::Relaxed);
    let each = (many as f64 - few as f64) / (ROUNDS * 48) as f64;
    println!("{few} allocations for {ROUNDS} × 16 messages, {many} for {ROUNDS} × 64: {each:.3} for each message");
    // The index's chunk for every 64 batches, and what a second turn in a round brings with it.
    assert!(each < 0.15, "{each} allocations for each message");
    assert!(serving.stop().is_ok());
}
