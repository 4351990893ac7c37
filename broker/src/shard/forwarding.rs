//! What comes over the mesh: one task per channel takes messages, one per shard handles requests for it ([`super::inbox`]).

use crate::engine::HOME;
use crate::limits::MESH_PER_TURN;
use crate::shard::catalogue;
use crate::shard::executor::Executor;
use crate::shard::gate::{self, Batch};
use crate::shard::group;
use crate::shard::inbox::{self, Departed, Forwarded, Inbox, Item};
use crate::shard::mesh::Incoming;
use crate::shard::mesh_messages::{Request, Return};
use crate::shard::proxy;
use crate::shard::reports;
use crate::shard::runtime::{self, turn};
use crate::shard::seams::PlantedInShards;
use crate::shard::tickets::Reply;
use peregrine_protocol::ids::ShardId;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Of the shards that live here.
type Inboxes = BTreeMap<ShardId, Rc<Inbox>>;

/// Starts everything that listens to the mesh.
pub fn start(executor: &Rc<Executor>, incoming: Incoming<Request, Return>) {
    let inboxes: Inboxes = executor.layout.shards_of(executor.index).map(|shard| (shard, Rc::default())).collect();
    for (&shard, inbox) in &inboxes {
        runtime::spawn(inbox::run(executor.clone(), shard, inbox.clone())).detach();
    }
    let inboxes = Rc::new(inboxes);
    for (peer, receiver) in incoming.requests {
        let (executor, inboxes) = (executor.clone(), inboxes.clone());
        runtime::spawn(async move {
            let mut taken = 0;
            while let Some(request) = receiver.recv().await {
                take_request(&executor, &inboxes, peer, request);
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
        runtime::spawn(async move {
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

fn take_request(executor: &Rc<Executor>, inboxes: &Inboxes, peer: usize, request: Request) {
    let from = peer as u16;
    match request {
        Request::Forward { shard, connection, received_at, frame } => {
            executor.forwarded_here.set(executor.forwarded_here.get() + 1);
            inboxes[&shard].put(Item::Frame(Forwarded { executor: from, connection, received_at, frame }));
        }
        Request::AskRoom { shard } => inboxes[&shard].put(Item::AskRoom { executor: from }),
        Request::HandOver(handed) => executor.take_over(*handed),
        Request::Gone { connection } => {
            let departed = Rc::new(Departed { executor: from, connection, left: Cell::new(inboxes.len()) });
            for inbox in inboxes.values() {
                inbox.put(Item::Gone(departed.clone()));
            }
        }
        Request::Window { connection, bytes } => {
            proxy::open_window(executor, from, connection, bytes);
        }
        Request::Catalogue { change, state } => {
            for shard in executor.local_shards() {
                if !executor.seams.misses_news {
                    shard.learn(&state);
                }
            }
            executor.mesh().give_back(peer, Return::Told { change });
        }
        Request::AskCatalogue { ticket, asked } => {
            if let Some(home) = executor.shard(HOME) {
                let state = home.catalogue_asked(&asked);
                executor.mesh().give_back(peer, Return::CatalogueIs { ticket, state });
            }
        }
        Request::Assign(assigned) => group::members::assign(executor, &assigned),
        Request::AskReports { ticket } => {
            let reports = reports::local(executor);
            executor.mesh().give_back(peer, Return::Reports { ticket, reports });
        }
    }
}

fn take_return(executor: &Rc<Executor>, peer: usize, message: Return) {
    match message {
        Return::Answer { connection, shard, frame } => {
            executor.credit(shard).place_back();
            let is_lost = executor.seams.has_planted(PlantedInShards::LoseForwardedAnswer);
            if let Some(connection) = executor.peers.connection(connection)
                && !frame.is_empty()
                && !is_lost
            {
                connection.send(|out| out.extend_from_slice(&frame));
                connection.answered();
            }
        }
        Return::Full { connection, shard, received_at, frame } => {
            executor.credit(shard).place_back();
            gate::take_back(executor, shard, Batch { connection, received_at, frame });
        }
        Return::LateAnswer { connection, frame } => {
            if let Some(connection) = executor.peers.connection(connection) {
                connection.note_window(peer, frame.len());
                connection.send(|out| out.extend_from_slice(&frame));
                connection.answered();
            }
        }
        Return::Handled { shard, bytes } => executor.credit(shard).bytes_back(bytes),
        Return::Room { shard } => gate::room_came(executor, shard),
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
        Return::CatalogueIs { ticket, state } => executor.tickets.answer(ticket, Reply::Catalogue(state)),
        Return::Reports { ticket, reports } => executor.tickets.answer(ticket, Reply::Reports(reports)),
    }
}
