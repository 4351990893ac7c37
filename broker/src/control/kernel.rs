//! The few system calls that std does not wrap, each behind a safe function; the only `unsafe` of this folder.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes of the kernel's `struct io_uring_params`.
const IO_URING_PARAMS: usize = 120;
const EXT4_MAGIC: i64 = 0xEF53;
const XFS_MAGIC: i64 = 0x5846_5342;
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// The kinds of file system that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    Xfs,
    Tmpfs,
    /// With its magic number.
    Other(i64),
}

/// Makes a small io_uring and closes it.
pub fn try_io_uring() -> io::Result<()> {
    let mut params = [0u64; IO_URING_PARAMS / 8];
    // SAFETY: the kernel reads and writes one io_uring_params, which `params` has room and alignment for; all zero asks for nothing
    // special. The result is checked before it is used as a descriptor.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 8u32, params.as_mut_ptr()) };
    let descriptor = i32::try_from(result).unwrap_or(-1);
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above made this descriptor, and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
    Ok(())
}

/// Bytes that this process may lock; the largest u64 where there is no limit.
pub fn locked_memory_limit() -> io::Result<u64> {
    limit(libc::RLIMIT_MEMLOCK).map(|limit| limit.rlim_cur)
}

/// Raises the number of descriptors that this process may open to what it may raise it to, and returns that.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut descriptors = limit(libc::RLIMIT_NOFILE)?;
    descriptors.rlim_cur = descriptors.rlim_max;
    // SAFETY: the call reads one rlimit, which lives across it.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const descriptors) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(descriptors.rlim_cur)
}

fn limit(resource: libc::__rlimit_resource_t) -> io::Result<libc::rlimit> {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: the call writes one rlimit where it succeeds, and nothing else.
    if unsafe { libc::getrlimit(resource, limit.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it was written.
    Ok(unsafe { limit.assume_init() })
}

/// The file system that `path` lies on.
pub fn file_system(path: &Path) -> io::Result<FileSystem> {
    Ok(match statfs(path)?.f_type {
        EXT4_MAGIC => FileSystem::Ext4,
        XFS_MAGIC => FileSystem::Xfs,
        TMPFS_MAGIC => FileSystem::Tmpfs,
        other => FileSystem::Other(other),
    })
}

/// Bytes free for this user on the file system of `path`.
pub fn free_space(path: &Path) -> io::Result<u64> {
    let about = statfs(path)?;
    Ok(about.f_bavail.saturating_mul(about.f_bsize as u64))
}

fn statfs(path: &Path) -> io::Result<libc::statfs> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut about = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `path` ends with a zero and lives across the call, which writes one statfs where it succeeds.
    if unsafe { libc::statfs(path.as_ptr(), about.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it was written.
    Ok(unsafe { about.assume_init() })
}

/// SIGTERM and SIGINT, held back from every thread that this one starts, so that only [`StopSignals::wait`] sees them.
pub struct StopSignals(libc::sigset_t);

impl StopSignals {
    /// To be called before any other thread exists: threads inherit what is blocked.
    pub fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set, after which the others read and write it; the last takes no old set.
        let (set, result) = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            (set, libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))
        };
        if result == 0 { Ok(Self(set)) } else { Err(io::Error::from_raw_os_error(result)) }
    }

    /// Waits for one of the signals, and names it.
    pub fn wait(&self) -> io::Result<&'static str> {
        let mut signal = 0;
        // SAFETY: both point to live values of the right types.
        let result = unsafe { libc::sigwait(&raw const self.0, &raw mut signal) };
        match (result, signal) {
            (0, libc::SIGTERM) => Ok("SIGTERM"),
            (0, _) => Ok("SIGINT"),
            _ => Err(io::Error::from_raw_os_error(result)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_answer() {
        assert!(locked_memory_limit().is_ok());
        assert!(raise_descriptor_limit().is_ok_and(|descriptors| descriptors > 0));
        assert!(file_system(Path::new("/proc")).is_ok_and(|kind| matches!(kind, FileSystem::Other(0x9FA0))));
        assert!(free_space(Path::new("/")).is_ok_and(|free| free > 0));
        assert_eq!(file_system(Path::new("/nowhere/at/all")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
