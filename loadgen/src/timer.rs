//! A timer that epoll can wait for, with a resolution of nanoseconds (`epoll_wait` itself counts in milliseconds).
//! The only file of this crate with `unsafe` in it: two system calls that std lacks.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::clock::{Ns, SECOND};

/// A `timerfd` on the monotonic clock; it becomes readable when it goes off, edge by edge, and need not be read.
#[derive(Debug)]
pub struct Timer {
    descriptor: OwnedFd,
}

impl Timer {
    /// A timer that is not set.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a plain system call without pointers.
        let raw = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor and nobody else knows it.
        Ok(Self { descriptor: unsafe { OwnedFd::from_raw_fd(raw) } })
    }

    /// Goes off once, `after` nanoseconds from now (at least one); an earlier setting is forgotten.
    pub fn set(&self, after: Ns) -> io::Result<()> {
        let after = after.max(1);
        let value = libc::timespec { tv_sec: (after / SECOND) as i64, tv_nsec: (after % SECOND) as i64 };
        let spec = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // SAFETY: `spec` lives through the call, and a null pointer for the old value is allowed (timerfd_settime(2)).
        let done =
            unsafe { libc::timerfd_settime(self.descriptor.as_raw_fd(), 0, &raw const spec, std::ptr::null_mut()) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}
