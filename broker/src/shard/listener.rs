//! The one listening socket: made once for all shards, accepted from by one executor only.
//!
//! It is made without SO_REUSEPORT, which would let a second broker take half of the connections in silence, and stays a
//! blocking socket: the runtime's accept flips O_NONBLOCK itself, and io_uring's would fail at once on a non-blocking one.

use crate::limits::ACCEPTS_PER_TURN;
use crate::shard::connection::socket;
use crate::shard::event::Event;
use futures_lite::future;
use glommio::net::TcpStream;
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

/// Accepts until `stop` is raised, and gives each connection to `take`.
pub async fn accept(listener: TcpListener, stop: &Event, mut take: impl FnMut(TcpStream)) {
    let listener = socket::listener(listener.into());
    let mut in_a_row = 0;
    loop {
        let accepted = async { Some(listener.accept().await) };
        let stopped = async {
            stop.wait().await;
            None
        };
        match future::or(accepted, stopped).await {
            None => return,
            Some(Ok(stream)) => {
                // A socket without it works; its small answers wait for acknowledgements of the network.
                let _ = stream.set_nodelay(true);
                take(stream);
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "a connection could not be accepted");
                glommio::timer::sleep(REST).await;
            }
        }
        in_a_row += 1;
        if in_a_row == ACCEPTS_PER_TURN {
            in_a_row = 0;
            glommio::yield_if_needed().await;
        }
    }
}
