//! The socket of a connection: non-blocking sends that gather, and descriptors that change their executor.
//!
//! Reading and waiting go through glommio's unbuffered stream; sends do not, for it can neither gather nor ask for no SIGPIPE.

use crate::simulated;
use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::{TcpListener, TcpStream};
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

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

    /// All runs in one piece.
    fn joined(&self) -> Vec<u8> {
        // SAFETY: the first `count` runs were made from slices that outlive `'a`.
        let run = |run: &libc::iovec| unsafe { std::slice::from_raw_parts(run.iov_base.cast::<u8>(), run.iov_len) };
        self.runs[..self.count].iter().flat_map(run).copied().collect()
    }

    /// Sends without waiting: how many bytes the socket took, zero where it takes none now.
    fn send(&self, socket: RawFd) -> io::Result<usize> {
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

/// The socket of a connection.
pub enum Socket {
    Real(RealSocket),
    Simulated(simulated::Socket),
}

/// One of the kernel's, on this executor.
pub struct RealSocket {
    stream: RefCell<TcpStream>,
    descriptor: RawFd,
}

/// A socket on its way to another executor.
#[derive(Debug)]
pub enum HandedSocket {
    Real(OwnedFd),
    Simulated(simulated::HandedSocket),
}

impl HandedSocket {
    /// The socket, on the executor that it was handed to.
    pub fn open(self) -> Socket {
        match self {
            HandedSocket::Real(descriptor) => Socket::of(descriptor),
            HandedSocket::Simulated(handed) => Socket::Simulated(handed.open()),
        }
    }
}

impl Socket {
    pub fn new(stream: TcpStream) -> Self {
        let descriptor = stream.as_raw_fd();
        Socket::Real(RealSocket { stream: RefCell::new(stream), descriptor })
    }

    fn of(descriptor: OwnedFd) -> Self {
        // SAFETY: the descriptor is owned and given up here, so that the stream becomes its only owner.
        Self::new(unsafe { TcpStream::from_raw_fd(descriptor.into_raw_fd()) })
    }

    /// Zero bytes are the end.
    pub fn poll_read(&self, context: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Socket::Real(socket) => Pin::new(&mut *socket.stream.borrow_mut()).poll_read(context, into),
            Socket::Simulated(socket) => socket.poll_read(context, into),
        }
    }

    /// Waits until the socket takes something.
    pub fn poll_write(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Socket::Real(socket) => Pin::new(&mut *socket.stream.borrow_mut()).poll_write(context, bytes),
            Socket::Simulated(socket) => socket.poll_write(context, bytes),
        }
    }

    /// Sends without waiting: how many bytes the socket took, zero where it takes none now.
    pub fn send(&self, gather: &Gather<'_>) -> io::Result<usize> {
        match self {
            Socket::Real(socket) => gather.send(socket.descriptor),
            Socket::Simulated(socket) => socket.try_write(&gather.joined()),
        }
    }

    /// The socket once more, for the executor that it is handed to.
    pub fn duplicate(&self) -> io::Result<HandedSocket> {
        match self {
            Socket::Real(socket) => {
                // SAFETY: the descriptor is open as long as the stream, which `self` holds.
                let borrowed = unsafe { BorrowedFd::borrow_raw(socket.descriptor) };
                borrowed.try_clone_to_owned().map(HandedSocket::Real)
            }
            Socket::Simulated(socket) => Ok(HandedSocket::Simulated(socket.hand_over())),
        }
    }

    /// Ends both directions: whoever waits for it finds out.
    pub fn shut_down(&self) {
        match self {
            Socket::Real(socket) => shut(socket.descriptor, libc::SHUT_RDWR),
            Socket::Simulated(socket) => socket.shut_down(),
        }
    }

    /// Ends the receiving direction: whoever reads finds the end.
    pub fn shut_reading(&self) {
        match self {
            Socket::Real(socket) => shut(socket.descriptor, libc::SHUT_RD),
            Socket::Simulated(socket) => socket.shut_reading(),
        }
    }
}

fn shut(socket: RawFd, how: libc::c_int) {
    // SAFETY: the call takes no memory; a descriptor that is closed already is an error that says so and no more.
    let _ = unsafe { libc::shutdown(socket, how) };
}

/// The listener of a socket on this executor.
pub fn listener(socket: OwnedFd) -> TcpListener {
    // SAFETY: the descriptor is owned and given up here, so that the listener becomes its only owner.
    unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) }
}
