//! The client library of Peregrine, a low-latency message broker.
//!
//! [`Client`] is where to begin: it connects, learns the broker's shards, and makes [`Producer`]s, [`Consumer`]s, [`Reader`]s and
//! [`Admin`]. All of it runs on tokio. Below it stands a core without I/O, for programs with an event loop of their own: [`session`]
//! speaks the protocol of one connection, [`idempotence`] keeps what a producer sent from being stored twice, out of order, or not at
//! all, and [`group`] is a member of a consumer group.

mod admin;
mod client;
mod consumer;
pub mod error;
mod find;
pub mod group;
pub mod idempotence;
mod link;
mod message;
mod producer;
mod reader;
pub mod session;

pub use admin::{Admin, Description, Group, GroupDescription, Member, Offset, QueueLag, QueueReset, QueueState};
pub use client::{Client, ClientBuilder, Topic};
pub use consumer::{Acks, Consumer, ConsumerBuilder};
pub use error::{Error, Refusal, Result};
pub use find::{Find, FindBuilder};
pub use idempotence::Loss;
pub use message::{Delivery, Message};
pub use producer::{Acknowledged, Producer, ProducerBuilder, Receipt};
pub use reader::{Reader, ReaderBuilder};

pub use peregrine_protocol::error::ErrorCode;
pub use peregrine_protocol::ids::{
    DurableLevel, Epoch, GroupId, MemberId, MessageId, Nanos, QueueId, QueueOffset, Sequence, ShardId, TopicId,
};
pub use peregrine_protocol::locator::{BadLocator, MessageLocator};
pub use peregrine_protocol::message::{Start, Stats, TopicRetention};
