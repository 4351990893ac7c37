//! A connection of another executor, as the shard that it subscribed to sees it.
//!
//! The payloads that it is sent are copied and cross the mesh as whole frames; a window in bytes keeps them few. This is the
//! slow way for clients that do not route by themselves; the native client opens a connection to each shard that it needs.

use crate::limits::MESH_DELIVERY_WINDOW;
use crate::shard::answers;
use crate::shard::connection::outbox::LogBytes;
use crate::shard::connection::outlet::{Held, Outlet};
use crate::shard::executor::{ColdRead, Executor};
use crate::shard::peers::{Peer, PeerId};
use crate::shard::router::Asker;
use crate::shard::runtime;
use crate::shard::state::NoBytes;
use peregrine_protocol::message::ErrorAnswer;
use std::cell::Cell;
use std::rc::Rc;

/// One connection of another executor.
pub struct Proxy {
    pub id: PeerId,
    /// Where the connection is,
    pub executor: u16,
    /// and its number there.
    pub connection: PeerId,
    pub outlet: Outlet,
    /// Bytes that may be sent; below zero by at most one batch, or one answer to a fetch.
    window: Cell<isize>,
    gone: Cell<bool>,
}

/// The peer that an asker is to this executor; for one of another executor a proxy, made when it is first needed.
pub fn peer_of(executor: &Rc<Executor>, asker: Asker) -> Option<PeerId> {
    if let Some(known) = known_peer_of(executor, asker) {
        return Some(known);
    }
    let Asker::There { executor: there, connection, .. } = asker else { return None };
    let mut made = None;
    let id = executor.peers.add(|id| {
        let proxy = Rc::new(Proxy {
            id,
            executor: there,
            connection,
            outlet: Outlet::default(),
            window: Cell::new(MESH_DELIVERY_WINDOW as isize),
            gone: Cell::new(false),
        });
        made = Some(proxy.clone());
        Peer::Proxy(proxy)
    });
    executor.proxies.borrow_mut().insert((there, connection), id);
    if let Some(proxy) = made {
        runtime::spawn(run(executor.clone(), proxy)).detach();
    }
    Some(id)
}

/// The same, where none is made.
pub fn known_peer_of(executor: &Executor, asker: Asker) -> Option<PeerId> {
    match asker {
        Asker::Here(peer) => Some(peer),
        Asker::There { executor: there, connection, .. } => {
            executor.proxies.borrow().get(&(there, connection)).copied()
        }
    }
}

/// The connection has room for so many bytes more.
pub fn open_window(executor: &Executor, there: u16, connection: PeerId, bytes: usize) {
    if let Some(proxy) = find(executor, there, connection) {
        proxy.window.set(proxy.window.get() + bytes as isize);
        proxy.outlet.news.raise();
    }
}

/// The connection is gone.
pub fn end(executor: &Executor, there: u16, connection: PeerId) {
    if let Some(proxy) = find(executor, there, connection) {
        executor.proxies.borrow_mut().remove(&(there, connection));
        executor.peers.remove(proxy.id);
        for shard in executor.local_shards() {
            shard.detach(proxy.id);
        }
        proxy.gone.set(true);
        proxy.outlet.news.raise();
    }
}

fn find(executor: &Executor, there: u16, connection: PeerId) -> Option<Rc<Proxy>> {
    let id = executor.proxies.borrow().get(&(there, connection)).copied()?;
    match executor.peers.get(id) {
        Some(Peer::Proxy(proxy)) => Some(proxy),
        _ => None,
    }
}

/// What one step of sending came to.
enum Step {
    Sent,
    Missing(LogBytes),
    Wait,
}

async fn run(executor: Rc<Executor>, proxy: Rc<Proxy>) {
    while !proxy.gone.get() {
        let step = step(&executor, &proxy);
        proxy.outlet.forget_unreadable();
        match step {
            Step::Sent => {}
            Step::Missing(bytes) => {
                if executor.read_cold(&proxy.outlet, bytes).await == ColdRead::Stopped {
                    break;
                }
            }
            Step::Wait => proxy.outlet.news.wait().await,
        }
    }
    executor.drop_cold(&proxy.outlet);
}

/// Sends the first thing that is held, if the window allows.
fn step(executor: &Rc<Executor>, proxy: &Proxy) -> Step {
    let mut held = proxy.outlet.held.borrow_mut();
    if proxy.window.get() <= 0 {
        return Step::Wait;
    }
    let cold = proxy.outlet.cold.borrow();
    match held.front_mut() {
        None => Step::Wait,
        Some(Held::Delivery { shard: id, subscription, batch, .. }) => {
            let (id, subscription) = (*id, *subscription);
            let Some(shard) = executor.shard(id) else { return Step::Wait };
            let mut frame = Vec::new();
            let found = shard.with_entry(batch, cold.as_ref(), |header, payload| {
                frame = answers::delivery_frame(id, subscription, batch, header, payload);
            });
            match found {
                Ok(()) => {}
                Err(NoBytes::Unread(missing)) => return Step::Missing(missing),
                Err(NoBytes::Gone(code)) => {
                    drop((held, cold));
                    if shard.end_damaged(proxy.id, &proxy.outlet, subscription) {
                        answers::ended(&mut frame, id, subscription, code);
                        executor.push_there(proxy.executor, proxy.connection, frame, false);
                    }
                    return Step::Sent;
                }
            }
            held.pop_front();
            drop((held, cold));
            send(executor, proxy, frame);
            executor.delivered(id, subscription);
            Step::Sent
        }
        Some(Held::Fetch(fetch)) => {
            let Some(shard) = executor.shard(fetch.shard) else { return Step::Wait };
            let mut frame = Vec::new();
            match fetch.fill(&shard, cold.as_ref()) {
                Ok(()) => fetch.encode(&mut frame),
                Err(NoBytes::Unread(missing)) => return Step::Missing(missing),
                Err(NoBytes::Gone(code)) => ErrorAnswer::new(code).encode(fetch.correlation, &mut frame),
            }
            held.pop_front();
            proxy.window.set(proxy.window.get() - frame.len() as isize);
            executor.answer_late(proxy.executor, proxy.connection, frame);
            Step::Sent
        }
        Some(Held::Found(answer)) => {
            let frame = std::mem::take(&mut answer.frame);
            held.pop_front();
            proxy.window.set(proxy.window.get() - frame.len() as isize);
            executor.answer_late(proxy.executor, proxy.connection, frame);
            Step::Sent
        }
    }
}

fn send(executor: &Executor, proxy: &Proxy, frame: Vec<u8>) {
    proxy.window.set(proxy.window.get() - frame.len() as isize);
    executor.push_there(proxy.executor, proxy.connection, frame, true);
}
