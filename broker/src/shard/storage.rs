//! Where a shard's log lies: on a file system and a tmpfs, or on a simulation's machine.

use crate::log::disk::simulated::{SimulatedDisk, SimulatedFile, SimulatedRing, SimulatedRings};
use crate::log::disk::tmpfs::{TmpfsRing, TmpfsRings};
use crate::log::disk::uring::{DirectBuffer, DirectBytes, UringDisk, UringFile};
use crate::log::disk::{Access, Disk, DiskFile, RingHost, RingMemory};
use crate::simulated::Scheduler;
use peregrine_protocol::ids::ShardId;
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::time::Duration;

/// One shard's directory.
#[derive(Clone)]
pub enum ShardDisk {
    Uring(UringDisk),
    Simulated(SimulatedDisk),
}

pub enum ShardFile {
    Uring(UringFile),
    Simulated(SimulatedFile),
}

pub enum ShardBuffer {
    Direct(DirectBuffer),
    Simulated(Vec<u8>),
}

pub enum ShardBytes {
    Direct(DirectBytes),
    Simulated(Vec<u8>),
}

impl ShardDisk {
    /// The shard's directory, or that of the simulation that this thread is in.
    pub fn open(directory: PathBuf, shard: ShardId) -> Self {
        let simulated = Scheduler::with_here(|scheduler| scheduler.machine().disk(usize::from(shard.0)));
        simulated.map_or_else(|| ShardDisk::Uring(UringDisk::new(directory)), ShardDisk::Simulated)
    }
}

impl Disk for ShardDisk {
    type File = ShardFile;
    type Buffer = ShardBuffer;

    fn buffer(&self, len: usize) -> ShardBuffer {
        match self {
            ShardDisk::Uring(disk) => ShardBuffer::Direct(disk.buffer(len)),
            ShardDisk::Simulated(disk) => ShardBuffer::Simulated(disk.buffer(len)),
        }
    }

    async fn list(&self) -> io::Result<Vec<String>> {
        match self {
            ShardDisk::Uring(disk) => disk.list().await,
            ShardDisk::Simulated(disk) => disk.list().await,
        }
    }

    async fn open(&self, name: &str, access: Access) -> io::Result<ShardFile> {
        match self {
            ShardDisk::Uring(disk) => disk.open(name, access).await.map(ShardFile::Uring),
            ShardDisk::Simulated(disk) => disk.open(name, access).await.map(ShardFile::Simulated),
        }
    }

    async fn create(&self, name: &str, size: u64) -> io::Result<ShardFile> {
        match self {
            ShardDisk::Uring(disk) => disk.create(name, size).await.map(ShardFile::Uring),
            ShardDisk::Simulated(disk) => disk.create(name, size).await.map(ShardFile::Simulated),
        }
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        match self {
            ShardDisk::Uring(disk) => disk.rename(from, to).await,
            ShardDisk::Simulated(disk) => disk.rename(from, to).await,
        }
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        match self {
            ShardDisk::Uring(disk) => disk.remove(name).await,
            ShardDisk::Simulated(disk) => disk.remove(name).await,
        }
    }

    async fn free_bytes(&self) -> io::Result<u64> {
        match self {
            ShardDisk::Uring(disk) => disk.free_bytes().await,
            ShardDisk::Simulated(disk) => disk.free_bytes().await,
        }
    }

    async fn sync_directory(&self) -> io::Result<()> {
        match self {
            ShardDisk::Uring(disk) => disk.sync_directory().await,
            ShardDisk::Simulated(disk) => disk.sync_directory().await,
        }
    }

    async fn pause(&self, rest: Duration) {
        match self {
            ShardDisk::Uring(disk) => disk.pause(rest).await,
            ShardDisk::Simulated(disk) => disk.pause(rest).await,
        }
    }
}

impl DiskFile for ShardFile {
    type Buffer = ShardBuffer;
    type Bytes = ShardBytes;

    fn size(&self) -> u64 {
        match self {
            ShardFile::Uring(file) => file.size(),
            ShardFile::Simulated(file) => file.size(),
        }
    }

    async fn extend(&self, size: u64) -> io::Result<()> {
        match self {
            ShardFile::Uring(file) => file.extend(size).await,
            ShardFile::Simulated(file) => file.extend(size).await,
        }
    }

    async fn write_at(&self, buffer: ShardBuffer, offset: u64) -> io::Result<()> {
        match (self, buffer) {
            (ShardFile::Uring(file), ShardBuffer::Direct(buffer)) => file.write_at(buffer, offset).await,
            (ShardFile::Simulated(file), ShardBuffer::Simulated(buffer)) => file.write_at(buffer, offset).await,
            _ => unreachable!("a buffer goes to a file of the disk that it comes from"),
        }
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<ShardBytes> {
        match self {
            ShardFile::Uring(file) => file.read_at(offset, len).await.map(ShardBytes::Direct),
            ShardFile::Simulated(file) => file.read_at(offset, len).await.map(ShardBytes::Simulated),
        }
    }

    async fn sync(&self) -> io::Result<()> {
        match self {
            ShardFile::Uring(file) => file.sync().await,
            ShardFile::Simulated(file) => file.sync().await,
        }
    }
}

impl Deref for ShardBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            ShardBuffer::Direct(buffer) => buffer,
            ShardBuffer::Simulated(buffer) => buffer,
        }
    }
}

impl DerefMut for ShardBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            ShardBuffer::Direct(buffer) => buffer,
            ShardBuffer::Simulated(buffer) => buffer,
        }
    }
}

impl Deref for ShardBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            ShardBytes::Direct(bytes) => bytes,
            ShardBytes::Simulated(bytes) => bytes,
        }
    }
}

/// Where staging rings live.
#[derive(Clone)]
pub enum ShardRings {
    Tmpfs(TmpfsRings),
    Simulated(SimulatedRings),
}

pub enum ShardRing {
    Tmpfs(TmpfsRing),
    Simulated(SimulatedRing),
}

impl ShardRings {
    /// This machine's, or those of the simulation that this thread is in.
    pub fn here() -> Self {
        let simulated = Scheduler::with_here(|scheduler| scheduler.machine().rings());
        simulated.map_or(ShardRings::Tmpfs(TmpfsRings), ShardRings::Simulated)
    }
}

impl RingHost for ShardRings {
    type Memory = ShardRing;

    fn open(&self, path: &str) -> io::Result<Option<ShardRing>> {
        match self {
            ShardRings::Tmpfs(rings) => Ok(rings.open(path)?.map(ShardRing::Tmpfs)),
            ShardRings::Simulated(rings) => Ok(rings.open(path)?.map(ShardRing::Simulated)),
        }
    }

    fn create(&self, path: &str, len: usize) -> io::Result<ShardRing> {
        match self {
            ShardRings::Tmpfs(rings) => rings.create(path, len).map(ShardRing::Tmpfs),
            ShardRings::Simulated(rings) => rings.create(path, len).map(ShardRing::Simulated),
        }
    }

    fn anonymous(&self, len: usize) -> io::Result<ShardRing> {
        match self {
            ShardRings::Tmpfs(rings) => rings.anonymous(len).map(ShardRing::Tmpfs),
            ShardRings::Simulated(rings) => rings.anonymous(len).map(ShardRing::Simulated),
        }
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        match self {
            ShardRings::Tmpfs(rings) => rings.remove(path),
            ShardRings::Simulated(rings) => rings.remove(path),
        }
    }
}

impl RingMemory for ShardRing {
    fn bytes(&self) -> &[u8] {
        match self {
            ShardRing::Tmpfs(ring) => ring.bytes(),
            ShardRing::Simulated(ring) => ring.bytes(),
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            ShardRing::Tmpfs(ring) => ring.bytes_mut(),
            ShardRing::Simulated(ring) => ring.bytes_mut(),
        }
    }

    fn store_u64(&mut self, offset: usize, value: u64) {
        match self {
            ShardRing::Tmpfs(ring) => ring.store_u64(offset, value),
            ShardRing::Simulated(ring) => ring.store_u64(offset, value),
        }
    }

    fn resize(&mut self, len: usize) -> io::Result<()> {
        match self {
            ShardRing::Tmpfs(ring) => ring.resize(len),
            ShardRing::Simulated(ring) => ring.resize(len),
        }
    }
}
