//! The [`Disk`] and [`DiskFile`] of a simulated machine. Contract breaches of the caller (an unaligned offset, a write past the
//! end, a write through a descriptor opened for reading) panic: on a real disk they would be errors or, worse, work.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use super::directory::Inode;
use super::file::blocks_of;
use super::machine::Machine;
use super::operation::{Answer, Request};
use crate::log::disk::whole::{Whole, read_whole};
use crate::log::disk::{Access, BLOCK, Disk, DiskFile};

/// One shard's directory on the simulated disk.
#[derive(Clone)]
pub struct SimulatedDisk {
    machine: Machine,
    shard: usize,
}

/// An open file of it.
pub struct SimulatedFile {
    disk: SimulatedDisk,
    inode: Inode,
    size: Cell<u64>,
    access: Access,
}

impl SimulatedDisk {
    pub(super) fn new(machine: Machine, shard: usize) -> Self {
        Self { machine, shard }
    }

    async fn request(&self, request: Request) -> io::Result<Answer> {
        self.machine.submit(self.shard, request).await
    }

    async fn file(&self, request: Request, access: Access) -> io::Result<SimulatedFile> {
        match self.request(request).await? {
            Answer::File { inode, size } => {
                Ok(SimulatedFile { disk: self.clone(), inode, size: Cell::new(size), access })
            }
            other => panic!("opened a file and got {other:?}"),
        }
    }
}

impl Disk for SimulatedDisk {
    type File = SimulatedFile;
    type Buffer = Vec<u8>;

    fn buffer(&self, len: usize) -> Vec<u8> {
        assert!(len.is_multiple_of(BLOCK), "a buffer of {len} bytes, not whole blocks");
        // Unspecified contents must not look like zeros, or a caller that forgets to fill them would pass.
        vec![0xA5; len]
    }

    async fn list(&self) -> io::Result<Vec<String>> {
        match self.request(Request::List).await? {
            Answer::Names(names) => Ok(names),
            other => panic!("listed a directory and got {other:?}"),
        }
    }

    async fn open(&self, name: &str, access: Access) -> io::Result<SimulatedFile> {
        self.file(Request::Open { name: name.to_owned() }, access).await
    }

    async fn create(&self, name: &str, size: u64) -> io::Result<SimulatedFile> {
        assert!(size.is_multiple_of(BLOCK as u64), "a file of {size} bytes, not whole blocks");
        self.file(Request::Make { name: name.to_owned(), size }, Access::Prepare).await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.request(Request::Rename { from: from.to_owned(), to: to.to_owned() }).await.map(drop)
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.request(Request::Remove { name: name.to_owned() }).await.map(drop)
    }

    async fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.machine.world().conditions.free_bytes)
    }

    async fn sync_directory(&self) -> io::Result<()> {
        let serial = self.machine.world().serial();
        self.request(Request::SyncDirectory { serial }).await.map(drop)
    }

    async fn pause(&self, rest: Duration) {
        let nanoseconds = rest.as_nanos() as u64;
        // A pause has no way to fail.
        let _ = self.request(Request::Pause { nanoseconds }).await;
    }
}

impl DiskFile for SimulatedFile {
    type Buffer = Vec<u8>;
    type Bytes = Vec<u8>;

    fn size(&self) -> u64 {
        self.size.get()
    }

    async fn extend(&self, size: u64) -> io::Result<()> {
        assert!(size.is_multiple_of(BLOCK as u64) && size >= self.size(), "a file grows by whole blocks");
        self.disk.request(Request::Extend { inode: self.inode, size }).await?;
        self.size.set(size);
        Ok(())
    }

    async fn write_at(&self, buffer: Vec<u8>, offset: u64) -> io::Result<()> {
        assert!(self.access != Access::Read, "a write through a descriptor opened for reading");
        assert!(offset.is_multiple_of(BLOCK as u64), "a direct write at {offset}, not a block boundary");
        let end = offset + buffer.len() as u64;
        assert!(end <= self.size(), "a write up to {end} in a file of {} bytes", self.size());
        let blocks = blocks_of(&buffer, &self.disk.machine.world().zero);
        let first = offset as usize / BLOCK;
        let durable = self.access == Access::Append;
        self.disk.request(Request::Write { inode: self.inode, first, blocks, durable }).await.map(drop)
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        assert!(offset.is_multiple_of(BLOCK as u64), "a direct read at {offset}, not a block boundary");
        assert!(len.is_multiple_of(BLOCK), "a direct read of {len} bytes, not whole blocks");
        let left = self.size().saturating_sub(offset);
        let read = async |offset, len| match self.disk.request(Request::Read { inode: self.inode, offset, len }).await?
        {
            Answer::Bytes(bytes) => Ok(bytes),
            other => panic!("read a file and got {other:?}"),
        };
        Ok(match read_whole(offset, len, left, read).await? {
            Whole::Single(mut bytes, known) => {
                bytes.truncate(known);
                bytes
            }
            Whole::Joined(bytes) => bytes,
        })
    }

    async fn sync(&self) -> io::Result<()> {
        let serial = self.disk.machine.world().serial();
        self.disk.request(Request::Sync { inode: self.inode, serial }).await.map(drop)
    }
}
