//! `peregrine-broker echo`: the same runtime, patches, idle policy and core as a shard, and nothing behind the socket. It sends
//! every byte back. The load generator drives it with its own connections, size and schedule: what that measures is the floor
//! under every latency of the broker on this machine.

use crate::limits::RECEIVE_SCRATCH;
use crate::shard::connection::socket::{Gather, Socket};
use crate::shard::event::Event;
use crate::shard::listener::{self, Listener};
use crate::shard::runtime::{self, ExecutorOptions};
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

/// Serves `listener` until `stop` is set.
pub fn run(options: &ExecutorOptions, listener: TcpListener, stop: Arc<AtomicBool>) -> io::Result<()> {
    let serve = move || async move {
        let scratch = Rc::new(RefCell::new(vec![0; RECEIVE_SCRATCH]));
        let stopped = Rc::new(Event::default());
        let watch = stopped.clone();
        runtime::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                runtime::sleep(crate::limits::SWEEP_EVERY).await;
            }
            watch.raise();
        })
        .detach();
        listener::accept(Listener::Real(listener), &stopped, |stream| {
            runtime::spawn(echo(stream, scratch.clone())).detach();
        })
        .await;
    };
    runtime::start(options, serve)?.join().map_err(io::Error::from)
}

/// One connection: what is read is sent back at once from the executor's one buffer; only what the socket does not take is
/// copied.
async fn echo(socket: Socket, scratch: Rc<RefCell<Vec<u8>>>) {
    loop {
        let rest = poll_fn(|context| -> Poll<io::Result<Option<Vec<u8>>>> {
            let mut scratch = scratch.borrow_mut();
            let Poll::Ready(count) = socket.poll_read(context, &mut scratch)? else {
                return Poll::Pending;
            };
            if count == 0 {
                return Poll::Ready(Ok(None));
            }
            let mut gather = Gather::new();
            gather.push(&scratch[..count]);
            let sent = socket.send(&gather)?;
            Poll::Ready(Ok(Some(scratch[sent..count].to_vec())))
        })
        .await;
        let Ok(Some(mut rest)) = rest else { return };
        while !rest.is_empty() {
            match poll_fn(|context| socket.poll_write(context, &rest)).await {
                Ok(count) => drop(rest.drain(..count)),
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, SocketAddr, TcpStream};
    use std::time::Duration;

    #[test]
    fn every_byte_comes_back_in_order_also_when_the_client_reads_late() {
        let listener = listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let stop = Arc::new(AtomicBool::new(false));
        let options = ExecutorOptions {
            index: 0,
            core: runtime::cores().expect("cores")[0],
            spin: Duration::ZERO,
            io_memory: runtime::io_memory(1, 1, Some(0)),
        };
        let server = {
            let stop = stop.clone();
            std::thread::spawn(move || run(&options, listener, stop))
        };
        let mut client = TcpStream::connect(address).expect("connect");
        let bytes: Vec<u8> = (0..16 * 1024 * 1024_u32).map(|at| ((at * 31) >> 7) as u8).collect();
        let mut write = client.try_clone().expect("clone");
        let sent = bytes.clone();
        let writer = std::thread::spawn(move || write.write_all(&sent));
        let mut back = vec![0; bytes.len()];
        client.read_exact(&mut back).expect("all comes back");
        assert!(back == bytes, "bytes differ");
        writer.join().expect("no panic").expect("all is sent");
        stop.store(true, Ordering::Relaxed);
        server.join().expect("no panic").expect("a clean end");
    }
}
