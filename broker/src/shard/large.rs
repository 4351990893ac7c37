//! Batches above 64 KiB: their checksum is computed and their bytes are copied in steps, with a turn of the reactor after each,
//! so that one of 4 MiB holds up nobody else.
//!
//! The checksum comes first. Then decide, reserve and apply happen in one turn, as for a small batch; nothing behind the entry
//! is published, flushed or acknowledged until the last step has copied it whole.

use crate::engine::StoredBatch;
use crate::limits::STEP;
use crate::shard::answers;
use crate::shard::clock;
use crate::shard::executor::Executor;
use crate::shard::produce::{self, Decided};
use crate::shard::router::{Asker, Wait};
use crate::shard::runtime::turn;
use crate::shard::state::Shard;
use peregrine_protocol::checksum::Crc32;
use peregrine_protocol::frame::Frame;
use peregrine_protocol::ids::Nanos;
use peregrine_protocol::message::ProduceHead;
use std::rc::Rc;

/// Takes the batch of a produce frame and sees to its answer.
pub async fn produce(
    executor: &Rc<Executor>,
    shard: &Rc<Shard>,
    asker: Asker,
    frame: &Frame<'_>,
    received_at: Nanos,
) -> Result<(), Wait> {
    let correlation = frame.head.correlation;
    let Ok(head) = ProduceHead::decode(frame.header) else { unreachable!("the frame was decoded before") };
    let payload = frame.body;
    let mut crc = Crc32::new();
    for step in payload.chunks(STEP) {
        crc.update(step);
        turn().await;
    }
    if crc.finish() != head.payload_crc {
        produce::refuse_corrupt(executor, shard, asker, correlation);
        return Ok(());
    }
    if let Err(code) = produce::check_records(shard, &head, payload) {
        executor.refuse(asker, correlation, code);
        return Ok(());
    }
    // Checking took a while, and a large entry needs much of the ring at once: half of the time is counted from here.
    let within = executor.seams.room_within().0;
    let deadline = (received_at + within).max(clock::monotonic() + within / 2);
    loop {
        let began = begin(executor, shard, asker, frame, &head, received_at);
        match began {
            Ok(None) => return Ok(()),
            Ok(Some(mut large)) => {
                while !shard.core.borrow_mut().log.copy_step(&mut large, payload) {
                    turn().await;
                }
                shard.work.raise();
                return Ok(());
            }
            // One of another executor waits there.
            Err(Wait::Room(_)) if matches!(asker, Asker::Here(_)) => {
                if !shard.room(deadline).await {
                    shard.counters.busy.set(shard.counters.busy.get() + 1);
                    executor.refuse_with(asker, correlation, &answers::busy());
                    return Ok(());
                }
            }
            Err(wait) => return Err(wait),
        }
    }
}

/// Decides, reserves and applies, in one turn. `None`: the request is seen to.
fn begin(
    executor: &Rc<Executor>,
    shard: &Shard,
    asker: Asker,
    frame: &Frame<'_>,
    head: &ProduceHead,
    received_at: Nanos,
) -> Result<Option<crate::log::LargeAppend>, Wait> {
    let correlation = frame.head.correlation;
    let core = &mut *shard.core.borrow_mut();
    let draft = match produce::decide(executor, shard, core, asker, correlation, head, frame.body.len(), received_at)? {
        Decided::Append(draft) => draft,
        Decided::Done => return Ok(None),
    };
    let now = clock::monotonic();
    match core.log.begin_large(&draft, now) {
        Ok(large) => {
            if let Err(error) = core.engine.apply(&large.header, &[]) {
                unreachable!("what was decided in this turn applies: {error}");
            }
            let stored = StoredBatch::of_header(&large.header);
            shard.count(stored.records);
            produce::wait(shard, core, asker, correlation, head, &stored, false, received_at, now);
            Ok(Some(large))
        }
        Err(refused) => match answers::append_refused(refused) {
            None => Err(Wait::Room(shard.id)),
            Some(code) => {
                executor.refuse(asker, correlation, code);
                Ok(None)
            }
        },
    }
}
