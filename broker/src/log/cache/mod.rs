//! The block cache of a shard: what was read from its files, for whoever wants it next. Consumers that follow each other through old
//! messages, and look-ups in the indexes of segments, share it.
//!
//! ```text
//!   read ──► new (first in, first out) ──► gone
//!                 └─ wanted again ──► kept (least recently wanted first) ──► gone
//! ```
//!
//! - A block is what one read brought, from wherever its reader stood: a reader that follows another one begins each block where the
//!   first did, so that no entry ever lies across two.
//! - A replay wants each block once. Its blocks pass through the new ones and push out none that was wanted twice, as long as the new
//!   ones hold more than their share.
//! - Who wants a block that is just being read waits for that read. A failed one is told to its reader alone: the others try themselves.
//! - A block in use is never dropped from memory; where only such blocks are left, what is read is handed out and not kept.
//!
//! The bytes are plain memory: the executor's registered memory is for what is in flight. A crash loses nothing.

mod blocks;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::future::poll_fn;
use std::ops::{Deref, Range};
use std::rc::Rc;
use std::task::{Poll, Waker};

use peregrine_protocol::ids::LogPosition;

use blocks::{Blocks, Found};

/// What the addresses of blocks count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    /// Positions of the log: no two segments share one.
    Log,
    /// Bytes of the index of the segment with this base.
    Index(LogPosition),
}

/// A shard's cache; clones are the same one.
#[derive(Clone, Debug)]
pub struct BlockCache {
    blocks: Rc<RefCell<Blocks>>,
}

/// Counts since the start, and what is held now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounters {
    pub hits: u64,
    pub misses: u64,
    /// Hits that waited for a read of another.
    pub joined: u64,
    pub bytes: usize,
}

/// Bytes of a block from the address on that was asked for, to the block's end. As long as it lives, so does the block.
#[derive(Clone, Debug)]
pub struct Pinned {
    block: Rc<[u8]>,
    skip: usize,
}

impl Deref for Pinned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.block[self.skip..]
    }
}

impl BlockCache {
    /// A cache that keeps at most so many bytes of blocks.
    pub fn new(bytes: usize) -> Self {
        Self { blocks: Rc::new(RefCell::new(Blocks::new(bytes))) }
    }

    pub fn counters(&self) -> CacheCounters {
        self.blocks.borrow().counters()
    }

    /// The bytes at `need`, and what follows them in their block. Where no block has them, `read` brings those at `block`, which `need`
    /// lies in; it may bring fewer, as long as it brings `need`.
    pub async fn get<E>(
        &self,
        space: Space,
        need: Range<u64>,
        block: Range<u64>,
        read: impl AsyncFnOnce() -> Result<Rc<[u8]>, E>,
    ) -> Result<Pinned, E> {
        assert!(block.start <= need.start && need.end <= block.end, "a block holds what its reader needs");
        let mut joined = false;
        loop {
            // No borrow may last across the wait.
            let found = self.blocks.borrow_mut().find(space, &need, joined);
            match found {
                Found::Block(pinned) => return Ok(pinned),
                Found::Loading(number) => self.loaded(number).await,
                Found::Nothing => break,
            }
            joined = true;
        }
        let loading = Loading { cache: self, number: self.blocks.borrow_mut().begin(space, block.clone()) };
        let bytes = read().await?;
        assert!(block.start + bytes.len() as u64 >= need.end, "a read brings what was needed");
        let skip = (need.start - block.start) as usize;
        self.blocks.borrow_mut().keep(loading.number, &bytes);
        Ok(Pinned { block: bytes, skip })
    }

    /// Drops all blocks that hold anything of `addresses`; what is being read of them is not kept. For files that are retired: whoever
    /// uses such a block has it until then.
    pub fn forget(&self, space: Space, addresses: &Range<u64>) {
        self.blocks.borrow_mut().forget(space, addresses);
    }

    /// Ready when that read has ended, however.
    async fn loaded(&self, number: u64) {
        poll_fn(|context| match self.blocks.borrow_mut().waiters(number) {
            None => Poll::Ready(()),
            Some(waiters) => {
                if !waiters.iter().any(|waker| waker.will_wake(context.waker())) {
                    waiters.push(context.waker().clone());
                }
                Poll::Pending
            }
        })
        .await;
    }
}

/// A read under way; those who wait are woken when it ends, also where it is given up.
struct Loading<'a> {
    cache: &'a BlockCache,
    number: u64,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let waiters = self.cache.blocks.borrow_mut().end(self.number);
        waiters.into_iter().for_each(Waker::wake);
    }
}
