//! A batch that a producer sends: checked, decided, appended and applied in one turn, then waited for.

use crate::engine::{BatchOffer, ProduceDecision, Refusal, StoredBatch};
use crate::shard::answers;
use crate::shard::clock;
use crate::shard::executor::Executor;
use crate::shard::router::{self, Asker, Wait};
use crate::shard::stages::Stage;
use crate::shard::state::{Core, Shard, Waiting};
use peregrine_protocol::checksum::crc32;
use peregrine_protocol::entry::{Codec, EntryDraft};
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Correlation, Nanos};
use peregrine_protocol::message::{Produce, ProduceAnswer, ProduceHead};
use peregrine_protocol::record::Batch;
use std::rc::Rc;

/// What deciding came to.
pub enum Decided {
    /// Append this.
    Append(EntryDraft),
    /// It is seen to: answered, or waiting for its level as a duplicate.
    Done,
}

/// Takes a batch of at most [`crate::limits::STEP`] bytes.
pub fn produce(
    executor: &Rc<Executor>,
    shard: &Shard,
    asker: Asker,
    correlation: Correlation,
    produce: &Produce<'_>,
    received_at: Nanos,
) -> Result<(), Wait> {
    let (head, payload) = (&produce.head, produce.payload);
    if router::is_large(payload.len()) {
        // Whose it is comes first: another shard's is sent on as it is.
        let core = shard.core.borrow();
        return match core.engine.decide_produce(&BatchOffer::of_request(head, payload.len() as u32), clock::wall()) {
            Err(Refusal::WrongShard(owner)) => Err(Wait::Elsewhere(owner)),
            _ => Err(Wait::Large(shard.id)),
        };
    }
    if crc32(payload) != head.payload_crc {
        refuse_corrupt(executor, shard, asker, correlation);
        return Ok(());
    }
    if let Err(code) = check_records(shard, head, payload) {
        executor.refuse(asker, correlation, code);
        return Ok(());
    }
    let core = &mut *shard.core.borrow_mut();
    let draft = match decide(executor, shard, core, asker, correlation, head, payload.len(), received_at)? {
        Decided::Append(draft) => draft,
        Decided::Done => return Ok(()),
    };
    let now = clock::monotonic();
    match core.log.append(&draft, payload, now) {
        Ok(appended) => {
            let header = draft.at(appended.position, core.log.epoch());
            if let Err(error) = core.engine.apply(&header, payload) {
                unreachable!("what was decided in this turn applies: {error}");
            }
            let stored = StoredBatch::of_header(&header);
            shard.count(stored.records);
            wait(shard, core, asker, correlation, head, &stored, false, received_at, now);
            Ok(())
        }
        Err(refused) => match answers::append_refused(refused) {
            None => Err(Wait::Room(shard.id)),
            Some(code) => {
                executor.refuse(asker, correlation, code);
                Ok(())
            }
        },
    }
}

/// A payload whose checksum is not what its producer said.
pub fn refuse_corrupt(executor: &Executor, shard: &Shard, asker: Asker, correlation: Correlation) {
    shard.counters.corrupt.set(shard.counters.corrupt.get() + 1);
    executor.refuse(asker, correlation, ErrorCode::CorruptPayload);
}

/// Whether the payload holds as many whole records as its head says, none above the limit. A compressed one is the readers'
/// affair: what it holds is not known here.
pub fn check_records(shard: &Shard, head: &ProduceHead, payload: &[u8]) -> Result<(), ErrorCode> {
    if head.flags.codec() != Codec::None {
        return Ok(());
    }
    let batch = Batch::new(payload, head.record_count).map_err(|_| ErrorCode::CorruptPayload)?;
    if payload.len() > shard.message_max as usize && batch.largest_record() > shard.message_max {
        return Err(ErrorCode::TooLarge);
    }
    Ok(())
}

/// Asks the engine. A refusal is answered here; what the shard cannot know is a wait.
#[expect(clippy::too_many_arguments, reason = "they are what one request is made of")]
pub fn decide(
    executor: &Rc<Executor>,
    shard: &Shard,
    core: &mut Core,
    asker: Asker,
    correlation: Correlation,
    head: &ProduceHead,
    length: usize,
    received_at: Nanos,
) -> Result<Decided, Wait> {
    if !Shard::has_place_to_wait(core) {
        return Err(Wait::Room(shard.id));
    }
    match core.engine.decide_produce(&BatchOffer::of_request(head, length as u32), clock::wall()) {
        Ok(ProduceDecision::Append(draft)) => Ok(Decided::Append(draft)),
        Ok(ProduceDecision::Duplicate(stored)) => {
            shard.counters.duplicates.set(shard.counters.duplicates.get() + 1);
            let now = clock::monotonic();
            wait(shard, core, asker, correlation, head, &stored, true, received_at, now);
            Ok(Decided::Done)
        }
        Err(refusal) => {
            crate::shard::requests::refuse(executor, shard, asker, correlation, &refusal)?;
            Ok(Decided::Done)
        }
    }
}

/// The batch is in the log: its answer waits for the level.
#[expect(clippy::too_many_arguments, reason = "they are what one acknowledgement is made of")]
pub fn wait(
    shard: &Shard,
    core: &mut Core,
    asker: Asker,
    correlation: Correlation,
    head: &ProduceHead,
    stored: &StoredBatch,
    duplicate: bool,
    received_at: Nanos,
    appended_at: Nanos,
) {
    core.stages.record(Stage::Append, received_at, appended_at, 1);
    let answer = ProduceAnswer {
        queue: head.queue,
        base_offset: stored.base_offset,
        record_count: stored.records,
        epoch: stored.epoch,
        shard: shard.id,
        position: Some(stored.position),
        level: stored.level,
        duplicate,
    };
    let waiting = Waiting::Batch { asker, correlation, answer, received_at, appended_at };
    core.waiting.wait(stored.level, stored.end, waiting);
    shard.work.raise();
}

impl Shard {
    /// A batch of so many records was stored.
    pub fn count(&self, records: u32) {
        self.counters.produced_batches.set(self.counters.produced_batches.get() + 1);
        self.counters.produced_records.set(self.counters.produced_records.get() + u64::from(records));
    }
}
