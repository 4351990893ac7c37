//! What a broker says of itself when a connection opens.

use peregrine_protocol::entry::DirectoryId;
use peregrine_protocol::ids::ShardId;
use peregrine_protocol::message::HelloAnswer;

/// The broker at the other end, from its answer to the hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerInfo {
    /// Its data directory, for ever: another id is another broker, whose offsets and sequences mean nothing here.
    pub directory: DirectoryId,
    /// How many shards it has; fixed for the data directory.
    pub shards: u16,
    /// The shard that serves this connection.
    pub shard: ShardId,
    /// Bytes of the largest record: header and sections.
    pub message_max: u32,
    /// Bytes of the largest frame, head included.
    pub frame_max: u32,
}

impl From<&HelloAnswer<'_>> for BrokerInfo {
    fn from(answer: &HelloAnswer<'_>) -> Self {
        Self {
            directory: answer.directory,
            shards: answer.shards,
            shard: answer.shard,
            message_max: answer.message_max,
            frame_max: answer.frame_max,
        }
    }
}
