//! The echo floor: the run's frames, connections and schedule against `peregrine-broker echo`, which runs the broker's
//! own runtime, patches and idle policy on the broker's core and sends every byte back.
//!
//! A frame is as large as a produce frame of the run; its first 8 bytes are the message's index. What comes back whole
//! is taken for an acknowledgement, so the latency is measured by the same code as the run's.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::clock::{Clock, Ns};
use crate::connection::Connections;
use crate::transport::{Events, Offer, Transport, TransportError};
use crate::workload::Message;

/// How long the echo process may take to say that it listens.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a frame's index.
const INDEX_BYTES: usize = 8;

/// A running echo process; dropping it ends the process.
#[derive(Debug)]
pub struct EchoProcess {
    child: Child,
    address: String,
}

impl EchoProcess {
    /// Starts `binary echo`, pinned to `core` if one is named, idling by `policy`.
    pub fn start(binary: &Path, core: Option<usize>, policy: &str) -> Result<Self, String> {
        let mut command = Command::new(binary);
        command.args(["echo", "--listen", "127.0.0.1:0", "--idle", policy]);
        if let Some(core) = core {
            command.args(["--core", &core.to_string()]);
        }
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = spawned.map_err(|error| format!("{} cannot be started: {error}", binary.display()))?;
        let stdout = child.stdout.take();
        let mut process = Self { child, address: String::new() };
        let (told, heard) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            if let Some(stdout) = stdout
                && BufReader::new(stdout).read_line(&mut line).is_ok()
            {
                // Nobody listens any more if it took too long.
                let _ = told.send(line);
            }
        });
        let line = heard.recv_timeout(READY_WITHIN).unwrap_or_default();
        let address = line.strip_prefix("ready: listening on ").and_then(|rest| rest.split([',', ' ', '\n']).next());
        match address {
            Some(address) => process.address.push_str(address),
            None => return Err(format!("{} echo does not say that it is ready", binary.display())),
        }
        Ok(process)
    }

    /// The broker's executable: `given`, else the one beside this process's own.
    pub fn binary(given: Option<&Path>) -> Option<PathBuf> {
        let beside = || std::env::current_exe().ok()?.parent().map(|folder| folder.join("peregrine-broker"));
        given.map(Path::to_owned).or_else(beside).filter(|path| path.is_file())
    }
}

impl Drop for EchoProcess {
    fn drop(&mut self) {
        // It has nothing to save; both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connections to an echo, one per producer of the thread.
#[derive(Debug)]
pub struct Echo {
    connections: Connections,
    frame: usize,
    threads: u32,
}

impl Echo {
    /// Connects to `process`, once per producer among `threads` generator threads; a frame has `frame` bytes.
    pub fn connect(
        process: &EchoProcess,
        clock: Clock,
        frame: usize,
        producers: usize,
        threads: u32,
    ) -> std::io::Result<Self> {
        let frame = frame.max(INDEX_BYTES);
        let mut connections = Connections::new(clock)?;
        for _ in 0..producers {
            let stream = TcpStream::connect(&process.address)?;
            connections.add(stream, format!("echo {}", process.address), (4 * frame, 64 * frame), &[])?;
        }
        Ok(Self { connections, frame, threads })
    }
}

impl Transport for Echo {
    fn offer(&mut self, message: &Message<'_>) -> Result<Offer, TransportError> {
        let number = (message.place.producer / self.threads) as usize;
        let Some(frame) = self.connections.output(number).reserve(self.frame) else { return Ok(Offer::Full) };
        frame[..INDEX_BYTES].copy_from_slice(&message.index.to_le_bytes());
        Ok(Offer::Taken)
    }

    fn turn(&mut self, wait_until: Option<Ns>, events: &mut impl Events) -> Result<(), TransportError> {
        let size = self.frame;
        self.connections.turn(wait_until, |_, bytes, _, now| {
            for frame in bytes.chunks_exact(size) {
                let mut index = [0; INDEX_BYTES];
                index.copy_from_slice(&frame[..INDEX_BYTES]);
                events.acknowledged(u64::from_le_bytes(index), now);
            }
            Ok(bytes.len() / size * size)
        })
    }
}
