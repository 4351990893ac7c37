//! What reads the connections of a thread: answers to producers, deliveries to readers, everything to members.

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::frame::{self, Frame, Received};
use peregrine_protocol::ids::{Correlation, DurableLevel, ShardId, SubscriptionId};
use peregrine_protocol::message::{Answer, Credit, Deliver, ErrorAnswer};
use peregrine_protocol::record::Batch;

use super::members::Members;
use crate::clock::{MILLISECOND, Ns};
use crate::connection::Output;
use crate::transport::{Events, Origin, Refusal, TransportError};

/// Messages that a reader lets the broker send ahead, per queue.
pub(super) const CREDIT_MESSAGES: u32 = 4_096;
/// Before a refused message is sent again, where the broker does not say.
const RETRY_AFTER: Ns = MILLISECOND;

/// What a connection is for.
#[derive(Debug)]
pub(super) enum Role {
    Producer,
    /// Its subscriptions, ascending.
    Reader(Vec<Reading>),
    /// Which member, and to which shard it leads.
    Member(usize, ShardId),
}

/// What reading the connections needs.
#[derive(Debug)]
pub(super) struct Desk {
    pub level: DurableLevel,
    pub frame_max: u32,
    /// Bytes of a connection's input buffer.
    pub input_bytes: usize,
    /// By connection.
    pub roles: Vec<Role>,
    pub members: Members,
    pub credit_bytes: u64,
    /// A credit frame in the making.
    pub credit: Vec<u8>,
    /// Whether a message that was refused for good has been told of.
    pub told: bool,
}

/// A subscription and what was delivered on it since credit was given last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    pub subscription: SubscriptionId,
    pub queue: u32,
    pub messages: u32,
    pub bytes: u64,
}

impl Desk {
    /// Takes all whole frames of `bytes`; how many bytes that were.
    pub fn read(
        &mut self,
        number: usize,
        bytes: &[u8],
        output: &mut Output,
        now: Ns,
        events: &mut impl Events,
    ) -> Result<usize, TransportError> {
        let mut used = 0;
        loop {
            match frame::decode(&bytes[used..], self.frame_max) {
                Ok(Received::Frame(frame)) => {
                    used += frame.len();
                    self.take(number, &frame, output, now, events)?;
                }
                Ok(Received::Missing(missing)) if bytes.len() - used + missing <= self.input_bytes => return Ok(used),
                Ok(Received::Missing(missing)) => {
                    let sentence = format!("a frame of {missing} bytes more than the run's messages have");
                    return Err(TransportError::Protocol(sentence));
                }
                Err(error) => return Err(TransportError::Protocol(format!("the broker sent no frame: {error}"))),
            }
        }
    }

    fn take(
        &mut self,
        number: usize,
        frame: &Frame<'_>,
        output: &mut Output,
        now: Ns,
        events: &mut impl Events,
    ) -> Result<(), TransportError> {
        let answer = Answer::decode(frame).map_err(|error| TransportError::Protocol(error.to_string()))?;
        let correlation = frame.head.correlation;
        if let Role::Member(member, shard) = self.roles[number] {
            return self.members.take((member, shard), correlation, answer, now, events);
        }
        let index = correlation.0.checked_sub(1);
        match (answer, index) {
            (Answer::Produce(answer), Some(index)) => {
                if answer.level < self.level {
                    let sentence = format!("{} was asked for, {} acknowledged", self.level, answer.level);
                    return Err(TransportError::Protocol(sentence));
                }
                events.acknowledged(index, now);
            }
            (Answer::Deliver(delivery), None) => self.deliver(number, &delivery, output, now, events)?,
            (Answer::Error(error), Some(index)) => events.refused(index, self.refusal(&error), now),
            (Answer::Error(error), None) => return Err(TransportError::Protocol(error.sentence.to_owned())),
            (other, _) => {
                return Err(TransportError::Protocol(format!("the broker sent what nobody asked for: {other:?}")));
            }
        }
        Ok(())
    }

    fn deliver(
        &mut self,
        number: usize,
        delivery: &Deliver<'_>,
        output: &mut Output,
        now: Ns,
        events: &mut impl Events,
    ) -> Result<(), TransportError> {
        let readings = match &mut self.roles[number] {
            Role::Reader(readings) => readings.as_mut_slice(),
            Role::Producer | Role::Member(..) => &mut [],
        };
        let Ok(at) = readings.binary_search_by_key(&delivery.subscription, |reading| reading.subscription) else {
            return Err(TransportError::Protocol(format!("a delivery for no subscription, {}", delivery.subscription)));
        };
        let reading = &mut readings[at];
        let origin = Origin::reader(reading.queue);
        match Batch::new(delivery.payload, delivery.batch.record_count) {
            Ok(batch) => {
                let skipped = (delivery.batch.first_wanted - delivery.batch.base_offset) as usize;
                for record in batch.records().skip(skipped) {
                    // A record that cannot be read is counted as corrupt, as its empty body is.
                    events.delivered(&origin, record.as_ref().map_or(&[], |record| record.body()), now);
                }
            }
            Err(_) => events.delivered(&origin, &[], now),
        }
        reading.messages += delivery.batch.record_count;
        reading.bytes += delivery.payload.len() as u64;
        if reading.messages >= CREDIT_MESSAGES / 2 || reading.bytes >= self.credit_bytes / 2 {
            let credit =
                Credit { subscription: reading.subscription, messages: reading.messages, bytes: reading.bytes };
            self.credit.clear();
            credit.encode(Correlation(0), &mut self.credit);
            if output.push(&self.credit) {
                (reading.messages, reading.bytes) = (0, 0);
            }
        }
        Ok(())
    }

    fn refusal(&mut self, error: &ErrorAnswer<'_>) -> Refusal {
        if !error.retriable {
            if !std::mem::replace(&mut self.told, true) {
                eprintln!("peregrine-loadgen: a message was refused for good: {}", error.sentence);
            }
            return Refusal::Final;
        }
        let behind_another = error.known_code() == Some(ErrorCode::OutOfSequence);
        let after = error.detail.retry_after_ns.unwrap_or(if behind_another { 0 } else { RETRY_AFTER });
        Refusal::Retry { after }
    }
}
