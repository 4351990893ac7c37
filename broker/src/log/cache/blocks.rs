//! Which blocks are kept, in which order they go, and which reads are under way. No I/O.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::task::Waker;

use super::{CacheCounters, Pinned, Space};

/// New blocks are pushed out first while they hold more than one part in so many of the whole.
const NEW_SHARE: usize = 4;

/// A block by its first address.
type Key = (Space, u64);

#[derive(Debug)]
struct Block {
    bytes: Rc<[u8]>,
    /// Wanted more than once.
    kept: bool,
}

/// A read under way.
#[derive(Debug)]
struct Load {
    space: Space,
    addresses: Range<u64>,
    waiters: Vec<Waker>,
    /// What it reads was retired meanwhile.
    forgotten: bool,
}

/// What is known of an address.
#[derive(Debug)]
pub(super) enum Found {
    Block(Pinned),
    /// A read that will bring it.
    Loading(u64),
    Nothing,
}

#[derive(Debug)]
pub(super) struct Blocks {
    max: usize,
    bytes: usize,
    new_bytes: usize,
    by_start: BTreeMap<Key, Block>,
    /// The next to go is in front. Each block stands in one of the two.
    new: VecDeque<Key>,
    kept: VecDeque<Key>,
    loads: BTreeMap<u64, Load>,
    next_load: u64,
    counters: CacheCounters,
}

impl Blocks {
    pub fn new(max: usize) -> Self {
        Self {
            max,
            bytes: 0,
            new_bytes: 0,
            by_start: BTreeMap::new(),
            new: VecDeque::new(),
            kept: VecDeque::new(),
            loads: BTreeMap::new(),
            next_load: 0,
            counters: CacheCounters::default(),
        }
    }

    #[cfg(test)]
    pub fn max(&self) -> usize {
        self.max
    }

    pub fn counters(&self) -> CacheCounters {
        CacheCounters { bytes: self.bytes, ..self.counters }
    }

    /// Looks for all of `need`; a block that is found counts as wanted again. `joined`: after a wait for somebody's read.
    pub fn find(&mut self, space: Space, need: &Range<u64>, joined: bool) -> Found {
        let below = self.by_start.range_mut((space, 0)..=(space, need.start)).next_back();
        if let Some((&key, block)) = below
            && key.1 + block.bytes.len() as u64 >= need.end
        {
            let pinned = Pinned { block: Rc::clone(&block.bytes), skip: (need.start - key.1) as usize };
            let (was_kept, len) = (std::mem::replace(&mut block.kept, true), block.bytes.len());
            if self.kept.back() != Some(&key) {
                let queue = if was_kept { &mut self.kept } else { &mut self.new };
                queue.retain(|other| *other != key);
                self.kept.push_back(key);
            }
            self.new_bytes -= if was_kept { 0 } else { len };
            self.counters.hits += 1;
            self.counters.joined += u64::from(joined);
            return Found::Block(pinned);
        }
        let holds = |load: &Load| {
            load.space == space
                && load.addresses.start <= need.start
                && need.end <= load.addresses.end
                && !load.forgotten
        };
        match self.loads.iter().find(|(_, load)| holds(load)) {
            Some((&number, _)) => Found::Loading(number),
            None => Found::Nothing,
        }
    }

    /// Begins a read.
    pub fn begin(&mut self, space: Space, addresses: Range<u64>) -> u64 {
        self.counters.misses += 1;
        let number = self.next_load;
        self.next_load += 1;
        self.loads.insert(number, Load { space, addresses, waiters: Vec::new(), forgotten: false });
        number
    }

    /// Who waits for that read; `None` where it has ended.
    pub fn waiters(&mut self, number: u64) -> Option<&mut Vec<Waker>> {
        self.loads.get_mut(&number).map(|load| &mut load.waiters)
    }

    /// Ends a read: who waited for it.
    pub fn end(&mut self, number: u64) -> Vec<Waker> {
        self.loads.remove(&number).map_or(Vec::new(), |load| load.waiters)
    }

    /// Keeps what a read brought, if there is room or room can be made.
    pub fn keep(&mut self, number: u64, bytes: &Rc<[u8]>) {
        let Some(load) = self.loads.get(&number).filter(|load| !load.forgotten) else { return };
        let key = (load.space, load.addresses.start);
        // One that began there and was too short.
        self.remove(key);
        if !self.make_room(bytes.len()) {
            return;
        }
        self.bytes += bytes.len();
        self.new_bytes += bytes.len();
        self.new.push_back(key);
        self.by_start.insert(key, Block { bytes: Rc::clone(bytes), kept: false });
    }

    pub fn forget(&mut self, space: Space, addresses: &Range<u64>) {
        let hit = |start: u64, len: u64| start < addresses.end && start + len > addresses.start;
        let blocks = self.by_start.range((space, 0)..(space, addresses.end));
        let gone: Vec<Key> =
            blocks.filter(|(key, block)| hit(key.1, block.bytes.len() as u64)).map(|(key, _)| *key).collect();
        for key in gone {
            self.remove(key);
        }
        for load in self.loads.values_mut().filter(|load| load.space == space) {
            load.forgotten |= hit(load.addresses.start, load.addresses.end - load.addresses.start);
        }
    }

    fn make_room(&mut self, len: usize) -> bool {
        while self.bytes + len > self.max {
            let new_first = self.new_bytes + len > self.max / NEW_SHARE;
            let order = if new_first { [&self.new, &self.kept] } else { [&self.kept, &self.new] };
            let in_use = |key: &Key| self.by_start.get(key).is_some_and(|block| Rc::strong_count(&block.bytes) > 1);
            let Some(victim) = order.into_iter().flatten().find(|key| !in_use(key)) else { return false };
            let victim = *victim;
            self.remove(victim);
        }
        true
    }

    fn remove(&mut self, key: Key) {
        let Some(block) = self.by_start.remove(&key) else { return };
        self.bytes -= block.bytes.len();
        if block.kept {
            self.kept.retain(|other| *other != key);
        } else {
            self.new_bytes -= block.bytes.len();
            self.new.retain(|other| *other != key);
        }
    }
}
