//! What comes over the mesh: one task per channel takes messages; what may have to wait is done by one task per shard.
//!
//! Forwarded frames of one shard are handled in the order in which they came. One that waits (for room, for news of a topic)
//! holds back those behind it and nobody else; they are as many as their senders had credit for.

use crate::engine::HOME;
use crate::limits::MESH_PER_TURN;
use crate::shard::catalogue;
use crate::shard::event::Event;
use crate::shard::executor::Executor;
use crate::shard::mesh::Incoming;
use crate::shard::mesh_messages::{Request, Return};
use crate::shard::peers::PeerId;
use crate::shard::proxy;
use crate::shard::reports;
use crate::shard::requests;
use crate::shard::router::{self, Asker, Waited};
use crate::shard::runtime::turn;
use crate::shard::tickets::Reply;
use peregrine_protocol::frame::{self, Received};
use peregrine_protocol::ids::{Nanos, ShardId};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// A frame from another executor.
struct Forwarded {
    executor: u16,
    connection: PeerId,
    received_at: Nanos,
    frame: Box<[u8]>,
}

/// Frames for one shard that came over the mesh.
#[derive(Default)]
struct Queue {
    frames: RefCell<VecDeque<Forwarded>>,
    news: Event,
}

/// Starts everything that listens to the mesh.
pub fn start(executor: &Rc<Executor>, incoming: Incoming<Request, Return>) {
    let queues: Rc<Vec<Queue>> = Rc::new((0..executor.layout.shards).map(|_| Queue::default()).collect());
    for shard in executor.layout.shards_of(executor.index) {
        glommio::spawn_local(handle_forwarded(executor.clone(), shard, queues.clone())).detach();
    }
    for (peer, receiver) in incoming.requests {
        let (executor, queues) = (executor.clone(), queues.clone());
        glommio::spawn_local(async move {
            let mut taken = 0;
            while let Some(request) = receiver.recv().await {
                take_request(&executor, &queues, peer, request);
                taken += 1;
                if taken == MESH_PER_TURN {
                    taken = 0;
                    turn().await;
                }
            }
        })
        .detach();
    }
    for (peer, receiver) in incoming.returns {
        let executor = executor.clone();
        glommio::spawn_local(async move {
            let mut taken = 0;
            while let Some(message) = receiver.recv().await {
                take_return(&executor, peer, message);
                taken += 1;
                if taken == MESH_PER_TURN {
                    taken = 0;
                    turn().await;
                }
            }
        })
        .detach();
    }
}

fn take_request(executor: &Rc<Executor>, queues: &[Queue], peer: usize, request: Request) {
    let from = peer as u16;
    match request {
        Request::Forward { shard, connection, received_at, frame } => {
            let queue = &queues[usize::from(shard.0)];
            executor.forwarded_here.set(executor.forwarded_here.get() + 1);
            queue.frames.borrow_mut().push_back(Forwarded { executor: from, connection, received_at, frame });
            queue.news.raise();
        }
        Request::HandOver(handed) => executor.take_over(*handed),
        Request::Gone { connection } => proxy::end(executor, from, connection),
        Request::Window { connection, bytes } => {
            proxy::open_window(executor, from, connection, bytes);
        }
        Request::Topic { change, state } => {
            for shard in executor.local_shards() {
                if !executor.misses_news.get() {
                    shard.learn(&state);
                }
            }
            executor.mesh().give_back(peer, Return::Told { change });
        }
        Request::AskTopic { ticket, topic } => {
            if let Some(home) = executor.shard(HOME) {
                executor.mesh().give_back(peer, Return::TopicIs { ticket, state: home.topic_asked(&topic) });
            }
        }
        Request::AskReports { ticket } => {
            let reports = reports::local(executor);
            executor.mesh().give_back(peer, Return::Reports { ticket, reports });
        }
    }
}

fn take_return(executor: &Rc<Executor>, peer: usize, message: Return) {
    match message {
        Return::Answer { connection, shard, frame } => {
            executor.credit(shard).give_back();
            if let Some(connection) = executor.peers.connection(connection)
                && !frame.is_empty()
            {
                connection.send(|out| out.extend_from_slice(&frame));
                connection.answered();
            }
        }
        Return::Push { connection, frame, counts } => {
            if let Some(connection) = executor.peers.connection(connection) {
                if counts {
                    connection.note_window(peer, frame.len());
                }
                connection.send(|out| out.extend_from_slice(&frame));
            }
        }
        Return::Told { change } => {
            if let Some(home) = executor.shard(HOME) {
                catalogue::told(executor, &home, change);
            }
        }
        Return::TopicIs { ticket, state } => executor.tickets.answer(ticket, Reply::Topic(state)),
        Return::Reports { ticket, reports } => executor.tickets.answer(ticket, Reply::Reports(reports)),
    }
}

async fn handle_forwarded(executor: Rc<Executor>, shard: ShardId, queues: Rc<Vec<Queue>>) {
    let queue = &queues[usize::from(shard.0)];
    let mut handled = 0;
    loop {
        let next = queue.frames.borrow_mut().pop_front();
        let Some(forwarded) = next else {
            queue.news.wait().await;
            continue;
        };
        handle_one(&executor, shard, &forwarded).await;
        executor.forwarded_here.set(executor.forwarded_here.get() - 1);
        handled += 1;
        if handled == MESH_PER_TURN {
            handled = 0;
            turn().await;
        }
    }
}

async fn handle_one(executor: &Rc<Executor>, shard: ShardId, forwarded: &Forwarded) {
    let asker = Asker::There { executor: forwarded.executor, connection: forwarded.connection, shard };
    let Ok(Received::Frame(frame)) = frame::decode(&forwarded.frame, executor.facts.frame_max) else {
        unreachable!("the frame was whole when it was sent on")
    };
    let mut routed = router::route(executor, asker, &frame, forwarded.received_at);
    while let Err(wait) = routed {
        routed = match router::wait(executor, asker, &frame, forwarded.received_at, wait).await {
            Waited::Handled => Ok(()),
            Waited::Again => router::route(executor, asker, &frame, forwarded.received_at),
            Waited::Then(wait) => Err(wait),
        };
    }
    if !requests::is_answered(frame.head.kind) {
        // Its credit goes back without an answer.
        let done = Return::Answer { connection: forwarded.connection, shard, frame: Box::default() };
        executor.mesh().give_back(usize::from(forwarded.executor), done);
    }
}
