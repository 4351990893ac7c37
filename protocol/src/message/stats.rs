//! Statistics, for people and their tools: JSON that the broker makes.

use super::DecodeError;
use super::table::{self, Envelope};
use crate::frame::Kind;
use crate::generated as wire;
use crate::ids::Correlation;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum Stats {
    /// The histograms of each stage.
    Latency = 1,
    /// Counters and positions of each shard.
    Shards = 2,
}

impl Stats {
    fn from_number(number: u8) -> Result<Self, DecodeError> {
        match number {
            1 => Ok(Self::Latency),
            2 => Ok(Self::Shards),
            _ => Err(DecodeError::Field("what")),
        }
    }

    pub fn decode(header: &[u8]) -> Result<Self, DecodeError> {
        Self::from_number(table::read::<wire::Stats<'_>>(header)?.what())
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        Envelope::request(Kind::Stats, correlation)
            .write(out, |builder| wire::Stats::create(builder, &wire::StatsArgs { what: *self as u8 }));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatsAnswer<'a> {
    pub what: Stats,
    /// One JSON document.
    pub json: &'a [u8],
}

impl<'a> StatsAnswer<'a> {
    pub fn decode(header: &[u8], body: &'a [u8]) -> Result<Self, DecodeError> {
        let what = Stats::from_number(table::read::<wire::StatsAnswer<'_>>(header)?.what())?;
        Ok(Self { what, json: body })
    }

    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        let envelope = Envelope { body: self.json, ..Envelope::answer(Kind::Stats, correlation) };
        envelope
            .write(out, |builder| wire::StatsAnswer::create(builder, &wire::StatsAnswerArgs { what: self.what as u8 }));
    }
}
