//! Property test of the producer core against a model of the broker that loses connections, answers out of order and twice, refuses,
//! is killed, and loses its unsynced log in power cuts; bytes of a given-up connection may still be carried out later. The oracle is
//! the model's log: what was acknowledged stands in it once and in order, or is reported lost, in the right number.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use peregrine_protocol::error::{ErrorCode, ErrorDetail};
use peregrine_protocol::ids::{
    DurableLevel, Epoch, LogPosition, Nanos, ProducerEpoch, QueueId, QueueOffset, Sequence, ShardId,
};
use peregrine_protocol::placement::TopicHash;
use proptest::prelude::*;

use super::batch::{Acknowledgement, BatchToSend, Outcome, Ticket};
use super::core::{CoreOptions, ProducerCore};
use super::lane::BatchLimits;
use crate::error::{Error, Refusal};

const QUEUES: u32 = 3;
const SHARDS: u16 = 2;
const STEP: Nanos = Nanos::from_millis(20);

#[derive(Debug, Clone)]
enum Action {
    Push {
        queue: u32,
        synced: bool,
        bad: bool,
    },
    /// The client puts up to this many batches on its connections.
    Send(u8),
    /// The broker takes up to this many requests of one connection, dead ones included.
    Process {
        connection: u8,
        count: u8,
    },
    Flush {
        shard: u16,
        upto: u8,
    },
    Answer {
        pick: u8,
        twice: bool,
    },
    Disconnect {
        shard: u16,
    },
    Connect {
        shard: u16,
    },
    Kill {
        shard: u16,
    },
    Power {
        shard: u16,
        keep: u8,
    },
    Busy {
        shard: u16,
        requests: u8,
    },
    Poison {
        shard: u16,
    },
    Wait(u8),
}

fn action() -> impl Strategy<Value = Action> {
    let shard = 0..SHARDS;
    prop_oneof![
        12 => (0..QUEUES, any::<bool>(), 0..40_u8)
            .prop_map(|(queue, synced, bad)| Action::Push { queue, synced, bad: bad == 0 }),
        8 => (1..6_u8).prop_map(Action::Send),
        8 => (any::<u8>(), 1..6_u8).prop_map(|(connection, count)| Action::Process { connection, count }),
        5 => (shard.clone(), any::<u8>()).prop_map(|(shard, upto)| Action::Flush { shard, upto }),
        8 => (any::<u8>(), any::<bool>()).prop_map(|(pick, twice)| Action::Answer { pick, twice }),
        2 => shard.clone().prop_map(|shard| Action::Disconnect { shard }),
        5 => shard.clone().prop_map(|shard| Action::Connect { shard }),
        1 => shard.clone().prop_map(|shard| Action::Kill { shard }),
        1 => (shard.clone(), any::<u8>()).prop_map(|(shard, keep)| Action::Power { shard, keep }),
        1 => (shard.clone(), 1..5_u8).prop_map(|(shard, requests)| Action::Busy { shard, requests }),
        1 => shard.prop_map(|shard| Action::Poison { shard }),
        3 => (1..5_u8).prop_map(Action::Wait),
    ]
}

/// A batch in the model's log.
#[derive(Debug, Clone)]
struct Stored {
    queue: QueueId,
    epoch: ProducerEpoch,
    sequence: Sequence,
    level: DurableLevel,
    crc: u32,
    messages: Vec<u64>,
}

#[derive(Debug, Default)]
struct Shard {
    log: Vec<Stored>,
    durable: usize,
    busy: u8,
    poisoned: bool,
}

#[derive(Debug)]
struct Connection {
    shard: ShardId,
    is_alive: bool,
    requests: VecDeque<BatchToSend>,
    /// Appended, and to be answered when durable is above this index of the log.
    held: Vec<(usize, Ticket, bool)>,
    answers: Vec<(Ticket, Result<Acknowledgement, Refusal>)>,
}

struct World {
    core: ProducerCore<u64>,
    shards: Vec<Shard>,
    connections: Vec<Connection>,
    bad: BTreeSet<u64>,
    now: Nanos,
    next_message: u64,
    power_cuts: usize,
    disconnects: usize,
    /// A power cut that nobody can notice whole: a second one, or one behind an epoch raised for a refused batch.
    may_go_unnoticed: bool,
    acknowledged: BTreeMap<u64, DurableLevel>,
    failed: BTreeMap<u64, Error>,
    lost: u64,
    lost_exactly: bool,
}

impl World {
    fn new(timeout: Nanos) -> Self {
        let options = CoreOptions {
            topic: TopicHash(0),
            shards: SHARDS,
            limits: BatchLimits { bytes: 24, records: 8 },
            timeout,
            seed: 1,
        };
        Self {
            core: ProducerCore::new(options),
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            connections: Vec::new(),
            bad: BTreeSet::new(),
            now: Nanos(1),
            next_message: 0,
            power_cuts: 0,
            disconnects: 0,
            may_go_unnoticed: false,
            acknowledged: BTreeMap::new(),
            failed: BTreeMap::new(),
            lost: 0,
            lost_exactly: true,
        }
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Push { queue, synced, bad } => self.push(QueueId(queue), synced, bad),
            Action::Send(count) => self.send(count.into()),
            Action::Process { connection, count } => {
                if !self.connections.is_empty() {
                    let index = connection as usize % self.connections.len();
                    self.process(index, count.into());
                }
            }
            Action::Flush { shard, upto } => self.flush(shard, upto.into()),
            Action::Answer { pick, twice } => self.answer(pick.into(), twice),
            Action::Disconnect { shard } => self.disconnect(shard),
            Action::Connect { shard } => self.connect(shard),
            Action::Kill { shard } => self.restart(shard),
            Action::Power { shard, keep } => {
                self.power_cuts += 1;
                self.may_go_unnoticed |= self.power_cuts > 1 || (self.disconnects > 0 && !self.bad.is_empty());
                self.restart(shard);
                let shard = &mut self.shards[shard as usize];
                let unsynced = shard.log.len() - shard.durable;
                shard.log.truncate(shard.durable + keep as usize % (unsynced + 1));
                shard.durable = shard.log.len();
            }
            Action::Busy { shard, requests } => self.shards[shard as usize].busy = requests,
            Action::Poison { shard } => self.shards[shard as usize].poisoned = true,
            Action::Wait(steps) => {
                self.now = Nanos(self.now.0 + STEP.0 * u64::from(steps));
                self.core.wake(self.now);
            }
        }
        self.collect();
    }

    fn push(&mut self, queue: QueueId, synced: bool, bad: bool) {
        let message = self.next_message;
        self.next_message += 1;
        if bad {
            self.bad.insert(message);
        }
        let level = if synced { DurableLevel::Synced } else { DurableLevel::Memory };
        self.core.push(queue, level, &message.to_le_bytes(), message, self.now);
    }

    fn send(&mut self, count: usize) {
        for _ in 0..count {
            let Some((shard, batch)) = self.core.next_batch(self.now) else { return };
            let connection = self.connections.iter_mut().rfind(|c| c.shard == shard && c.is_alive);
            connection.expect("batches go to connected shards").requests.push_back(batch);
        }
    }

    fn process(&mut self, index: usize, count: usize) {
        for _ in 0..count {
            let Some(batch) = self.connections[index].requests.pop_front() else { return };
            let shard = &mut self.shards[self.connections[index].shard.0 as usize];
            let connection = &mut self.connections[index];
            match shard.decide(&batch, &self.bad) {
                Ok((place, duplicate)) => match batch.level {
                    DurableLevel::Synced if place >= shard.durable => {
                        connection.held.push((place, batch.ticket, duplicate));
                    }
                    _ => connection.answers.push((batch.ticket, Ok(shard.acknowledge(place, duplicate)))),
                },
                Err(refusal) => connection.answers.push((batch.ticket, Err(refusal))),
            }
        }
    }

    fn flush(&mut self, shard: u16, upto: usize) {
        let state = &mut self.shards[shard as usize];
        if state.poisoned {
            return;
        }
        state.durable += upto % (state.log.len() - state.durable + 1);
        for connection in self.connections.iter_mut().filter(|c| c.shard.0 == shard) {
            let (due, held) = connection.held.iter().partition(|(place, ..)| *place < state.durable);
            connection.held = held;
            for (place, ticket, duplicate) in due {
                connection.answers.push((ticket, Ok(state.acknowledge(place, duplicate))));
            }
        }
    }

    fn answer(&mut self, pick: usize, twice: bool) {
        let alive: Vec<usize> = (0..self.connections.len())
            .filter(|&i| self.connections[i].is_alive && !self.connections[i].answers.is_empty())
            .collect();
        let Some(&index) = alive.get(pick % alive.len().max(1)) else { return };
        let answers = &mut self.connections[index].answers;
        let (ticket, answer) = answers.remove(pick % answers.len());
        if twice {
            self.core.answered(ticket, answer.clone(), self.now);
        }
        self.core.answered(ticket, answer, self.now);
    }

    /// The client gives the connection up. What it had sent may still be carried out.
    fn disconnect(&mut self, shard: u16) {
        for connection in self.connections.iter_mut().filter(|c| c.shard.0 == shard && c.is_alive) {
            connection.is_alive = false;
            self.disconnects += 1;
            self.core.disconnected(ShardId(shard), self.now);
        }
    }

    fn connect(&mut self, shard: u16) {
        if !self.connections.iter().any(|c| c.shard.0 == shard && c.is_alive) {
            self.connections.push(Connection {
                shard: ShardId(shard),
                is_alive: true,
                requests: VecDeque::new(),
                held: Vec::new(),
                answers: Vec::new(),
            });
            self.core.connected(ShardId(shard), self.now);
        }
    }

    /// The broker's process ends: every connection with all its bytes is gone, the log stands.
    fn restart(&mut self, shard: u16) {
        self.disconnect(shard);
        self.connections.retain(|c| c.shard.0 != shard);
        self.shards[shard as usize].poisoned = false;
        self.shards[shard as usize].busy = 0;
    }

    fn collect(&mut self) {
        while let Some(outcome) = self.core.next_outcome() {
            match outcome {
                Outcome::Acknowledged { token, acknowledgement, .. } => {
                    assert!(self.acknowledged.insert(token, acknowledgement.level).is_none(), "{token} twice");
                }
                Outcome::Failed { token, error, .. } => {
                    assert!(self.failed.insert(token, error).is_none(), "{token} failed twice");
                }
                Outcome::Lost(loss) => {
                    self.lost += loss.messages;
                    self.lost_exactly &= loss.exact;
                }
            }
        }
    }

    /// No more failures: everything must come to an end.
    fn heal(&mut self) {
        for shard in 0..SHARDS {
            self.restart(shard);
        }
        self.come_to_rest();
        for queue in 0..QUEUES {
            self.push(QueueId(queue), true, false); // discovers what was lost
        }
        self.come_to_rest();
    }

    fn come_to_rest(&mut self) {
        for _ in 0..2_000 {
            for shard in 0..SHARDS {
                self.connect(shard);
            }
            self.send(100);
            for index in 0..self.connections.len() {
                self.process(index, usize::MAX);
            }
            for shard in 0..SHARDS {
                let state = &self.shards[shard as usize];
                self.flush(shard, state.log.len() - state.durable);
            }
            while self.connections.iter().any(|c| !c.answers.is_empty()) {
                self.answer(0, false);
            }
            self.act(&Action::Wait(1));
            if self.core.is_empty() {
                return;
            }
        }
        panic!("the core does not come to rest: {:#?}", self.core);
    }

    fn check(&self) {
        let mut places: BTreeMap<u64, usize> = BTreeMap::new();
        for stored in self.shards.iter().flat_map(|shard| &shard.log) {
            for &message in &stored.messages {
                *places.entry(message).or_default() += 1;
            }
        }
        for (message, count) in &places {
            assert_eq!(*count, 1, "message {message} is stored {count} times");
        }
        for queue in 0..QUEUES {
            let logs = self.shards.iter().flat_map(|shard| &shard.log).filter(|stored| stored.queue.0 == queue);
            assert!(logs.flat_map(|stored| &stored.messages).is_sorted(), "queue {queue} is out of order");
        }
        for message in 0..self.next_message {
            let (acked, failed) = (self.acknowledged.get(&message), self.failed.get(&message));
            assert!(acked.is_some() != failed.is_some(), "message {message} has not exactly one outcome");
            let is_stored = places.contains_key(&message);
            assert!(acked != Some(&DurableLevel::Synced) || is_stored, "synced message {message} is lost");
            if let Some(Error::Refused(_) | Error::TimedOut { maybe_stored: false }) = failed {
                assert!(!is_stored, "message {message} failed and is stored: {failed:?}");
            }
        }
        let gone = self.acknowledged.keys().filter(|message| !places.contains_key(message)).count() as u64;
        assert!(self.lost <= gone, "{} reported lost, {gone} are", self.lost);
        if self.lost_exactly && !self.may_go_unnoticed {
            assert_eq!(self.lost, gone, "reported lost, and lost");
        }
    }
}

impl Shard {
    /// What DESIGN.md says about sequences. Answers the batch's place in the log and whether it was there before.
    fn decide(&mut self, batch: &BatchToSend, bad: &BTreeSet<u64>) -> Result<(usize, bool), Refusal> {
        if self.busy > 0 {
            self.busy -= 1;
            return Err(refusal(ErrorCode::Busy, None));
        }
        let messages: Vec<u64> =
            batch.payload.chunks_exact(8).map(|id| u64::from_le_bytes(id.try_into().expect("8 bytes"))).collect();
        if messages.iter().any(|message| bad.contains(message)) {
            return Err(refusal(ErrorCode::CorruptPayload, None));
        }
        let queue = batch.ticket.queue;
        let newest = self.log.iter().rfind(|stored| stored.queue == queue);
        let expected = match newest {
            None if batch.sequence.0 > 0 => return Err(refusal(ErrorCode::UnknownProducer, Some(0))),
            Some(newest) if batch.epoch < newest.epoch => return Err(refusal(ErrorCode::ProducerFenced, None)),
            Some(newest) if batch.epoch == newest.epoch => newest.sequence.0 + 1,
            _ => 0,
        };
        if batch.sequence.0 > expected {
            return Err(refusal(ErrorCode::OutOfSequence, Some(expected)));
        }
        let (place, duplicate) = if batch.sequence.0 < expected {
            let is_it = |s: &Stored| s.queue == queue && s.epoch == batch.epoch && s.sequence == batch.sequence;
            let place = self.log.iter().position(is_it).expect("sequences are dense");
            let is_remembered = batch.sequence.0 + 64 >= expected;
            if self.log[place].crc != batch.payload_crc || !is_remembered {
                return Err(refusal(ErrorCode::SequenceConflict, None));
            }
            (place, true)
        } else {
            self.log.push(Stored {
                queue,
                epoch: batch.epoch,
                sequence: batch.sequence,
                level: batch.level,
                crc: batch.payload_crc,
                messages,
            });
            (self.log.len() - 1, false)
        };
        if self.poisoned { Err(refusal(ErrorCode::Poisoned, None)) } else { Ok((place, duplicate)) }
    }

    fn acknowledge(&self, place: usize, duplicate: bool) -> Acknowledgement {
        Acknowledgement {
            base_offset: QueueOffset(place as u64),
            epoch: Epoch(1),
            position: Some(LogPosition(place as u64)),
            level: if place < self.durable { DurableLevel::Synced } else { self.log[place].level },
            duplicate,
        }
    }
}

fn refusal(code: ErrorCode, expected_sequence: Option<u64>) -> Refusal {
    Refusal {
        number: code.number(),
        retriable: code.is_retriable(),
        sentence: code.sentence().into(),
        detail: ErrorDetail { expected_sequence, ..ErrorDetail::default() },
    }
}

proptest! {
    // 3,000 cases take a second; PROPTEST_CASES asks for more.
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(3_000), ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_doubled_or_reordered_in_silence(actions in prop::collection::vec(action(), 0..300)) {
        let mut world = World::new(Nanos::from_secs(3_600));
        for action in &actions {
            world.act(action);
        }
        world.heal();
        world.check();
        // Nobody gave up: what failed was refused for good.
        prop_assert!(world.failed.values().all(|error| matches!(error, Error::Refused(_))));
    }

    #[test]
    fn timeouts_tell_what_may_be_stored(actions in prop::collection::vec(action(), 0..300)) {
        let mut world = World::new(Nanos::from_millis(100));
        for action in &actions {
            world.act(action);
        }
        world.heal();
        world.check();
    }
}
