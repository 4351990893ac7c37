//! Who is served by an executor: its connections, and proxies of connections that another executor holds.
//!
//! A peer is named by a number that is never used again: the slot in the table and the slot's generation. What comes late for
//! one that is gone (an acknowledgement, an answer over the mesh) finds nothing.

use crate::shard::connection::Connection;
use crate::shard::connection::outlet::Outlet;
use crate::shard::proxy::Proxy;
use std::cell::RefCell;
use std::rc::Rc;

/// Names a peer within its executor, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerId(pub u64);

impl PeerId {
    fn new(slot: usize, generation: u32) -> Self {
        PeerId(u64::from(generation) << 32 | slot as u64)
    }

    fn slot(self) -> usize {
        self.0 as u32 as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// One that is served.
#[derive(Clone)]
pub enum Peer {
    Connection(Rc<Connection>),
    Proxy(Rc<Proxy>),
}

impl Peer {
    pub fn outlet(&self) -> &Outlet {
        match self {
            Peer::Connection(connection) => &connection.outlet,
            Peer::Proxy(proxy) => &proxy.outlet,
        }
    }
}

#[derive(Default)]
struct Table {
    slots: Vec<(u32, Option<Peer>)>,
    free: Vec<usize>,
}

/// The table of an executor's peers.
#[derive(Default)]
pub struct Peers {
    table: RefCell<Table>,
}

impl Peers {
    /// Adds the peer that `make` makes for its number.
    pub fn add(&self, make: impl FnOnce(PeerId) -> Peer) -> PeerId {
        let mut table = self.table.borrow_mut();
        let slot = table.free.pop().unwrap_or_else(|| {
            table.slots.push((0, None));
            table.slots.len() - 1
        });
        let id = PeerId::new(slot, table.slots[slot].0);
        table.slots[slot].1 = Some(make(id));
        id
    }

    pub fn get(&self, id: PeerId) -> Option<Peer> {
        let table = self.table.borrow();
        let (generation, peer) = table.slots.get(id.slot())?;
        if *generation == id.generation() { peer.clone() } else { None }
    }

    pub fn connection(&self, id: PeerId) -> Option<Rc<Connection>> {
        match self.get(id) {
            Some(Peer::Connection(connection)) => Some(connection),
            _ => None,
        }
    }

    pub fn remove(&self, id: PeerId) -> Option<Peer> {
        let mut table = self.table.borrow_mut();
        let (generation, peer) = table.slots.get_mut(id.slot())?;
        if *generation != id.generation() {
            return None;
        }
        let removed = peer.take()?;
        *generation = generation.wrapping_add(1);
        table.free.push(id.slot());
        Some(removed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        let table = self.table.borrow();
        table.slots.len() - table.free.len()
    }

    /// Deliveries and fetches that wait until their peers take them.
    pub fn held(&self) -> usize {
        let table = self.table.borrow();
        table.slots.iter().filter_map(|(_, peer)| peer.as_ref()).map(|peer| peer.outlet().held.borrow().len()).sum()
    }

    /// The peer in the n-th slot; for the sweeper, which looks at all of them slot by slot.
    pub fn at(&self, slot: usize) -> Option<Peer> {
        self.table.borrow().slots.get(slot).and_then(|(_, peer)| peer.clone())
    }

    pub fn slots(&self) -> usize {
        self.table.borrow().slots.len()
    }
}
