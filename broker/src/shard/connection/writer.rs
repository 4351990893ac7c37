//! The writer task: turns what is held for the connection into frames, and sends what the outbox holds, in one system call per
//! turn as long as the socket takes it.
//!
//! Payloads go straight from the ring to the socket. One that stands there no more is read from disk, a block at a time and in
//! the background queue, and is sent from that block; the same block serves what follows it in the log.

use super::outbox::{LogBytes, Run};
use super::outlet::Held;
use super::socket::Gather;
use super::{Connection, Mark};
use crate::limits::{COLD_READ, GATHER_BYTES};
use crate::shard::answers;
use crate::shard::clock;
use crate::shard::executor::{ColdRead, Executor};
use crate::shard::runtime::turn;
use crate::shard::seams::PlantedInShards;
use crate::shard::stages::Stage;
use crate::shard::state::NoBytes;
use peregrine_protocol::message::ErrorAnswer;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

/// What one attempt to send came to.
enum Sent {
    /// Nothing was to be sent.
    Nothing,
    /// All that was gathered; there may be more.
    All,
    /// The socket takes no more now.
    Blocked,
    /// These bytes have to be read from disk first.
    Cold(LogBytes),
}

/// What must be read from disk before anything more can be assembled.
enum Missing {
    /// At least these bytes.
    Block(LogBytes),
    /// A batch, to its end, before its head leaves.
    Probe(LogBytes),
}

/// Runs until the connection ends.
pub async fn run(executor: Rc<Executor>, connection: Rc<Connection>) {
    let mut sent_in_turn = 0;
    loop {
        if connection.is_closing() {
            break;
        }
        let missing = assemble(&executor, &connection);
        connection.outlet.forget_unreadable();
        let outcome = match send(&executor, &connection) {
            Ok((count, outcome)) => {
                sent_in_turn += count;
                outcome
            }
            Err(_) => break,
        };
        match outcome {
            Sent::All if sent_in_turn >= GATHER_BYTES => {
                sent_in_turn = 0;
                turn().await;
            }
            Sent::All => {}
            Sent::Blocked => {
                let started = clock::monotonic();
                connection.stuck_since.set(Some(started));
                if poll_fn(|context| poll_send(&executor, &connection, context)).await.is_err() {
                    break;
                }
                connection.stuck_since.set(None);
                sent_in_turn = 0;
            }
            Sent::Cold(bytes) => {
                // The peer has the beginning of this frame already: where its rest cannot be read, nothing can follow.
                if executor.read_cold(&connection.outlet, bytes).await != ColdRead::Done {
                    break;
                }
            }
            Sent::Nothing => match missing {
                Some(missing) => {
                    let read = match missing {
                        Missing::Block(bytes) => executor.read_cold(&connection.outlet, bytes).await,
                        Missing::Probe(batch) => executor.probe_cold(&connection.outlet, batch).await,
                    };
                    if read == ColdRead::Stopped {
                        break;
                    }
                }
                None if connection.read_ended.get() && (connection.is_doomed() || connection.outstanding() == 0) => {
                    break;
                }
                None => {
                    sent_in_turn = 0;
                    connection.outlet.news.wait().await;
                }
            },
        }
    }
    connection.close();
    executor.writer_ended(&connection);
}

/// Moves what is held into the outbox while there is room. Returns what must be read from disk first.
fn assemble(executor: &Rc<Executor>, connection: &Connection) -> Option<Missing> {
    loop {
        let mut outbox = connection.outbox.borrow_mut();
        if !outbox.has_room_for_delivery() {
            return None;
        }
        let mut held = connection.outlet.held.borrow_mut();
        let cold = connection.outlet.cold.borrow();
        match held.front_mut()? {
            Held::Delivery { shard: id, subscription, batch, handed_out_at } => {
                let (id, subscription, handed_out_at) = (*id, *subscription, *handed_out_at);
                let shard = executor.shard(id)?;
                let probed = connection.outlet.probed.get();
                if cold.as_ref().is_none_or(|block| !block.is_unreadable_at(id, batch.position))
                    && let Some(batch) = shard.to_probe(batch, probed)
                {
                    return Some(Missing::Probe(batch));
                }
                match shard.header_of(batch, cold.as_ref()) {
                    Ok(header) => answers::delivery(&mut outbox, id, subscription, batch, &header),
                    Err(NoBytes::Unread(missing)) => return Some(Missing::Block(missing)),
                    Err(NoBytes::Gone(code)) => {
                        drop((outbox, held, cold));
                        if shard.end_damaged(connection.id, &connection.outlet, subscription) {
                            connection.send(|out| answers::ended(out, id, subscription, code));
                        }
                        continue;
                    }
                }
                held.pop_front();
                drop((outbox, held, cold));
                connection.outlet.probed.set(None);
                connection.mark(Mark { shard: id, stage: Stage::Deliver, since: handed_out_at });
                executor.delivered(id, subscription);
            }
            Held::Fetch(fetch) => {
                match fetch.fill(&*executor.shard(fetch.shard)?, cold.as_ref()) {
                    Ok(()) => outbox.push(|out| fetch.encode(out)),
                    Err(NoBytes::Unread(missing)) => return Some(Missing::Block(missing)),
                    Err(NoBytes::Gone(code)) => {
                        outbox.push(|out| ErrorAnswer::new(code).encode(fetch.correlation, out));
                    }
                }
                held.pop_front();
                connection.answered();
            }
            Held::Found(answer) => {
                outbox.push(|out| out.extend_from_slice(&answer.frame));
                held.pop_front();
                connection.answered();
            }
        }
    }
}

/// Sends what the socket takes now.
fn send(executor: &Executor, connection: &Connection) -> io::Result<(usize, Sent)> {
    let (count, outcome) = with_gathered(executor, connection, |gather, cold| -> io::Result<(usize, Sent)> {
        match (gather.is_empty(), cold) {
            (true, None) => Ok((0, Sent::Nothing)),
            (true, Some(bytes)) => Ok((0, Sent::Cold(bytes))),
            (false, _) => {
                let count = connection.socket.send(gather)?;
                if count == gather.len() {
                    return Ok((count, Sent::All));
                }
                let forgotten = usize::from(executor.seams.has_planted(PlantedInShards::ForgetUnsentByte));
                Ok((count + forgotten, Sent::Blocked))
            }
        }
    })?;
    note_sent(executor, connection, count);
    Ok((count, outcome))
}

/// Sends the first run of bytes through the runtime, which waits for the socket where it takes nothing.
fn poll_send(executor: &Executor, connection: &Connection, context: &mut Context<'_>) -> Poll<io::Result<()>> {
    if connection.is_closing() {
        return Poll::Ready(Ok(()));
    }
    let polled = with_gathered(executor, connection, |gather, _| {
        // Where nothing is gathered, the front has left the ring meanwhile; it is looked for again.
        gather.first().map_or(Poll::Ready(Ok(0)), |first| connection.socket.poll_write(context, first))
    });
    match polled {
        Poll::Pending => Poll::Pending,
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        Poll::Ready(Ok(count)) => {
            note_sent(executor, connection, count);
            Poll::Ready(Ok(()))
        }
    }
}

/// Gathers from the front of the outbox: own bytes, and bytes of one shard's log as long as they stand in its ring or in the
/// cold block. Lends the result to `use_it`, with the place at which it stopped for want of a block.
fn with_gathered<R>(
    executor: &Executor,
    connection: &Connection,
    use_it: impl FnOnce(&Gather<'_>, Option<LogBytes>) -> R,
) -> R {
    let outbox = connection.outbox.borrow();
    let cold = connection.outlet.cold.borrow();
    let first_shard = outbox.runs().find_map(|run| match run {
        Run::Log(bytes) => Some(bytes.shard),
        Run::Own(_) => None,
    });
    let shard = first_shard.and_then(|shard| executor.shard(shard));
    let log = shard.as_ref().map(|shard| shard.ring());
    let mut gather = Gather::new();
    let mut missing = None;
    for run in outbox.runs() {
        let room = GATHER_BYTES.saturating_sub(gather.len());
        let whole = match run {
            Run::Own(bytes) => bytes.len(),
            Run::Log(bytes) => bytes.len,
        };
        let bytes = match run {
            _ if room == 0 => break,
            Run::Own(bytes) => &bytes[..bytes.len().min(room)],
            Run::Log(bytes) if Some(bytes.shard) != first_shard => break,
            Run::Log(bytes) => {
                let len = bytes.len.min(room);
                let found = log.as_ref().and_then(|log| log.get(bytes.position, len));
                let Some(found) = found.or_else(|| cold.as_ref()?.get(bytes.shard, bytes.position, len)) else {
                    missing = Some(LogBytes { len: bytes.len.min(COLD_READ), ..bytes });
                    break;
                };
                found
            }
        };
        // A run of which the block holds only the beginning ends the gathering: what follows it may not go before its end.
        if !gather.push(bytes) || bytes.len() < whole {
            break;
        }
    }
    use_it(&gather, missing)
}

fn note_sent(executor: &Executor, connection: &Connection, count: usize) {
    if count == 0 {
        return;
    }
    let now = clock::monotonic();
    connection.last_used.set(now);
    let mut outbox = connection.outbox.borrow_mut();
    outbox.sent(count);
    executor.record(&mut outbox, now);
    if !outbox.is_high() {
        connection.reading.raise();
        connection.return_window(executor);
    }
}
