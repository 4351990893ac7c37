//! The [`Disk`] of production: one shard's directory on a local file system, direct I/O through this core's io_uring.
//!
//! Reads and writes of data go through glommio and are submitted without a helper thread. What changes names or metadata
//! (create, open, rename, remove, sync) blocks in the kernel, so it runs on the executor's blocking thread and never on the
//! reactor. Buffers come from the executor's registered memory while that lasts.
//!
//! A crash of the process leaves writes in flight to land later; the log is written so that they may.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use glommio::io::{DmaFile, OpenOptions as DirectOptions, ReadResult};
use glommio::{allocate_dma_buffer, executor};

use super::whole::{Whole, read_whole};
use super::{Access, BLOCK, Disk, DiskFile};
use crate::control::kernel::free_space;

/// One read or write handed to the kernel is at most this long: larger direct reads have hung on some kernels.
const TRANSFER_BYTES_MAX: usize = 1 << 20;

/// A shard's directory. Clones name the same one.
#[derive(Clone, Debug)]
pub struct UringDisk {
    directory: Rc<Path>,
}

impl UringDisk {
    /// The directory must exist; it is used only from executors of glommio.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory: directory.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        assert!(!name.contains('/'), "a name in a shard's directory has no slash: {name}");
        self.directory.join(name)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        executor().spawn_blocking(work).await
    }
}

impl Disk for UringDisk {
    type File = UringFile;
    type Buffer = DirectBuffer;

    fn buffer(&self, len: usize) -> DirectBuffer {
        assert!(len > 0 && len.is_multiple_of(BLOCK), "a direct buffer holds whole blocks, not {len} bytes");
        DirectBuffer(allocate_dma_buffer(len))
    }

    async fn list(&self) -> io::Result<Vec<String>> {
        let directory = self.directory.to_path_buf();
        self.blocking(move || {
            let mut names = Vec::new();
            for item in fs::read_dir(directory)? {
                // A name that is not UTF-8 is not one of ours.
                names.extend(item?.file_name().into_string());
            }
            Ok(names)
        })
        .await
    }

    async fn open(&self, name: &str, access: Access) -> io::Result<UringFile> {
        let path = self.path(name);
        let mut options = DirectOptions::new();
        options.read(true);
        match access {
            Access::Read => {}
            Access::Append => {
                options.write(true).custom_flags(libc::O_DSYNC);
            }
            Access::Prepare => {
                options.write(true);
            }
        }
        // glommio takes a missing file for a bug; ask first, so that it is an error like any other.
        let asked = path.clone();
        let size = self.blocking(move || Ok(fs::metadata(asked)?.len())).await?;
        let file = options.dma_open(&path).await?;
        Ok(UringFile { file, size: Cell::new(size) })
    }

    async fn create(&self, name: &str, size: u64) -> io::Result<UringFile> {
        let path = self.path(name);
        self.blocking(move || {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            reserve(&file, size)
        })
        .await?;
        self.open(name, Access::Prepare).await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.path(from), self.path(to));
        self.blocking(move || {
            // One process holds the directory's lock, so nobody makes the name between the look and the rename.
            if to.try_exists()? {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            fs::rename(from, to)
        })
        .await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        self.blocking(move || fs::remove_file(path)).await
    }

    async fn free_bytes(&self) -> io::Result<u64> {
        let directory = self.directory.to_path_buf();
        self.blocking(move || free_space(&directory)).await
    }

    async fn sync_directory(&self) -> io::Result<()> {
        let directory = self.directory.to_path_buf();
        self.blocking(move || File::open(directory)?.sync_all()).await
    }

    async fn pause(&self, rest: Duration) {
        glommio::timer::sleep(rest).await;
    }
}

/// Reserves the space and sets the length, so that a full disk shows here and no later write changes metadata of size.
pub(super) fn reserve(file: &File, size: u64) -> io::Result<()> {
    let Ok(len) = libc::off_t::try_from(size) else { return Err(io::ErrorKind::InvalidInput.into()) };
    // SAFETY: the descriptor is open for the length of the call, which touches no memory of ours.
    match unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An open file of the shard's directory.
#[derive(Debug)]
pub struct UringFile {
    file: DmaFile,
    size: Cell<u64>,
}

impl DiskFile for UringFile {
    type Buffer = DirectBuffer;
    type Bytes = DirectBytes;

    fn size(&self) -> u64 {
        self.size.get()
    }

    async fn extend(&self, size: u64) -> io::Result<()> {
        let file = self.duplicate()?;
        executor().spawn_blocking(move || reserve(&file, size)).await?;
        self.size.set(size);
        Ok(())
    }

    async fn write_at(&self, buffer: DirectBuffer, offset: u64) -> io::Result<()> {
        let len = buffer.len();
        assert!(len <= TRANSFER_BYTES_MAX, "a write of {len} bytes is split by its caller");
        let written = self.file.write_at(buffer.0, offset).await?;
        if written == len { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<DirectBytes> {
        if len <= TRANSFER_BYTES_MAX {
            // Past the end of a file, glommio's result can name bytes that were never read; the end is cut here.
            let left = self.size().saturating_sub(offset);
            let read = async |offset, len| Ok(self.file.read_at_aligned(offset, len).await?);
            return Ok(match read_whole(offset, len, left, read).await? {
                Whole::Single(read, known) => DirectBytes::Single(read, known),
                Whole::Joined(bytes) => DirectBytes::Joined(bytes),
            });
        }
        let mut joined = Vec::with_capacity(len);
        while joined.len() < len {
            let want = (len - joined.len()).min(TRANSFER_BYTES_MAX);
            let part = Box::pin(self.read_at(offset + joined.len() as u64, want)).await?;
            joined.extend_from_slice(&part);
            if part.len() < want {
                break;
            }
        }
        Ok(DirectBytes::Joined(joined))
    }

    async fn sync(&self) -> io::Result<()> {
        let file = self.duplicate()?;
        executor().spawn_blocking(move || file.sync_data()).await
    }
}

impl UringFile {
    /// The same open file, for a thread that may block.
    fn duplicate(&self) -> io::Result<File> {
        // SAFETY: fcntl takes no memory; a failure is the -1 that is looked at.
        let duplicate = unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
        if duplicate < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made above and nobody else has it.
        Ok(File::from(unsafe { OwnedFd::from_raw_fd(duplicate) }))
    }
}

/// Memory that the kernel may write from directly.
#[derive(Debug)]
pub struct DirectBuffer(glommio::io::DmaBuffer);

impl Deref for DirectBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl DerefMut for DirectBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_bytes_mut()
    }
}

/// What a read brought: the kernel's own buffer, or several joined.
#[derive(Debug)]
pub enum DirectBytes {
    Single(ReadResult, usize),
    Joined(Vec<u8>),
}

impl Deref for DirectBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Single(read, known) => &read[..*known],
            Self::Joined(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use glommio::{LocalExecutorBuilder, Placement, PoolPlacement};

    use super::super::tests::contract;
    use super::*;

    /// The disk that the build stands on: the folder for temporary files may be a tmpfs, which is no disk.
    fn on_this_disk(case: impl AsyncFnOnce(UringDisk) + Send + 'static) {
        let program = std::env::current_exe().expect("the path of this test");
        let directory =
            tempfile::tempdir_in(program.parent().expect("its folder")).expect("a directory beside the program");
        let path = directory.path().to_path_buf();
        let executor = LocalExecutorBuilder::new(Placement::Unbound)
            .io_memory(1 << 20)
            .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
            .make()
            .expect("an executor");
        executor.run(case(UringDisk::new(path)));
    }

    #[test]
    fn keeps_the_contract_of_every_disk() {
        on_this_disk(async |disk| contract::check(&disk).await);
    }

    #[test]
    fn long_reads_are_joined_from_parts() {
        on_this_disk(async |disk| {
            let size = 2 * TRANSFER_BYTES_MAX + BLOCK;
            let file = disk.create("long", size as u64).await.expect("create");
            for (index, offset) in (0..size).step_by(TRANSFER_BYTES_MAX).enumerate() {
                let mut buffer = disk.buffer((size - offset).min(TRANSFER_BYTES_MAX));
                buffer.fill(index as u8 + 1);
                file.write_at(buffer, offset as u64).await.expect("write");
            }
            let bytes = file.read_at(0, size).await.expect("read");
            assert_eq!((bytes.len(), bytes[0], bytes[TRANSFER_BYTES_MAX], bytes[size - 1]), (size, 1, 2, 3));
        });
    }
}
