//! The log's whole view of storage, as traits: one implementation drives io_uring through glommio, the other is a
//! deterministic simulated disk with crashes. Nothing in `log` touches a file in any other way.
//!
//! Names are relative to the shard's directory and hold no `/`. Offsets and lengths of direct reads and writes are multiples
//! of [`BLOCK`]; buffers come from [`Disk::buffer`] and satisfy the alignment that direct I/O wants.
//!
//! The durability contract, which every implementation is tested against:
//! - A `write_at` to a file opened with [`Access::Append`] (O_DIRECT + O_DSYNC) that returned Ok survives power loss.
//! - A `write_at` to a file opened with [`Access::Prepare`] (O_DIRECT, no O_DSYNC) survives only once a later `sync` returned Ok.
//! - A name made by `create` or `rename`, or taken away by `remove`, is durable only once a later `sync_directory` returned Ok.
//! - A dropped or failed write may still land, also after a restart of the process (never after a restart of the machine).
//! - A `sync` covers every write to the file that returned before it was called, whoever made it: bytes that an earlier
//!   process left in the device's cache too.
//! - Nothing is said of order between writes in flight together.

pub mod simulated;
#[cfg(test)]
pub mod tests;
pub mod tmpfs;
pub mod uring;
mod whole;

use std::future::Future;
use std::io;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

/// The unit of direct I/O, bytes.
pub const BLOCK: usize = 4096;

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Direct reads only.
    Read,
    /// Direct writes that are durable one by one (O_DIRECT + O_DSYNC), and reads.
    Append,
    /// Direct writes that a later `sync` makes durable together, and reads.
    Prepare,
}

/// Whether an operation failed for want of space, and may succeed once there is some.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// One shard's directory on the data disk.
pub trait Disk: Clone + 'static {
    type File: DiskFile<Buffer = Self::Buffer>;
    /// Aligned memory for one direct read or write.
    type Buffer: DerefMut<Target = [u8]> + 'static;

    /// A buffer of `len` bytes (a multiple of [`BLOCK`]); its contents are unspecified.
    fn buffer(&self, len: usize) -> Self::Buffer;

    /// The names of all files in the directory, in no order.
    fn list(&self) -> impl Future<Output = io::Result<Vec<String>>>;
    /// Opens a file that exists.
    fn open(&self, name: &str, access: Access) -> impl Future<Output = io::Result<Self::File>>;
    /// Makes a file that must not exist yet, reserves `size` bytes for it and opens it with [`Access::Prepare`]; its contents
    /// are unspecified until written.
    fn create(&self, name: &str, size: u64) -> impl Future<Output = io::Result<Self::File>>;
    /// Gives a file a new name; an existing file of that name is an error.
    fn rename(&self, from: &str, to: &str) -> impl Future<Output = io::Result<()>>;
    fn remove(&self, name: &str) -> impl Future<Output = io::Result<()>>;
    /// Bytes that are free for this process on the file system.
    fn free_bytes(&self) -> impl Future<Output = io::Result<u64>>;
    /// Makes every earlier create, rename and remove durable.
    fn sync_directory(&self) -> impl Future<Output = io::Result<()>>;
    /// Ready after `rest` has passed: what a background step takes between two writes, so that it leaves the device to others.
    fn pause(&self, rest: Duration) -> impl Future<Output = ()>;
}

/// An open file. Dropping it closes it; a write in flight goes on.
pub trait DiskFile: 'static {
    type Buffer;
    /// What a read returns; io_uring's is shared and so cannot be written to.
    type Bytes: Deref<Target = [u8]> + 'static;

    /// The file's length in bytes.
    fn size(&self) -> u64;
    /// Makes the file `size` bytes long (a multiple of [`BLOCK`], no less than it has) and reserves the space. What is new is
    /// unspecified until written; a later `sync` makes the length durable.
    fn extend(&self, size: u64) -> impl Future<Output = io::Result<()>>;
    /// Writes the whole buffer at `offset`.
    fn write_at(&self, buffer: Self::Buffer, offset: u64) -> impl Future<Output = io::Result<()>>;
    /// Reads `len` bytes at `offset`; a short result means end of file, whatever the device does: one that brings less before it is
    /// asked again, or fails.
    fn read_at(&self, offset: u64, len: usize) -> impl Future<Output = io::Result<Self::Bytes>>;
    /// Makes the file's contents durable (fdatasync), whatever the file was opened for.
    fn sync(&self) -> impl Future<Output = io::Result<()>>;
}

/// Where staging rings live: a tmpfs, or nothing, or the simulator's. Paths are opaque strings here: the path stands in
/// segment identities, and recovery opens exactly the one it finds there.
pub trait RingHost: Clone + 'static {
    type Memory: RingMemory;

    /// Opens an existing ring file at `path`; `None` where there is no such file.
    fn open(&self, path: &str) -> io::Result<Option<Self::Memory>>;
    /// Makes a ring file of `len` bytes, space reserved, all zero, locked against a second process.
    fn create(&self, path: &str, len: usize) -> io::Result<Self::Memory>;
    /// Memory that no restart will see, for a host without tmpfs.
    fn anonymous(&self, len: usize) -> io::Result<Self::Memory>;
    fn remove(&self, path: &str) -> io::Result<()>;
}

/// The bytes of a ring, the page first. Stores reach the file in program order as a kill at any instruction sees them.
pub trait RingMemory: 'static {
    fn bytes(&self) -> &[u8];
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Stores a little-endian u64 at `offset` (a multiple of 8) after every store made before it and before any made later.
    fn store_u64(&mut self, offset: usize, value: u64);
    /// Gives the file another length: bytes up to the shorter of both stay, new ones are zero, their space is reserved. A
    /// kill may leave any length between the two.
    fn resize(&mut self, len: usize) -> io::Result<()>;
}
