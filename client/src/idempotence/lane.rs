//! One producer's batches for one queue. The window holds the numbered batches from the oldest unanswered one; a batch's sequence is
//! `first + its place`. Rules, each with the mishap that it prevents:
//!
//! - A batch gets its number when it is first sent and keeps number and bytes through every reconnect, so that the broker can tell a
//!   repetition. Numbers never span more than 64, which is what the broker remembers.
//! - After a refusal nothing is sent until every batch in flight is answered (*settling*); then all that is unanswered goes again, in
//!   order. `OutOfSequence` is taken for a loss only if its attempt was sent after the acknowledgement that it contradicts had come.
//! - A batch gets another number only when the broker said that it does not have it: behind a finally refused one, which left its
//!   number unused, and after a loss, in a higher producer epoch. Behind a refused one, too, the epoch is raised if copies may still
//!   stand in an old connection's buffer: the higher epoch fences them.
//! - A message that times out after its batch was sent is reported as unknown, but the batch is sent on.

use std::collections::VecDeque;

use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{DurableLevel, Nanos, ProducerEpoch, QueueId, Sequence};
use peregrine_protocol::limits::IN_FLIGHT_MAX;

use super::back_off::BackOff;
use super::batch::{Acknowledgement, Batch, BatchToSend, Chunk, Loss, Outcome, State, Ticket};
use crate::error::{Error, Refusal};

/// Batches in flight per producer and queue: the broker remembers the answers to as many (DESIGN.md).
pub const MAX_IN_FLIGHT: usize = IN_FLIGHT_MAX as usize;
/// Sizes of acknowledged batches that a lane remembers, to say how many messages a loss took: 4 KiB.
const REMEMBERED_BATCHES: usize = 1024;
/// A broker may forget a producer that was silent for 7 days; an hour less, as clocks differ. No loss is reported then.
const FORGOTTEN_AFTER: Nanos = Nanos((7 * 24 - 1) * 3600 * 1_000_000_000);

/// What bounds a batch.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// Largest payload, in bytes.
    pub bytes: usize,
    /// Most records.
    pub records: usize,
}

/// Where numbering starts again in a higher producer epoch.
#[derive(Debug, Clone, Copy)]
struct Restart {
    /// Batches below keep their number and are answered first.
    from: Sequence,
    /// Acknowledged batches at or above this were reported lost.
    reported_from: Option<Sequence>,
}

#[derive(Debug)]
pub(super) struct Lane<T> {
    queue: QueueId,
    limits: BatchLimits,
    epoch: ProducerEpoch,
    /// Sequence of the window's front; of the next batch where the window is empty.
    first: Sequence,
    window: VecDeque<Batch<T>>,
    waiting: VecDeque<Chunk<T>>,
    next_attempt: u64,
    /// `next_attempt` when the newest acknowledgement came: attempts from here on were sent in its knowledge.
    attempt_after_acknowledgement: u64,
    in_flight: usize,
    connected: bool,
    settling: bool,
    restart: Option<Restart>,
    back_off: BackOff,
    resend_at: Option<Nanos>,
    /// Messages acknowledged with each of the batches just below `first`, the newest last.
    acknowledged_sizes: VecDeque<u32>,
    /// The newest batch of this epoch that was acknowledged as synced: nothing up to it can be lost.
    synced_through: Option<Sequence>,
    /// Batches of earlier epochs were acknowledged at `memory` and nothing was at `synced` since: they may be lost unnoticed.
    earlier_epochs_unsynced: bool,
    last_answer: Nanos,
    /// Why nothing is taken any more.
    closed: Option<Error>,
}

impl<T> Lane<T> {
    pub fn new(queue: QueueId, limits: BatchLimits, back_off: BackOff, connected: bool, now: Nanos) -> Self {
        Self {
            queue,
            limits,
            epoch: ProducerEpoch(0),
            first: Sequence(0),
            window: VecDeque::new(),
            waiting: VecDeque::new(),
            next_attempt: 0,
            attempt_after_acknowledgement: 0,
            in_flight: 0,
            connected,
            settling: false,
            restart: None,
            back_off,
            resend_at: None,
            acknowledged_sizes: VecDeque::new(),
            synced_through: None,
            earlier_epochs_unsynced: false,
            last_answer: now,
            closed: None,
        }
    }

    /// Takes one encoded record. It joins what waits, or waits alone.
    pub fn push(
        &mut self,
        level: DurableLevel,
        record: &[u8],
        token: T,
        deadline: Nanos,
        out: &mut VecDeque<Outcome<T>>,
    ) {
        if let Some(error) = &self.closed {
            out.push_back(Outcome::Failed { token, queue: self.queue, error: error.clone() });
            return;
        }
        let limits = self.limits;
        let fits = |chunk: &Chunk<T>| {
            chunk.level == level
                && chunk.records.len() < limits.records
                && chunk.payload.len() + record.len() <= limits.bytes
        };
        if !self.waiting.back().is_some_and(fits) {
            self.waiting.push_back(Chunk::new(level));
        }
        if let Some(chunk) = self.waiting.back_mut() {
            chunk.payload.extend_from_slice(record);
            chunk.records.push_back((record.len(), token, deadline));
        }
    }

    /// Whether [`Self::next_batch`] has one to give.
    pub fn can_send(&self, now: Nanos) -> bool {
        if !self.connected || self.settling || self.resend_at.is_some_and(|at| now < at) {
            return false;
        }
        self.next_unsent().is_some() || self.can_open_batch()
    }

    /// The next batch to put on the wire, the oldest first.
    pub fn next_batch(&mut self, now: Nanos) -> Option<BatchToSend> {
        if !self.can_send(now) {
            return None;
        }
        self.resend_at = None;
        let place = if let Some(place) = self.next_unsent() {
            place
        } else {
            let chunk = self.waiting.pop_front()?;
            self.window.push_back(chunk.into_batch());
            self.window.len() - 1
        };
        let attempt = self.next_attempt;
        self.next_attempt += 1;
        self.in_flight += 1;
        let sequence = Sequence(self.first.0 + place as u64);
        let batch = self.window.get_mut(place)?;
        batch.state = State::InFlight { attempt };
        Some(BatchToSend {
            ticket: Ticket { queue: self.queue, attempt },
            level: batch.level,
            epoch: self.epoch,
            sequence,
            records: batch.records,
            payload_crc: batch.payload_crc,
            payload: batch.payload.clone(),
        })
    }

    /// Brings the answer to an attempt.
    pub fn answered(
        &mut self,
        attempt: u64,
        answer: Result<Acknowledgement, Refusal>,
        now: Nanos,
        out: &mut VecDeque<Outcome<T>>,
    ) {
        let Some(place) = self.window.iter().position(|batch| batch.state == State::InFlight { attempt }) else {
            return; // an attempt that was given up with its connection, or answered before
        };
        self.in_flight -= 1;
        match answer {
            Ok(acknowledgement) => self.accepted(place, acknowledgement, out),
            Err(refusal) => self.refused(place, attempt, &refusal, now, out),
        }
        self.last_answer = now;
        self.settle();
    }

    /// The connection to the queue's shard is there (again).
    pub fn connected(&mut self) {
        self.connected = true;
        self.resend_at = None;
    }

    /// The connection is gone, and with it every answer that was due on it.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.in_flight = 0;
        for batch in &mut self.window {
            if let State::InFlight { .. } = batch.state {
                batch.state = State::Unsent { maybe_stored: true };
                batch.is_orphaned = true;
            }
        }
        self.settle();
    }

    /// Reports messages that are due as timed out: those not sent as not stored, those sent as unknown.
    pub fn expire(&mut self, now: Nanos, out: &mut VecDeque<Outcome<T>>) {
        let queue = self.queue;
        self.resend_at = self.resend_at.filter(|at| now < *at);
        for batch in &mut self.window {
            // One producer gives every message the same time, so the due ones are a prefix.
            let due = batch.pending.iter().take_while(|pending| pending.deadline <= now).count();
            let error = Error::TimedOut { maybe_stored: true };
            for pending in batch.pending.drain(..due) {
                out.push_back(Outcome::Failed { token: pending.token, queue, error: error.clone() });
            }
        }
        while let Some(chunk) = self.waiting.front_mut() {
            let mut cut = 0;
            while chunk.records.front().is_some_and(|(_, _, deadline)| *deadline <= now) {
                if let Some((len, token, _)) = chunk.records.pop_front() {
                    cut += len;
                    out.push_back(Outcome::Failed { token, queue, error: Error::TimedOut { maybe_stored: false } });
                }
            }
            chunk.payload.drain(..cut);
            if !chunk.records.is_empty() {
                break;
            }
            self.waiting.pop_front();
        }
    }

    /// Fails all that is pending and all that comes after, with this reason.
    pub fn close(&mut self, error: &Error, out: &mut VecDeque<Outcome<T>>) {
        let tokens = self.window.drain(..).flat_map(|batch| batch.pending).map(|pending| pending.token);
        let waiting = self.waiting.drain(..).flat_map(|chunk| chunk.records).map(|(_, token, _)| token);
        for token in tokens.chain(waiting) {
            out.push_back(Outcome::Failed { token, queue: self.queue, error: error.clone() });
        }
        self.in_flight = 0;
        self.settling = false;
        self.restart = None;
        self.closed = Some(error.clone());
    }

    /// When this lane next wants [`Self::expire`] or may send again; `None` where it waits for nothing that time brings.
    pub fn next_wake(&self) -> Option<Nanos> {
        let sent = self.window.iter().find_map(|batch| batch.pending.first()).map(|pending| pending.deadline);
        let waiting = self.waiting.front().and_then(|chunk| chunk.records.front()).map(|(_, _, deadline)| *deadline);
        let resend = self.resend_at.filter(|_| self.connected && !self.settling);
        [sent, waiting, resend].into_iter().flatten().min()
    }

    /// Whether nobody waits for anything.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.window.iter().all(|batch| batch.pending.is_empty())
    }

    /// Whether there is nothing to send either: timed out messages are sent on.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.window.is_empty()
    }

    /// Place of the first batch to send, if the oldest unsent one may go.
    fn next_unsent(&self) -> Option<usize> {
        let goes = |(place, batch): &(usize, &Batch<T>)| match (batch.state, self.restart) {
            (State::Unsent { .. }, None) => true,
            // Before the epoch is raised: those below it are answered first, and those above it are asked about once more if the
            // broker may have them.
            (State::Unsent { maybe_stored }, Some(restart)) => {
                maybe_stored || self.first.0 + (*place as u64) < restart.from.0
            }
            _ => false,
        };
        self.window.iter().enumerate().find(goes).map(|(place, _)| place)
    }

    fn can_open_batch(&self) -> bool {
        self.restart.is_none() && self.window.len() < MAX_IN_FLIGHT && !self.waiting.is_empty()
    }

    fn accepted(&mut self, place: usize, acknowledgement: Acknowledgement, out: &mut VecDeque<Outcome<T>>) {
        self.back_off.reset();
        self.attempt_after_acknowledgement = self.next_attempt;
        let queue = self.queue;
        if acknowledgement.level >= DurableLevel::Synced {
            self.synced_through = self.synced_through.max(Some(Sequence(self.first.0 + place as u64)));
            self.earlier_epochs_unsynced = false;
        }
        if let Some(batch) = self.window.get_mut(place) {
            batch.state = State::Acknowledged;
            batch.records = batch.pending.len() as u32; // what timed out was acknowledged to nobody
            for pending in std::mem::take(&mut batch.pending) {
                out.push_back(Outcome::Acknowledged {
                    token: pending.token,
                    queue,
                    index: pending.index,
                    record: batch.record(pending.start),
                    acknowledgement,
                });
            }
            batch.payload = bytes::Bytes::new();
        }
        self.retire_answered();
    }

    fn refused(&mut self, place: usize, attempt: u64, refusal: &Refusal, now: Nanos, out: &mut VecDeque<Outcome<T>>) {
        match refusal.code() {
            Some(ErrorCode::OutOfSequence | ErrorCode::UnknownProducer) => {
                let expected = Sequence(refusal.detail.expected_sequence.unwrap_or(0));
                self.set_state(place, State::Unsent { maybe_stored: false });
                let newest_acknowledged = self.newest_acknowledged();
                if newest_acknowledged.is_none_or(|newest| newest < expected) {
                    // Something below was refused or is being sent again; its own answer says how long to wait.
                    self.wait_and_resend(None, now);
                } else if attempt < self.attempt_after_acknowledgement {
                    // Sent before the acknowledgement came that it contradicts: it tells of an earlier moment. Ask again.
                    self.set_state(place, State::Unsent { maybe_stored: true });
                    self.settling = true;
                } else {
                    let forgotten = refusal.code() == Some(ErrorCode::UnknownProducer)
                        && now.saturating_sub(self.last_answer) >= FORGOTTEN_AFTER.0;
                    if !forgotten {
                        self.report_loss(expected, out);
                    }
                    self.restart_from(expected, Some(expected));
                    self.settling = true;
                }
            }
            _ if refusal.retriable => {
                self.set_state(place, State::Unsent { maybe_stored: true });
                self.wait_and_resend(refusal.detail.retry_after_ns, now);
            }
            Some(code) if ends_lane(code) => {
                self.set_state(place, State::Unsent { maybe_stored: false });
                self.close(&Error::from(refusal.clone()), out);
            }
            _ => {
                self.set_state(place, State::Rejected);
                let queue = self.queue;
                if let Some(batch) = self.window.get_mut(place) {
                    for pending in batch.pending.drain(..) {
                        let error = Error::from(refusal.clone());
                        out.push_back(Outcome::Failed { token: pending.token, queue, error });
                    }
                }
                self.settling = true;
            }
        }
    }

    /// Starts settling with one step of back-off per round; a hint of the broker only prolongs it.
    fn wait_and_resend(&mut self, hint_ns: Option<u64>, now: Nanos) {
        if !self.settling {
            self.settling = true;
            self.resend_at = Some(Nanos(now.0 + self.back_off.next_delay().0));
        }
        if let Some(hint_ns) = hint_ns {
            let hinted = Nanos(now.0.saturating_add(hint_ns));
            self.resend_at = Some(self.resend_at.map_or(hinted, |at| at.max(hinted)));
        }
    }

    fn restart_from(&mut self, from: Sequence, reported_from: Option<Sequence>) {
        let earlier = self.restart.unwrap_or(Restart { from, reported_from });
        let reported_from = match (earlier.reported_from, reported_from) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.restart = Some(Restart { from: earlier.from.min(from), reported_from });
    }

    /// Once nothing is in flight: sending may go on, and a due restart of the numbers is carried out when all below it is answered
    /// and nothing above it may be stored.
    fn settle(&mut self) {
        if self.in_flight > 0 {
            return;
        }
        self.settling = false;
        // One for a refused batch alone is decided anew: what made it necessary may be answered by now.
        self.restart = self.restart.filter(|restart| restart.reported_from.is_some());
        self.close_gaps();
        if let Some(restart) = self.restart
            && self.next_unsent().is_none()
        {
            self.raise_epoch(restart);
        }
    }

    /// Gives the numbers of finally refused batches to those behind them.
    fn close_gaps(&mut self) {
        while let Some(place) = self.window.iter().position(|batch| batch.state == State::Rejected) {
            let sequence = Sequence(self.first.0 + place as u64);
            if self.restart.is_some_and(|restart| restart.from <= sequence) {
                return; // dropped when the numbers start again
            }
            let mut behind = self.window.iter().skip(place + 1);
            if behind.clone().any(|batch| batch.state == State::Acknowledged) {
                // The number was used after all: an earlier copy was taken before the broker changed its mind.
                if let Some(batch) = self.window.get_mut(place) {
                    batch.state = State::Acknowledged;
                    batch.records = 0;
                }
                self.retire_answered();
            } else if self.restart.is_some() || behind.any(|batch| batch.is_orphaned && !batch.is_answered()) {
                // A copy in an old connection's buffer would become the next batch as soon as its predecessor's number is used.
                self.restart_from(sequence, None);
            } else {
                self.window.remove(place);
            }
        }
    }

    /// Numbers what is unanswered from 0 in the next producer epoch of this queue alone.
    fn raise_epoch(&mut self, restart: Restart) {
        self.earlier_epochs_unsynced |= restart.from.0 > self.synced_through.map_or(0, |synced| synced.0 + 1);
        self.synced_through = None;
        self.restart = None;
        self.epoch = ProducerEpoch(self.epoch.0.saturating_add(1));
        self.first = Sequence(0);
        // Nothing that stays is stored: what nobody waits for any more need not be.
        self.window.retain(|batch| !batch.is_answered() && !batch.pending.is_empty());
        for batch in &mut self.window {
            batch.is_orphaned = false; // its old copies are fenced
        }
        self.acknowledged_sizes.clear();
        self.resend_at = None;
    }

    /// Reports the acknowledged batches at or above `from`, less those reported before.
    fn report_loss(&mut self, from: Sequence, out: &mut VecDeque<Outcome<T>>) {
        let to = self.restart.and_then(|restart| restart.reported_from).unwrap_or(Sequence(u64::MAX));
        let below = self.first.min(to).0.saturating_sub(from.0); // acknowledged, and no longer in the window
        let skipped = self.first.0.saturating_sub(to.0) as usize;
        let sizes = self.acknowledged_sizes.iter().rev().skip(skipped).take(below as usize);
        let remembered = sizes.len() as u64;
        let mut loss = Loss {
            queue: self.queue,
            messages: sizes.map(|&size| u64::from(size)).sum(),
            exact: remembered == below && self.restart.is_none() && !(from.0 == 0 && self.earlier_epochs_unsynced),
        };
        for (place, batch) in self.window.iter().enumerate() {
            let sequence = Sequence(self.first.0 + place as u64);
            if batch.state == State::Acknowledged && sequence >= from && sequence < to {
                loss.messages += u64::from(batch.records);
            }
        }
        if loss.messages > 0 || !loss.exact {
            out.push_back(Outcome::Lost(loss));
        }
    }

    fn newest_acknowledged(&self) -> Option<Sequence> {
        let in_window = self.window.iter().rposition(|batch| batch.state == State::Acknowledged);
        match in_window {
            Some(place) => Some(Sequence(self.first.0 + place as u64)),
            None => self.first.0.checked_sub(1).map(Sequence),
        }
    }

    fn retire_answered(&mut self) {
        while self.window.front().is_some_and(|batch| batch.state == State::Acknowledged) {
            if let Some(batch) = self.window.pop_front() {
                if self.acknowledged_sizes.len() == REMEMBERED_BATCHES {
                    self.acknowledged_sizes.pop_front();
                }
                self.acknowledged_sizes.push_back(batch.records);
                self.first = Sequence(self.first.0 + 1);
            }
        }
    }

    fn set_state(&mut self, place: usize, state: State) {
        if let Some(batch) = self.window.get_mut(place) {
            batch.state = state;
        }
    }
}

/// Final errors that concern the queue or the producer rather than one batch.
fn ends_lane(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::TopicDeleted | ErrorCode::UnknownTopic | ErrorCode::UnknownQueue | ErrorCode::ProducerFenced
    )
}
