//! One non-blocking connection with fixed buffers, and the set of them that a generator thread multiplexes.
//!
//! Bytes go out of `Output` with one system call per turn and connection, come into the input buffer with one, and are
//! handed on from where they stand. Both buffers are allocated when the connection is made.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use mio::unix::SourceFd;
use mio::{Interest, Poll, Token};

use crate::clock::{Clock, Ns};
use crate::timer::Timer;
use crate::transport::TransportError;

use std::os::fd::AsRawFd;

/// Events taken from epoll in one turn.
const EVENTS_MAX: usize = 256;
/// The timer's token; connections have their numbers.
const TIMER: Token = Token(usize::MAX);

/// Bytes on their way out.
#[derive(Debug)]
pub struct Output {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Output {
    fn new(bytes: usize) -> Self {
        Self { buffer: vec![0; bytes].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Room for `bytes` more, which the caller fills whole; `None` where the buffer is full.
    pub fn reserve(&mut self, bytes: usize) -> Option<&mut [u8]> {
        if self.buffer.len() - self.end < bytes {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let free = self.buffer.get_mut(self.end..self.end + bytes)?;
        self.end += bytes;
        Some(free)
    }

    /// Appends `bytes` whole; `false` where the buffer is full.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        self.reserve(bytes.len()).is_some_and(|free| {
            free.copy_from_slice(bytes);
            true
        })
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn sent(&mut self, bytes: usize) {
        self.start += bytes;
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }
}

/// One connection.
#[derive(Debug)]
struct Connection {
    stream: mio::net::TcpStream,
    name: String,
    output: Output,
    input: Box<[u8]>,
    input_start: usize,
    input_end: usize,
    /// There may be bytes to read; the connection is in the list of ready ones.
    ready: bool,
    /// The peer has closed its half: read on until the end is seen.
    closing: bool,
    /// There are bytes to send; the connection is in the list of dirty ones.
    dirty: bool,
}

impl Connection {
    /// Sends what the socket takes.
    fn flush(&mut self) -> Result<(), TransportError> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output.buffer[self.output.start..self.output.end]) {
                Ok(bytes) => self.output.sent(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TransportError::Io { context: format!("sending to {}", self.name), source }),
            }
        }
        Ok(())
    }

    /// One receive; the connection is no longer ready when it brought less than there was room for.
    fn receive(&mut self) -> Result<(), TransportError> {
        if self.input_start > 0 {
            self.input.copy_within(self.input_start..self.input_end, 0);
            self.input_end -= self.input_start;
            self.input_start = 0;
        }
        assert!(self.input_end < self.input.len(), "a whole frame fits the input buffer");
        match self.stream.read(&mut self.input[self.input_end..]) {
            Ok(0) => return Err(TransportError::Closed(self.name.clone())),
            Ok(bytes) => {
                self.input_end += bytes;
                // A short read has emptied a stream socket (epoll(7), edge-triggered), unless its end follows.
                self.ready = self.input_end == self.input.len() || self.closing;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.ready = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(TransportError::Io { context: format!("reading from {}", self.name), source }),
        }
        Ok(())
    }
}

/// The connections of one thread.
#[derive(Debug)]
pub struct Connections {
    clock: Clock,
    poll: Poll,
    events: mio::Events,
    timer: Timer,
    set: Vec<Connection>,
    ready: Vec<usize>,
    dirty: Vec<usize>,
}

impl Connections {
    /// No connections yet.
    pub fn new(clock: Clock) -> io::Result<Self> {
        let poll = Poll::new()?;
        let timer = Timer::new()?;
        poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
        let events = mio::Events::with_capacity(EVENTS_MAX);
        let (set, ready, dirty) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { clock, poll, events, timer, set, ready, dirty })
    }

    /// Takes over a connected socket, called `name` in errors, with buffers of so many bytes; `unread` was received on it
    /// already. Returns its number.
    pub fn add(
        &mut self,
        stream: TcpStream,
        name: String,
        (input, output): (usize, usize),
        unread: &[u8],
    ) -> io::Result<usize> {
        assert!(unread.len() < input, "what was received during the set-up fits");
        let number = self.set.len();
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = mio::net::TcpStream::from_std(stream);
        self.poll.registry().register(&mut stream, Token(number), Interest::READABLE | Interest::WRITABLE)?;
        let mut input = vec![0; input].into_boxed_slice();
        input[..unread.len()].copy_from_slice(unread);
        self.set.push(Connection {
            stream,
            name,
            output: Output::new(output),
            input,
            input_start: 0,
            input_end: unread.len(),
            ready: true,
            closing: false,
            dirty: false,
        });
        self.ready.push(number);
        self.dirty.reserve(number + 1);
        Ok(number)
    }

    /// The output of connection `number`, which the next turn sends.
    pub fn output(&mut self, number: usize) -> &mut Output {
        let connection = &mut self.set[number];
        if !std::mem::replace(&mut connection.dirty, true) {
            self.dirty.push(number);
        }
        &mut connection.output
    }

    /// Sends what waits, then hands what came to `received(number, bytes, output, now)`, which says how many of the bytes
    /// it has used up. Sleeps until something comes or `wait_until` is there, if that is given.
    pub fn turn(
        &mut self,
        wait_until: Option<Ns>,
        mut received: impl FnMut(usize, &[u8], &mut Output, Ns) -> Result<usize, TransportError>,
    ) -> Result<(), TransportError> {
        self.flush()?;
        let waits = wait_until.filter(|_| self.ready.is_empty());
        self.poll(waits).map_err(|source| TransportError::Io { context: "waiting for events".to_owned(), source })?;
        let mut at = self.ready.len();
        while at > 0 {
            at -= 1;
            let number = self.ready[at];
            let connection = &mut self.set[number];
            connection.receive()?;
            if !connection.ready {
                self.ready.swap_remove(at);
            }
            let now = self.clock.now();
            let unread = &connection.input[connection.input_start..connection.input_end];
            connection.input_start += received(number, unread, &mut connection.output, now)?;
            if !connection.output.is_empty() && !std::mem::replace(&mut connection.dirty, true) {
                self.dirty.push(number);
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), TransportError> {
        let mut at = self.dirty.len();
        while at > 0 {
            at -= 1;
            let connection = &mut self.set[self.dirty[at]];
            connection.flush()?;
            if connection.output.is_empty() {
                connection.dirty = false;
                self.dirty.swap_remove(at);
            }
        }
        Ok(())
    }

    fn poll(&mut self, wait_until: Option<Ns>) -> io::Result<()> {
        let timeout = match wait_until.map(|instant| instant.saturating_sub(self.clock.now())) {
            Some(left) if left > 0 => {
                self.timer.set(left)?;
                None
            }
            _ => Some(std::time::Duration::ZERO),
        };
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        for event in self.events.iter().filter(|event| event.token() != TIMER) {
            let connection = &mut self.set[event.token().0];
            connection.closing |= event.is_read_closed();
            if event.is_readable() && !std::mem::replace(&mut connection.ready, true) {
                self.ready.push(event.token().0);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{MILLISECOND, SECOND};
    use std::net::TcpListener;

    #[test]
    fn an_output_takes_what_fits_and_moves_up_what_is_left() {
        let mut output = Output::new(10);
        assert!(output.push(b"abcdef"));
        assert!(!output.push(b"ghijk"));
        output.sent(4);
        assert!(output.push(b"ghijk"));
        assert_eq!(&output.buffer[output.start..output.end], b"efghijk");
        output.sent(7);
        assert!(output.is_empty() && output.push(b"0123456789"));
    }

    #[test]
    fn bytes_go_out_come_in_and_the_end_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut peer = listener.accept().unwrap().0;
        let clock = Clock::start();
        let mut connections = Connections::new(clock).unwrap();
        let number = connections.add(stream, "the peer".to_owned(), (64, 64), b"0").unwrap();
        connections.output(number).push(b"hello");
        peer.write_all(b"12345").unwrap();
        let mut seen = Vec::new();
        while seen.len() < 6 {
            let wait = clock.now() + SECOND;
            connections
                .turn(Some(wait), |_, bytes, _, _| {
                    seen.extend_from_slice(bytes);
                    Ok(bytes.len())
                })
                .unwrap();
        }
        let mut hello = [0; 5];
        peer.read_exact(&mut hello).unwrap();
        assert_eq!((&hello, seen.as_slice()), (b"hello", &b"012345"[..]));
        let before = clock.now();
        connections.turn(Some(before + 3 * MILLISECOND), |_, bytes, _, _| Ok(bytes.len())).unwrap();
        assert!(clock.now() >= before + 3 * MILLISECOND, "an idle turn sleeps to its instant");
        drop(peer);
        let ended = (0..10).any(|_| {
            let wait = clock.now() + SECOND;
            connections.turn(Some(wait), |_, bytes, _, _| Ok(bytes.len())).is_err()
        });
        assert!(ended);
    }
}
