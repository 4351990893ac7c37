//! Hello, and the error answer.

use flatbuffers::WIPOffset;

use super::DecodeError;
use super::table::{self, Envelope};
use crate::entry::DirectoryId;
use crate::error::{ErrorCode, ErrorDetail};
use crate::frame::Kind;
use crate::generated as wire;
use crate::ids::{Correlation, ShardId};
use crate::limits::{AUTHENTICATION_MAX, CLIENT_TEXT_MAX, NAME_MAX, SENTENCE_MAX};

/// On the wire: the client does not mind which shard serves the connection.
const ANY_SHARD: u16 = u16::MAX;

/// The first request of a connection; nothing else is sent before its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hello<'a> {
    /// The client instance: unique among the clients that run now.
    pub client: &'a str,
    /// Name and version of the client's software, for the log.
    pub software: &'a str,
    /// Bits that later versions will give a meaning.
    pub capabilities: u64,
    /// Empty: the default namespace.
    pub namespace: &'a str,
    /// The shard that the connection is for.
    pub shard: Option<ShardId>,
    /// Empty: none.
    pub mechanism: &'a str,
    pub authentication: &'a [u8],
}

impl<'a> Hello<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::Hello<'a>>(header)?;
        let authentication = table.authentication().map_or(&[][..], |data| data.bytes());
        if authentication.len() > AUTHENTICATION_MAX {
            return Err(DecodeError::Field("authentication"));
        }
        Ok(Self {
            client: table::bounded(Some(table.client()), CLIENT_TEXT_MAX, "client")?,
            software: table::bounded(table.software(), CLIENT_TEXT_MAX, "software")?,
            capabilities: table.capabilities(),
            namespace: table::bounded(table.namespace(), NAME_MAX, "namespace")?,
            shard: Some(table.shard()).filter(|&shard| shard != ANY_SHARD).map(ShardId),
            mechanism: table::bounded(table.mechanism(), CLIENT_TEXT_MAX, "mechanism")?,
            authentication,
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::request(Kind::Hello, correlation).write(out, |builder| {
            let args = wire::HelloArgs {
                client: Some(builder.create_string(self.client)),
                software: Some(builder.create_string(self.software)),
                capabilities: self.capabilities,
                namespace: Some(builder.create_string(self.namespace)),
                shard: self.shard.map_or(ANY_SHARD, |shard| shard.0),
                mechanism: Some(builder.create_string(self.mechanism)),
                authentication: Some(builder.create_vector(self.authentication)),
            };
            wire::Hello::create(builder, &args)
        });
    }
}

/// The connection is open, or authentication goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloAnswer<'a> {
    /// `Some`: send another hello with the answer to this.
    pub challenge: Option<&'a [u8]>,
    pub directory: DirectoryId,
    pub capabilities: u64,
    /// How many shards the broker has.
    pub shards: u16,
    /// The one that serves this connection.
    pub shard: ShardId,
    /// Bytes of the largest record (its length field).
    pub message_max: u32,
    /// Bytes of the largest frame, head included, in both directions.
    pub frame_max: u32,
    pub software: &'a str,
}

impl<'a> HelloAnswer<'a> {
    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::HelloAnswer<'a>>(header)?;
        if table.shards() == 0 {
            return Err(DecodeError::Field("shards"));
        }
        Ok(Self {
            challenge: table.challenge().map(|data| data.bytes()),
            directory: directory(table.directory_high(), table.directory_low()),
            capabilities: table.capabilities(),
            shards: table.shards(),
            shard: ShardId(table.shard()),
            message_max: table.message_max(),
            frame_max: table.frame_max(),
            software: table::bounded(table.software(), CLIENT_TEXT_MAX, "software")?,
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::answer(Kind::Hello, correlation).write(out, |builder| {
            let args = wire::HelloAnswerArgs {
                challenge: self.challenge.map(|data| builder.create_vector(data)),
                directory_high: (self.directory.0 >> 64) as u64,
                directory_low: self.directory.0 as u64,
                capabilities: self.capabilities,
                shards: self.shards,
                shard: self.shard.0,
                message_max: self.message_max,
                frame_max: self.frame_max,
                software: Some(builder.create_string(self.software)),
            };
            wire::HelloAnswer::create(builder, &args)
        });
    }
}

pub(super) fn directory(high: u64, low: u64) -> DirectoryId {
    DirectoryId(u128::from(high) << 64 | u128::from(low))
}

/// Instead of an answer: what went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorAnswer<'a> {
    /// An [`ErrorCode`], or one of a later version.
    pub code: u16,
    /// Whether the same request may succeed later; travels along so that unknown codes are usable.
    pub retriable: bool,
    pub sentence: &'a str,
    pub detail: ErrorDetail,
}

impl ErrorAnswer<'static> {
    /// The error with its general sentence.
    pub fn new(code: ErrorCode) -> Self {
        Self {
            code: code.number(),
            retriable: code.is_retriable(),
            sentence: code.sentence(),
            detail: ErrorDetail::default(),
        }
    }
}

impl<'a> ErrorAnswer<'a> {
    /// The error with a more exact sentence.
    pub fn saying(code: ErrorCode, sentence: &'a str) -> Self {
        Self { sentence, ..ErrorAnswer::new(code) }
    }

    pub fn with(self, detail: ErrorDetail) -> Self {
        Self { detail, ..self }
    }

    /// The code, where this version knows it.
    pub fn known_code(&self) -> Option<ErrorCode> {
        ErrorCode::from_number(self.code)
    }

    pub fn decode(header: &'a [u8]) -> Result<Self, DecodeError> {
        let table = table::read::<wire::Error<'a>>(header)?;
        Ok(Self {
            code: table.code(),
            retriable: table.retriable(),
            sentence: table::bounded(table.sentence(), SENTENCE_MAX, "sentence")?,
            detail: ErrorDetail {
                expected_sequence: table.expected_sequence(),
                offset: table.offset(),
                shard: table.shard(),
                retry_after_ns: table.retry_after_ns(),
                subscription: table.subscription(),
                member: table.member(),
            },
        })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        let sentence = &self.sentence[..self.sentence.floor_char_boundary(SENTENCE_MAX)];
        Envelope::answer(Kind::Error, correlation).write(out, |builder| -> WIPOffset<wire::Error<'_>> {
            let args = wire::ErrorArgs {
                code: self.code,
                retriable: self.retriable,
                sentence: Some(builder.create_string(sentence)),
                expected_sequence: self.detail.expected_sequence,
                offset: self.detail.offset,
                shard: self.detail.shard,
                retry_after_ns: self.detail.retry_after_ns,
                subscription: self.detail.subscription,
                member: self.detail.member,
            };
            wire::Error::create(builder, &args)
        });
    }
}
