//! A connection while it is set up: blocking, one question at a time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use peregrine_protocol::frame::{self, Received};
use peregrine_protocol::ids::{Correlation, ShardId};
use peregrine_protocol::limits::FRAME_MAX_DEFAULT;
use peregrine_protocol::message::{Answer, Hello, Request};
use peregrine_protocol::preamble::PREAMBLE;

use crate::transport::TransportError;

/// Longest wait for an answer: a catalogue change needs some flushes, a broker under load some patience.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Bytes received at a time.
const RECEIVE_BYTES: usize = 64 << 10;

/// What the broker says of itself when a connection opens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Greeting {
    pub shards: u16,
    pub message_max: u32,
    pub frame_max: u32,
}

/// A connection that has said hello.
#[derive(Debug)]
pub(super) struct Link {
    stream: TcpStream,
    name: String,
    received: Vec<u8>,
    frame_max: u32,
    asked: u64,
}

impl Link {
    /// Connects to `address` and says hello, for `shard` if one is named.
    pub fn open(address: &str, shard: Option<ShardId>, client: &str) -> Result<(Self, Greeting), TransportError> {
        let name = match shard {
            Some(shard) => format!("{client}'s connection to {address}, shard {shard}"),
            None => format!("{client}'s connection to {address}"),
        };
        let connected = TcpStream::connect(address).and_then(|stream| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            (&stream).write_all(&PREAMBLE)?;
            Ok(stream)
        });
        let stream =
            connected.map_err(|source| TransportError::Io { context: format!("connecting to {address}"), source })?;
        let mut link = Self { stream, name, received: Vec::new(), frame_max: FRAME_MAX_DEFAULT, asked: 0 };
        let software = concat!("peregrine-loadgen ", env!("CARGO_PKG_VERSION"));
        let hello = Hello { client, software, shard, ..Hello::default() };
        let greeting = link.ask(&Request::Hello(hello), |answer| match answer {
            Answer::Hello(hello) if hello.challenge.is_none() => {
                Some(Greeting { shards: hello.shards, message_max: hello.message_max, frame_max: hello.frame_max })
            }
            _ => None,
        })?;
        link.frame_max = greeting.frame_max;
        Ok((link, greeting))
    }

    /// Sends `request` and waits for its answer, which `take` must recognise.
    pub fn ask<R>(
        &mut self,
        request: &Request<'_>,
        take: impl FnOnce(Answer<'_>) -> Option<R>,
    ) -> Result<R, TransportError> {
        self.asked += 1;
        let correlation = Correlation(self.asked);
        let mut bytes = Vec::new();
        request.encode(correlation, &mut bytes);
        let sent = self.stream.write_all(&bytes);
        sent.map_err(|source| TransportError::Io { context: format!("sending on {}", self.name), source })?;
        self.receive_frame()?;
        let wrong = |sentence: String| TransportError::Protocol(format!("{}: {sentence}", self.name));
        let frame = match frame::decode(&self.received, self.frame_max) {
            Ok(Received::Frame(frame)) => frame,
            Ok(Received::Missing(_)) => unreachable!("a whole frame was received"),
            Err(error) => return Err(wrong(error.to_string())),
        };
        let answer = match Answer::decode(&frame) {
            Ok(Answer::Error(error)) => return Err(wrong(error.sentence.to_owned())),
            Ok(answer) if frame.head.correlation == correlation => take(answer),
            Ok(_) => None,
            Err(error) => return Err(wrong(error.to_string())),
        };
        let answer = answer.ok_or_else(|| wrong("the broker answered another question".to_owned()))?;
        let used = frame.len();
        self.received.drain(..used);
        Ok(answer)
    }

    /// The socket, its name, and what was received behind the last answer.
    pub fn into_parts(self) -> (TcpStream, String, Vec<u8>) {
        (self.stream, self.name, self.received)
    }

    /// Receives until the first frame is whole, or cannot become one.
    fn receive_frame(&mut self) -> Result<(), TransportError> {
        while let Ok(Received::Missing(_)) = frame::decode(&self.received, self.frame_max) {
            let whole = self.received.len();
            self.received.resize(whole + RECEIVE_BYTES, 0);
            let bytes = self.stream.read(&mut self.received[whole..]);
            self.received.truncate(whole + bytes.as_ref().map_or(0, |bytes| *bytes));
            match bytes {
                Ok(0) => return Err(TransportError::Closed(self.name.clone())),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TransportError::Io { context: format!("waiting on {}", self.name), source }),
            }
        }
        Ok(())
    }
}
