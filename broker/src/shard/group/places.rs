//! How far groups are in this shard's queues. A place moves by an entry of the queue's own log: decided, appended and applied in
//! one turn, answered when the log has reached it.

use crate::engine::{AckChecked, AckDecision, OffsetEntry, ReaderOwner, Refusal};
use crate::shard::answers;
use crate::shard::clock;
use crate::shard::executor::Executor;
use crate::shard::proxy;
use crate::shard::requests::refuse;
use crate::shard::router::{Asker, Wait};
use crate::shard::state::{Core, Shard, Waiting};
use crate::shard::subscriptions;
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::ids::{Correlation, DurableLevel, LogPosition};
use peregrine_protocol::message::consume::AckAnswer;
use peregrine_protocol::message::{Ack, ResetOffset, ResetOffsetAnswer};

/// What answers whoever moved a place.
#[derive(Clone, Copy, Debug)]
pub enum PlaceAnswer {
    Ack(AckAnswer),
    Reset(ResetOffsetAnswer),
}

impl PlaceAnswer {
    pub fn encode(&self, correlation: Correlation, out: &mut Vec<u8>) {
        match self {
            PlaceAnswer::Ack(answer) => answer.encode(correlation, out),
            PlaceAnswer::Reset(answer) => answer.encode(correlation, out),
        }
    }
}

/// Why an entry was not appended.
#[derive(Clone, Copy)]
enum NotAppended {
    NoRoom,
    Refused(ErrorCode),
}

pub fn ack(
    executor: &Executor,
    shard: &Shard,
    asker: Asker,
    correlation: Correlation,
    given: &Ack,
) -> Result<(), Wait> {
    let (_, id) = subscriptions::from_wire(given.subscription);
    let core = &mut *shard.core.borrow_mut();
    let answer = AckAnswer { subscription: given.subscription, offset: given.offset };
    let peer = proxy::known_peer_of(executor, asker).ok_or(Refusal::NotHolder);
    let checked = peer.and_then(|peer| core.engine.ack_checked(ReaderOwner(peer.0), id, given.epoch, given.offset));
    let decided = match checked {
        Ok(AckChecked::Reader) => {
            executor.answer(asker, |out| answer.encode(correlation, out));
            return Ok(());
        }
        Ok(AckChecked::Group(ack)) => core.engine.decide_ack(&ack, clock::wall()),
        Err(refusal) => Err(refusal),
    };
    let (end, level) = match decided {
        // As many may say the same again as wait for anything else.
        Ok(AckDecision::Done { .. }) if !Shard::has_place_to_wait(core) => return Err(Wait::Room(shard.id)),
        Ok(AckDecision::Done { end, level, .. }) => (end, level),
        Ok(AckDecision::Append(entry)) => match append(core, &entry) {
            Ok(end) => (end, entry.level),
            Err(refused) => return not_appended(executor, shard, asker, correlation, refused),
        },
        Err(refusal) => return refuse(executor, shard, asker, correlation, &refusal),
    };
    wait(shard, core, asker, correlation, PlaceAnswer::Ack(answer), end, level);
    Ok(())
}

pub fn reset(
    executor: &Executor,
    shard: &Shard,
    asker: Asker,
    correlation: Correlation,
    asked: &ResetOffset,
) -> Result<(), Wait> {
    let core = &mut *shard.core.borrow_mut();
    let ResetOffset { group, topic, queue, start } = *asked;
    let entry = match core.engine.decide_reset(group, topic, queue, start, clock::wall()) {
        Ok(entry) => entry,
        Err(refusal) => return refuse(executor, shard, asker, correlation, &refusal),
    };
    match append(core, &entry) {
        Ok(end) => {
            let answer = ResetOffsetAnswer { epoch: entry.epoch, offset: entry.offset };
            wait(shard, core, asker, correlation, PlaceAnswer::Reset(answer), end, entry.level);
            Ok(())
        }
        Err(refused) => not_appended(executor, shard, asker, correlation, refused),
    }
}

/// Writes down where groups began in queues that their members are served from. What finds no room is tried again in a later
/// turn; nobody waits for it.
pub fn write_beginnings(core: &mut Core) {
    while let Some(entry) = core.engine.next_beginning(clock::wall()) {
        if append(core, &entry).is_err() {
            return;
        }
    }
}

/// Appends the entry and applies it. Returns its end.
fn append(core: &mut Core, entry: &OffsetEntry) -> Result<LogPosition, NotAppended> {
    if !Shard::has_place_to_wait(core) {
        return Err(NotAppended::NoRoom);
    }
    match core.log.append(&entry.draft, &entry.payload, clock::monotonic()) {
        Ok(appended) => {
            let header = entry.draft.at(appended.position, core.log.epoch());
            if let Err(error) = core.engine.apply(&header, &entry.payload) {
                unreachable!("what was decided in this turn applies: {error}");
            }
            Ok(appended.end)
        }
        Err(refused) => Err(answers::append_refused(refused).map_or(NotAppended::NoRoom, NotAppended::Refused)),
    }
}

fn not_appended(
    executor: &Executor,
    shard: &Shard,
    asker: Asker,
    correlation: Correlation,
    refused: NotAppended,
) -> Result<(), Wait> {
    match refused {
        NotAppended::NoRoom => Err(Wait::Room(shard.id)),
        NotAppended::Refused(code) => {
            executor.refuse(asker, correlation, code);
            Ok(())
        }
    }
}

fn wait(
    shard: &Shard,
    core: &mut Core,
    asker: Asker,
    correlation: Correlation,
    answer: PlaceAnswer,
    end: LogPosition,
    level: DurableLevel,
) {
    core.waiting.wait(level, end, Waiting::Place { asker, correlation, answer });
    shard.work.raise();
}
