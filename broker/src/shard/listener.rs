//! The one listening socket: made once for all shards, accepted from by one executor only.
//!
//! It is made without SO_REUSEPORT, which would let a second broker take half of the connections in silence, and stays a
//! blocking socket: the runtime's accept flips O_NONBLOCK itself, and io_uring's would fail at once on a non-blocking one.

use crate::limits::ACCEPTS_PER_TURN;
use crate::shard::connection::socket::{self, Socket};
use crate::shard::event::Event;
use crate::shard::runtime;
use crate::simulated::{Network, Scheduler};
use futures_lite::future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// Connections that the kernel keeps for us until they are accepted: a restart of a thousand clients at once.
const BACKLOG: i32 = 4096;
/// How long accepting rests after it failed for want of descriptors or memory.
const REST: Duration = Duration::from_millis(100);

/// Makes the listening socket. Port 0 takes a free port.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Where connections come from.
pub enum Listener {
    Real(TcpListener),
    /// The network of the simulation that this thread is in.
    Simulated,
}

/// The same, on the executor that accepts.
enum Listening {
    Real(glommio::net::TcpListener),
    Simulated(Network),
}

impl Listener {
    fn listen(self) -> Listening {
        match self {
            Listener::Real(listener) => Listening::Real(socket::listener(listener.into())),
            Listener::Simulated => match Scheduler::here() {
                Some(scheduler) => Listening::Simulated(scheduler.network().clone()),
                None => unreachable!("only a simulation has such a listener"),
            },
        }
    }
}

impl Listening {
    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Listening::Real(listener) => {
                let stream = listener.accept().await?;
                // A socket without it works; its small answers wait for acknowledgements of the network.
                let _ = stream.set_nodelay(true);
                Ok(Socket::new(stream))
            }
            Listening::Simulated(network) => Ok(Socket::Simulated(network.accept().await)),
        }
    }
}

/// Accepts until `stop` is raised, and gives each connection to `take`.
pub async fn accept(listener: Listener, stop: &Event, mut take: impl FnMut(Socket)) {
    let listening = listener.listen();
    let mut in_a_row = 0;
    loop {
        let accepted = async { Some(listening.accept().await) };
        let stopped = async {
            stop.wait().await;
            None
        };
        match future::or(accepted, stopped).await {
            None => return,
            Some(Ok(socket)) => take(socket),
            Some(Err(error)) => {
                tracing::warn!(%error, "a connection could not be accepted");
                runtime::sleep(REST).await;
            }
        }
        in_a_row += 1;
        if in_a_row == ACCEPTS_PER_TURN {
            in_a_row = 0;
            runtime::yield_if_needed().await;
        }
    }
}
