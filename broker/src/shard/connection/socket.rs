//! The socket of a connection: non-blocking sends that gather, and descriptors that change their executor.
//!
//! Reading and waiting go through glommio's unbuffered stream; sends do not, for it can neither gather nor ask for no SIGPIPE.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Runs of one send: each payload has its head before it, and answers between them.
pub const RUNS_MAX: usize = 2 * crate::limits::GATHER_PAYLOADS + 2;

/// The runs of bytes of one send. They are only borrowed by the call that sends them, so that what is gathered from a ring
/// cannot be looked at after the ring has gone on.
#[derive(Debug)]
pub struct Gather<'a> {
    runs: [libc::iovec; RUNS_MAX],
    count: usize,
    len: usize,
    borrowed: std::marker::PhantomData<&'a [u8]>,
}

impl<'a> Gather<'a> {
    pub fn new() -> Self {
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Gather { runs: [none; RUNS_MAX], count: 0, len: 0, borrowed: std::marker::PhantomData }
    }

    /// Adds a run; false when there is no place for another.
    pub fn push(&mut self, bytes: &'a [u8]) -> bool {
        if self.count == RUNS_MAX {
            return false;
        }
        self.runs[self.count] = libc::iovec { iov_base: bytes.as_ptr() as *mut libc::c_void, iov_len: bytes.len() };
        self.count += 1;
        self.len += bytes.len();
        true
    }

    /// The first run.
    pub fn first(&self) -> Option<&'a [u8]> {
        let run = self.runs[..self.count].first()?;
        // SAFETY: the run was made from a slice that outlives `'a`.
        Some(unsafe { std::slice::from_raw_parts(run.iov_base.cast::<u8>(), run.iov_len) })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sends without waiting: how many bytes the socket took, zero where it takes none now.
    pub fn send(&self, socket: RawFd) -> io::Result<usize> {
        // SAFETY: an all-zero msghdr is a valid value of this plain C structure.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.runs.as_ptr().cast_mut();
        message.msg_iovlen = self.count as _;
        loop {
            // SAFETY: the first `count` runs were made from slices that outlive `'a`, hence this call; the kernel only reads
            // them and the header.
            let sent = unsafe { libc::sendmsg(socket, &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
            if sent >= 0 {
                return Ok(sent as usize);
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(0),
                io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            }
        }
    }
}

/// A second descriptor of a socket, for the executor that it is handed to.
pub fn duplicate(socket: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open as long as `socket` is borrowed.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }.try_clone_to_owned()
}

/// Ends both directions of a socket: whoever waits for it finds out.
pub fn shut_down(socket: RawFd) {
    // SAFETY: the call takes no memory; a descriptor that is closed already is an error that says so and no more.
    let _ = unsafe { libc::shutdown(socket, libc::SHUT_RDWR) };
}

/// Ends the receiving direction: whoever reads finds the end.
pub fn shut_reading(socket: RawFd) {
    // SAFETY: as in `shut_down`.
    let _ = unsafe { libc::shutdown(socket, libc::SHUT_RD) };
}

/// The stream of a socket on this executor.
pub fn stream(socket: OwnedFd) -> glommio::net::TcpStream {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor is owned and given up here, so that the stream becomes its only owner.
    unsafe { glommio::net::TcpStream::from_raw_fd(socket.into_raw_fd()) }
}

/// The listener of a socket on this executor.
pub fn listener(socket: OwnedFd) -> glommio::net::TcpListener {
    use std::os::fd::IntoRawFd;
    // SAFETY: as in `stream`.
    unsafe { glommio::net::TcpListener::from_raw_fd(socket.into_raw_fd()) }
}
