//! The [`RingHost`] of production: staging rings in files on a tmpfs, mapped into memory.
//!
//! A killed process leaves the file with every store that it made; a restart of the machine leaves nothing. Space is reserved
//! when the file is made, because a store into a page that a full tmpfs cannot give would end the process (SIGBUS). The map
//! is populated, and locked where the limit allows, so that no append waits for a page. One process at a time: the file is
//! locked (flock) while it is mapped.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};
use std::thread;
use std::time::{Duration, Instant};

use memmap2::{MmapMut, MmapOptions};

use super::uring::reserve;
use super::{RingHost, RingMemory};

/// A dead process's files stay locked until the kernel has taken it apart.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Ring files by their paths.
#[derive(Clone, Copy, Debug, Default)]
pub struct TmpfsRings;

/// A mapped ring: of a file, or of anonymous memory. Dropping it unmaps it, then unlocks the file.
#[derive(Debug)]
pub struct TmpfsRing {
    map: MmapMut,
    file: Option<File>,
}

impl RingHost for TmpfsRings {
    type Memory = TmpfsRing;

    fn open(&self, path: &str) -> io::Result<Option<TmpfsRing>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        lock(&file)?;
        let len = file.metadata()?.len();
        TmpfsRing::map(file, usize::try_from(len).map_err(io::Error::other)?).map(Some)
    }

    fn create(&self, path: &str, len: usize) -> io::Result<TmpfsRing> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let made = lock(&file).and_then(|()| reserve(&file, len as u64)).and_then(|()| TmpfsRing::map(file, len));
        if made.is_err() {
            // It may hold what is left of the tmpfs; the error that counts is the first.
            let _ = std::fs::remove_file(path);
        }
        made
    }

    fn anonymous(&self, len: usize) -> io::Result<TmpfsRing> {
        let map = MmapOptions::new().len(len).populate().map_anon()?;
        lock_in_memory(&map);
        Ok(TmpfsRing { map, file: None })
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        std::fs::remove_file(Path::new(path))
    }
}

impl TmpfsRing {
    fn map(file: File, len: usize) -> io::Result<Self> {
        // A map of no bytes is an error; a file that a kill left empty is not.
        let map = if len == 0 {
            MmapOptions::new().len(1).map_anon()?
        } else {
            // SAFETY: the file is ours alone while it is locked, mode 0600, and only `resize` changes its length, which maps
            // it anew; so the memory behind the map neither vanishes nor changes under us.
            unsafe { MmapOptions::new().len(len).populate().map_mut(&file)? }
        };
        lock_in_memory(&map);
        Ok(Self { map, file: Some(file) })
    }
}

impl RingMemory for TmpfsRing {
    fn bytes(&self) -> &[u8] {
        &self.map
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }

    fn store_u64(&mut self, offset: usize, value: u64) {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.map.len(), "a position stands in the ring's page");
        // What a kill leaves is what the processor has retired, in program order; so the order that counts is the compiler's.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: the pointer is within the map (asserted), aligned (a map starts at a page), and exclusively ours (`&mut`).
        let place = unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(offset).cast()) };
        place.store(value.to_le(), Ordering::Release);
        compiler_fence(Ordering::SeqCst);
    }

    fn resize(&mut self, len: usize) -> io::Result<()> {
        let Some(file) = self.file.take() else {
            let mut map = MmapOptions::new().len(len).populate().map_anon()?;
            let kept = len.min(self.map.len());
            map[..kept].copy_from_slice(&self.map[..kept]);
            self.map = map;
            return Ok(());
        };
        // Unmapped first: nothing may touch a page that the shorter file no longer has.
        self.map = MmapOptions::new().len(1).map_anon()?;
        // Reserving makes the file longer, or fails and leaves it as it is: were it longer without its space, the next start
        // would take it for whole.
        reserve(&file, len as u64)?;
        file.set_len(len as u64)?;
        *self = Self::map(file, len)?;
        Ok(())
    }
}

fn lock(file: &File) -> io::Result<()> {
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if since.elapsed() < LOCK_PATIENCE => thread::sleep(LOCK_RETRY),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "another process uses it"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn lock_in_memory(map: &MmapMut) {
    if let Err(error) = map.lock() {
        tracing::warn!(
            bytes = map.len(),
            %error,
            "the staging ring is not locked in memory: raise the limit (ulimit -l) to keep it from being swapped out"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::mem::MaybeUninit;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn path(directory: &tempfile::TempDir) -> String {
        directory.path().join("ring").to_string_lossy().into_owned()
    }

    #[test]
    fn what_was_stored_is_there_for_the_next_process_and_nobody_else_has_it_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let path = path(&directory);
        assert!(TmpfsRings.open(&path).unwrap().is_none());
        let mut ring = TmpfsRings.create(&path, 8192).unwrap();
        assert!(ring.bytes().iter().all(|byte| *byte == 0));
        ring.bytes_mut()[4096..].fill(7);
        ring.store_u64(128, 0x0102_0304_0506_0708);
        assert!(TmpfsRings.create(&path, 8192).is_err(), "it exists");
        assert!(File::open(&path).unwrap().try_lock().is_err(), "locked");
        drop(ring);
        let ring = TmpfsRings.open(&path).unwrap().unwrap();
        assert_eq!(&ring.bytes()[128..136], &0x0102_0304_0506_0708_u64.to_le_bytes());
        assert_eq!(ring.bytes()[4096..], [7; 4096]);
        TmpfsRings.remove(&path).unwrap();
        assert!(TmpfsRings.open(&path).unwrap().is_none());
    }

    #[test]
    fn resizing_keeps_what_fits_and_zeros_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        for mut ring in [TmpfsRings.create(&path(&directory), 8192).unwrap(), TmpfsRings.anonymous(8192).unwrap()] {
            ring.bytes_mut().fill(7);
            ring.resize(16_384).unwrap();
            assert_eq!((&ring.bytes()[..8192], &ring.bytes()[8192..]), (&[7; 8192][..], &[0; 8192][..]));
            ring.resize(4096).unwrap();
            ring.resize(8192).unwrap();
            assert_eq!((&ring.bytes()[..4096], &ring.bytes()[4096..]), (&[7; 4096][..], &[0; 4096][..]));
        }
    }

    /// Bytes of the file system that holds a directory; `None` where it knows no bound.
    fn file_system_bytes(directory: &Path) -> Option<usize> {
        let path = CString::new(directory.as_os_str().as_bytes()).unwrap();
        let mut about = MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: both pointers are to memory of ours that lives across the call.
        assert_eq!(unsafe { libc::statvfs(path.as_ptr(), about.as_mut_ptr()) }, 0);
        // SAFETY: a call that succeeded has filled it.
        let about = unsafe { about.assume_init() };
        Some((about.f_blocks * about.f_frsize) as usize).filter(|&bytes| bytes > 0)
    }

    /// A file that was made longer before its space was reserved was taken for whole by the next start, which the first store
    /// into a page that a full tmpfs cannot give then ended (SIGBUS).
    #[test]
    fn a_ring_that_cannot_grow_keeps_its_length() {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let Some(all) = file_system_bytes(directory.path()) else {
            return eprintln!("skipped: a file system without a bound");
        };
        let path = path(&directory);
        let mut ring = TmpfsRings.create(&path, 8192).unwrap();
        assert!(ring.resize((all + 4096).next_multiple_of(4096)).is_err());
        drop(ring);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 8192);
        assert_eq!(TmpfsRings.open(&path).unwrap().unwrap().bytes().len(), 8192);
    }

    #[test]
    fn a_file_that_a_kill_left_empty_opens() {
        let directory = tempfile::tempdir().unwrap();
        let path = path(&directory);
        File::create(&path).unwrap();
        let mut ring = TmpfsRings.open(&path).unwrap().unwrap();
        assert!(ring.bytes().len() < 4096);
        ring.resize(8192).unwrap();
        assert_eq!(ring.bytes(), [0; 8192]);
    }
}
