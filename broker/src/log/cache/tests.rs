//! The cache alone, over reads that are counted.

use std::cell::Cell;
use std::convert::Infallible;
use std::pin::pin;
use std::task::{Context, Waker};

use futures_lite::future::block_on;

use super::*;

const BLOCK: u64 = 100;

/// Bytes that say where they stand.
fn bytes(block: &Range<u64>) -> Rc<[u8]> {
    block.clone().map(|at| at as u8).collect()
}

struct Bench {
    cache: BlockCache,
    reads: Cell<u64>,
}

impl Bench {
    fn new(blocks: usize) -> Self {
        Self { cache: BlockCache::new(blocks * BLOCK as usize), reads: Cell::new(0) }
    }

    /// Wants ten bytes at `at`; where they have to be read, a block from there on.
    fn want(&self, space: Space, at: u64) -> Pinned {
        let block = at..at + BLOCK;
        let read = async || {
            self.reads.set(self.reads.get() + 1);
            Ok::<_, Infallible>(bytes(&block))
        };
        let Ok(pinned) = block_on(self.cache.get(space, at..at + 10, block.clone(), read));
        assert_eq!(pinned[..10], bytes(&(at..at + 10))[..]);
        assert!(self.cache.counters().bytes <= self.cache.blocks.borrow().max());
        pinned
    }

    fn reads_for(&self, space: Space, at: u64) -> u64 {
        let before = self.reads.get();
        self.want(space, at);
        self.reads.get() - before
    }
}

#[test]
fn what_a_block_holds_is_read_once() {
    let bench = Bench::new(4);
    assert_eq!(bench.want(Space::Log, 1000).len(), 100);
    assert_eq!(bench.want(Space::Log, 1050).len(), 50);
    assert_eq!(bench.want(Space::Log, 1090).len(), 10);
    assert_eq!(bench.reads.get(), 1);
    // It lies across the end: read from there on.
    bench.want(Space::Log, 1091);
    assert_eq!(bench.reads_for(Space::Index(LogPosition(0)), 1000), 1, "another file's bytes");
    assert_eq!(bench.cache.counters(), CacheCounters { hits: 2, misses: 3, joined: 0, bytes: 300 });
}

#[test]
fn a_replay_pushes_out_nothing_that_others_share() {
    let bench = Bench::new(8);
    let index = Space::Index(LogPosition(0));
    for at in [0, 100, 200] {
        bench.want(index, at);
        bench.want(index, at);
    }
    (0..1000).for_each(|block| drop(bench.want(Space::Log, block * BLOCK)));
    assert_eq!([0, 100, 200].map(|at| bench.reads_for(index, at)), [0; 3]);
    assert_eq!(bench.reads_for(Space::Log, 0), 1);
}

#[test]
fn of_blocks_wanted_again_the_one_wanted_longest_ago_goes_first() {
    let bench = Bench::new(4);
    for at in [0, 100, 200, 300] {
        bench.want(Space::Log, at);
        bench.want(Space::Log, at);
    }
    bench.want(Space::Log, 0);
    // New ones have a quarter: room for one is made by the oldest kept one.
    bench.want(Space::Log, 1000);
    bench.want(Space::Log, 2000);
    assert_eq!([0, 200, 300].map(|at| bench.reads_for(Space::Log, at)), [0; 3]);
    assert_eq!([100, 1000].map(|at| bench.reads_for(Space::Log, at)), [1; 2]);
}

#[test]
fn a_block_in_use_stays_and_the_bound_holds() {
    let bench = Bench::new(2);
    let used: Vec<_> = [0, 100].map(|at| bench.want(Space::Log, at)).into();
    assert_eq!([300, 300].map(|at| bench.reads_for(Space::Log, at)), [1; 2], "there is no room to keep it");
    assert_eq!([0, 100].map(|at| bench.reads_for(Space::Log, at)), [0; 2]);
    drop(used);
    assert_eq!([300, 300].map(|at| bench.reads_for(Space::Log, at)), [1, 0]);
}

/// Polls once.
fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// A read that ends when it is told to, and how.
async fn held(answer: &Cell<Option<Result<(), &'static str>>>, block: Range<u64>) -> Result<Rc<[u8]>, &'static str> {
    poll_fn(|_| answer.get().map_or(Poll::Pending, Poll::Ready)).await.map(|()| bytes(&block))
}

#[test]
fn several_readers_of_a_spot_cost_one_read() {
    let cache = BlockCache::new(1000);
    let (answer, reads) = (Cell::new(None), Cell::new(0));
    let want = |at: u64| {
        let (cache, answer, reads) = (&cache, &answer, &reads);
        Box::pin(async move {
            let read = async || {
                reads.set(reads.get() + 1);
                held(answer, at..at + BLOCK).await
            };
            cache.get(Space::Log, at..at + 10, at..at + BLOCK, read).await
        })
    };
    let mut readers: Vec<_> = [500, 500, 520, 590].map(want).into();
    assert!(readers.iter_mut().all(|reader| poll(reader).is_pending()));
    answer.set(Some(Ok(())));
    for (reader, at) in readers.iter_mut().zip([500_u64, 500, 520, 590]) {
        let Poll::Ready(Ok(pinned)) = poll(reader) else { panic!("it was read") };
        assert_eq!(pinned[..10], bytes(&(at..at + 10))[..]);
    }
    assert_eq!(reads.get(), 1);
    assert_eq!(cache.counters().joined, 3);
}

#[test]
fn a_failed_read_is_its_readers_alone_and_is_not_kept() {
    let cache = BlockCache::new(1000);
    let first = Cell::new(None);
    let mut failing = pin!(cache.get(Space::Log, 0..10, 0..100, async || held(&first, 0..100).await));
    assert!(poll(&mut failing).is_pending());
    let mut second = pin!(cache.get(Space::Log, 0..10, 0..100, async || Ok::<_, &str>(bytes(&(0..100)))));
    assert!(poll(&mut second).is_pending(), "it waits for the first one's read");
    first.set(Some(Err("the disk failed")));
    assert!(matches!(poll(&mut failing), Poll::Ready(Err("the disk failed"))));
    assert!(matches!(poll(&mut second), Poll::Ready(Ok(_))), "it has read itself");
}

#[test]
fn a_read_that_is_given_up_lets_the_next_one_read() {
    let cache = BlockCache::new(1000);
    let never = Cell::new(None);
    let mut given_up = Box::pin(cache.get(Space::Log, 0..10, 0..100, async || held(&never, 0..100).await));
    assert!(poll(&mut given_up).is_pending());
    let mut next = pin!(cache.get(Space::Log, 0..10, 0..100, async || Ok::<_, &str>(bytes(&(0..100)))));
    assert!(poll(&mut next).is_pending());
    drop(given_up);
    assert!(matches!(poll(&mut next), Poll::Ready(Ok(_))));
}

#[test]
fn what_is_retired_is_dropped_also_while_it_is_read() {
    let bench = Bench::new(8);
    for at in [0, 100, 200] {
        bench.want(Space::Log, at);
    }
    bench.cache.forget(Space::Log, &(50..101));
    assert_eq!([0, 100, 200].map(|at| bench.reads_for(Space::Log, at)), [1, 1, 0]);
    bench.cache.forget(Space::Log, &(0..1000));
    assert_eq!(bench.cache.counters().bytes, 0);

    let answer = Cell::new(None);
    let mut reading = pin!(bench.cache.get(Space::Log, 0..10, 0..100, async || held(&answer, 0..100).await));
    assert!(poll(&mut reading).is_pending());
    bench.cache.forget(Space::Log, &(0..10));
    answer.set(Some(Ok(())));
    assert!(matches!(poll(&mut reading), Poll::Ready(Ok(_))), "who began to read has it");
    assert_eq!(bench.cache.counters().bytes, 0);
}
