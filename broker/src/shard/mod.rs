//! The glommio side of the broker: executors, the listening socket, connections, the router and the mesh between shards.
//!
//! - `run`, `startup`, `stop`: a broker's shards from start to stop; `runtime`, `executor`: what they run on
//! - `listener`, `greeting`, `connection`, `peers`, `sweeper`: clients
//! - `router`, `requests`, `produce`, `large`, `listings`, `catalogue`, `group`: what they ask for
//! - `state`, `open_log`, `flusher`, `checkpoints`, `retention`: a shard; `stages`, `reports`: its figures
//! - `mesh`, `mesh_messages`, `credit`, `gate`, `forwarding`, `inbox`, `proxy`, `tickets`: between executors
//! - `event`, `crowd`: what tasks wait for

pub mod answers;
pub mod catalogue;
pub mod checkpoints;
pub mod clock;
pub mod connection;
pub mod credit;
pub mod crowd;
pub mod echo;
pub mod event;
pub mod executor;
pub mod flusher;
pub mod forwarding;
pub mod gate;
pub mod greeting;
pub mod group;
pub mod inbox;
pub mod large;
pub mod listener;
pub mod listings;
mod look_ups;
pub mod mesh;
pub mod mesh_messages;
pub mod open_log;
pub mod peers;
pub mod produce;
pub mod proxy;
pub mod reports;
pub mod requests;
pub mod retention;
pub mod router;
pub mod run;
pub mod runtime;
pub mod seams;
pub mod search;
pub mod stages;
pub mod startup;
pub mod state;
pub mod stop;
pub mod storage;
pub mod subscriptions;
pub mod sweeper;
pub mod tickets;
pub mod watchdog;

#[cfg(test)]
pub(crate) mod tests;
