//! The simulated tmpfs: ring files that a kill leaves as they stood at that instruction and a power cut takes away.

use std::io;

use peregrine_protocol::ids::{Epoch, ShardId};

use super::machine::Machine;
use crate::log::disk::{RingHost, RingMemory};
use crate::log::ring::{PageState, StoredPositions};

/// A ring file by its path.
pub(super) struct RingFile {
    inode: u64,
    /// Taken while a process has the file mapped and locked.
    bytes: Option<Vec<u8>>,
}

/// The tmpfs of a simulated machine.
#[derive(Clone)]
pub struct SimulatedRings {
    machine: Machine,
}

/// A mapped ring; dropping it unmaps it and releases its lock.
pub struct SimulatedRing {
    machine: Machine,
    /// None for anonymous memory.
    path: Option<String>,
    /// Tells the file from a later one at the same path.
    inode: u64,
    bytes: Vec<u8>,
    /// The run that has set it up.
    in_use: Option<(ShardId, Epoch)>,
}

impl SimulatedRings {
    pub(super) fn new(machine: Machine) -> Self {
        Self { machine }
    }

    /// Changes a ring file behind the broker's back, as a fault that no crash could make.
    pub fn meddle(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        match self.machine.world().rings.get_mut(path).and_then(|file| file.bytes.as_mut()) {
            Some(bytes) => {
                change(bytes);
                true
            }
            None => false,
        }
    }

    /// Takes a ring file that no process holds away behind the broker's back; `None` where there is none.
    pub fn take(&self, path: &str) -> Option<Vec<u8>> {
        let mut world = self.machine.world();
        world.rings.get(path)?.bytes.as_ref()?;
        world.rings.remove(path)?.bytes
    }

    /// Puts a ring file there behind the broker's back, in the place of any other.
    pub fn put(&self, path: &str, bytes: Vec<u8>) {
        let mut world = self.machine.world();
        let inode = world.next_inode();
        world.rings.insert(path.to_owned(), RingFile { inode, bytes: Some(bytes) });
    }

    fn grow(&self, path: &str, len: usize) {
        if let Some(RingFile { bytes: Some(bytes), .. }) = self.machine.world().rings.get_mut(path) {
            bytes.resize(len, 0);
        }
    }
}

impl SimulatedRing {
    /// Tells the machine what the page says now, for its watch over the log's promises. Only the run that stored the magic
    /// is watched: what a ring was left with may be torn.
    fn tell(&mut self) {
        let ready = match PageState::read(&self.bytes) {
            Ok(PageState::Ready { page, .. }) => Some(page),
            _ => None,
        };
        let mut world = self.machine.world();
        match (ready, self.in_use) {
            (Some(page), _) => {
                let run = (page.shard, page.epoch);
                self.in_use = Some(run);
                world.rings_in_use.insert(run, (page, StoredPositions::read(&self.bytes)));
            }
            (None, Some(run)) => {
                world.rings_in_use.remove(&run);
                self.in_use = None;
            }
            (None, None) => {}
        }
    }
}

impl RingHost for SimulatedRings {
    type Memory = SimulatedRing;

    fn open(&self, path: &str) -> io::Result<Option<SimulatedRing>> {
        self.machine.step();
        let mut world = self.machine.world();
        world.ring_fails()?;
        let Some(file) = world.rings.get_mut(path) else { return Ok(None) };
        let inode = file.inode;
        let bytes = file.bytes.take().ok_or_else(|| io::Error::new(io::ErrorKind::WouldBlock, path.to_owned()))?;
        drop(world);
        Ok(Some(SimulatedRing {
            machine: self.machine.clone(),
            path: Some(path.to_owned()),
            inode,
            bytes,
            in_use: None,
        }))
    }

    fn create(&self, path: &str, len: usize) -> io::Result<SimulatedRing> {
        self.machine.step();
        let mut world = self.machine.world();
        world.ring_fails()?;
        if world.rings.contains_key(path) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, path.to_owned()));
        }
        let inode = world.next_inode();
        world.rings.insert(path.to_owned(), RingFile { inode, bytes: Some(Vec::new()) });
        drop(world);
        // A kill may find the file empty, cut short, or whole and zero.
        self.machine.step();
        self.grow(path, len / 2);
        self.machine.step();
        self.grow(path, len);
        let opened = self.open(path)?;
        opened.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, path.to_owned()))
    }

    fn anonymous(&self, len: usize) -> io::Result<SimulatedRing> {
        Ok(SimulatedRing { machine: self.machine.clone(), path: None, inode: 0, bytes: vec![0; len], in_use: None })
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.machine.step();
        self.machine.world().ring_fails()?;
        let removed = self.machine.world().rings.remove(path);
        removed.map(drop).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, path.to_owned()))
    }
}

impl RingMemory for SimulatedRing {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.machine.step();
        &mut self.bytes
    }

    fn store_u64(&mut self, offset: usize, value: u64) {
        self.machine.step();
        self.bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        self.tell();
    }

    fn resize(&mut self, len: usize) -> io::Result<()> {
        self.machine.step();
        self.machine.world().ring_fails()?;
        let (shorter, longer) = (self.bytes.len().min(len), self.bytes.len().max(len));
        let halfway = self.machine.world().random.between(shorter as u64, longer as u64) as usize;
        self.bytes.resize(halfway, 0);
        self.machine.step();
        self.bytes.resize(len, 0);
        Ok(())
    }
}

impl Drop for SimulatedRing {
    fn drop(&mut self) {
        let mut world = self.machine.world();
        if let Some(run) = self.in_use {
            world.rings_in_use.remove(&run);
        }
        let Some(path) = &self.path else { return };
        if let Some(file) = world.rings.get_mut(path)
            && file.inode == self.inode
        {
            file.bytes = Some(std::mem::take(&mut self.bytes));
        }
    }
}
