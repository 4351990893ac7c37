//! Requests that look messages up by id and by key: a few at once, in the background queue.
//!
//! ```text
//!   request ─► due ─► a search: steps, a turn of the reactor between them ─► its answer, held for the peer ─► sent when there is room
//!               └── as many as may wait, and be held, are counted from here to there; more are Busy
//! ```
//!
//! What may be seen is asked of the engine last, in the turn in which a message is taken into the answer. A crash ends those who asked.

use crate::engine::Refusal;
use crate::limits::{FOUND_BYTES, SEARCH_BYTES, SEARCHES_AT_ONCE, SEARCHES_PER_CONNECTION, SEARCHES_PER_SHARD, STEP};
use crate::log::ReadError;
use crate::log::search::{
    FoundRecord, KeyAsked, KeySearch, Next, Records, SearchError, SearchWindow, SearchedLog, record_checksum,
};
use crate::shard::connection::outlet::{FoundAnswer, Held};
use crate::shard::executor::Executor;
use crate::shard::look_ups::in_background;
use crate::shard::peers::PeerId;
use crate::shard::requests::refuse;
use crate::shard::router::{Asker, Wait};
use crate::shard::runtime::turn;
use crate::shard::state::Shard;
use crate::shard::storage::ShardDisk;
use crate::shard::{answers, proxy};
use peregrine_protocol::entry::{Codec, Entry, EntryHeader, EntryKind, EntrySeal};
use peregrine_protocol::error::ErrorCode;
use peregrine_protocol::frame::Kind;
use peregrine_protocol::ids::{Correlation, LogPosition};
use peregrine_protocol::locator::MessageLocator;
use peregrine_protocol::message::{ErrorAnswer, FindMessages, Found, FoundBody, FoundHead, GetMessage};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::{Deref, Range};
use std::rc::Rc;

/// What a shard looks up for its peers.
#[derive(Debug, Default)]
pub struct Searches {
    due: RefCell<VecDeque<Search>>,
    running: Cell<usize>,
    /// Whose they are, the answers that wait for their sockets included.
    peers: Rc<RefCell<Vec<PeerId>>>,
}

#[derive(Debug)]
struct Search {
    correlation: Correlation,
    wanted: Wanted,
    place: SearchPlace,
}

#[derive(Debug)]
enum Wanted {
    Message(MessageLocator),
    Key { asked: KeyAsked, from: LogPosition, limit: u32 },
}

/// One of the searches that a shard may have; it is given back when this is dropped.
#[derive(Debug)]
pub struct SearchPlace {
    peer: PeerId,
    peers: Rc<RefCell<Vec<PeerId>>>,
}

impl Drop for SearchPlace {
    fn drop(&mut self) {
        let mut peers = self.peers.borrow_mut();
        if let Some(place) = peers.iter().position(|peer| *peer == self.peer) {
            peers.swap_remove(place);
        }
    }
}

impl Searches {
    fn place(&self, peer: PeerId) -> Option<SearchPlace> {
        let mut peers = self.peers.borrow_mut();
        let of_peer = peers.iter().filter(|other| **other == peer).count();
        if peers.len() >= SEARCHES_PER_SHARD || of_peer >= SEARCHES_PER_CONNECTION {
            return None;
        }
        peers.push(peer);
        Some(SearchPlace { peer, peers: Rc::clone(&self.peers) })
    }
}

/// Looks for one message.
pub fn get(
    executor: &Rc<Executor>,
    shard: &Rc<Shard>,
    asker: Asker,
    correlation: Correlation,
    asked: &GetMessage,
) -> Result<(), Wait> {
    ask(executor, shard, asker, correlation, Wanted::Message(asked.message));
    Ok(())
}

/// Looks for those of a key.
pub fn find(
    executor: &Rc<Executor>,
    shard: &Rc<Shard>,
    asker: Asker,
    correlation: Correlation,
    asked: &FindMessages<'_>,
) -> Result<(), Wait> {
    let known = shard.core.borrow().engine.known_topic(asked.topic).map(drop);
    if let Err(refusal) = known {
        return refuse(executor, shard, asker, correlation, &refusal);
    }
    let &FindMessages { topic, key, begin, end, from, limit } = asked;
    let asked = KeyAsked { topic, key: key.into(), begin, end };
    ask(executor, shard, asker, correlation, Wanted::Key { asked, from, limit });
    Ok(())
}

fn ask(executor: &Rc<Executor>, shard: &Rc<Shard>, asker: Asker, correlation: Correlation, wanted: Wanted) {
    let Some(peer) = proxy::peer_of(executor, asker) else { return };
    let searches = &shard.searches;
    let Some(place) = searches.place(peer) else {
        return executor.refuse_with(asker, correlation, &answers::busy());
    };
    searches.due.borrow_mut().push_back(Search { correlation, wanted, place });
    // Its answer may stand behind deliveries to a client that does not read, where it must not keep others from this shard.
    executor.give_credit_back(asker);
    if searches.running.get() == SEARCHES_AT_ONCE {
        return;
    }
    searches.running.set(searches.running.get() + 1);
    let (executor, shard) = (Rc::clone(executor), Rc::clone(shard));
    in_background(&Rc::clone(&executor), async move {
        loop {
            let next = shard.searches.due.borrow_mut().pop_front();
            let Some(Search { correlation, wanted, place }) = next else { break };
            let peer = place.peer;
            // Who is gone wants nothing any more.
            if executor.peers.get(peer).is_some() {
                let frame = carry_out(&executor, &shard, correlation, wanted).await;
                // An index may have proved to be bad, and is to be made again.
                shard.work.raise();
                if let Some(peer) = executor.peers.get(peer) {
                    peer.outlet().hold(Held::Found(Box::new(FoundAnswer::new(frame, place))));
                }
            }
            turn().await;
        }
        shard.searches.running.set(shard.searches.running.get() - 1);
    });
}

/// The frame of the answer.
async fn carry_out(executor: &Executor, shard: &Rc<Shard>, correlation: Correlation, wanted: Wanted) -> Vec<u8> {
    let (kind, found) = match wanted {
        Wanted::Message(message) => (Kind::GetMessage, look_for_one(executor, shard, message).await),
        Wanted::Key { asked, from, limit } => (Kind::FindMessages, look_for_key(shard, asked, from, limit).await),
    };
    let mut frame = Vec::new();
    let refused = match found {
        _ if shard.closed.get() => ErrorCode::ShuttingDown,
        Ok(page) => match page.encode(shard, kind, correlation, &mut frame) {
            Ok(()) if frame.len() <= executor.facts.frame_max as usize => return frame,
            Ok(()) => ErrorCode::TooLarge,
            Err(refusal) => refusal.code(),
        },
        Err(Why::Code(code)) => code,
        Err(Why::Search(error)) => {
            tracing::error!(shard = shard.id.0, %error, "a message cannot be looked up");
            ErrorCode::Damaged
        }
    };
    frame.clear();
    ErrorAnswer::new(refused).encode(correlation, &mut frame);
    frame
}

/// Why there is no page.
enum Why {
    Code(ErrorCode),
    Search(SearchError),
}

impl From<SearchError> for Why {
    fn from(error: SearchError) -> Self {
        Self::Search(error)
    }
}

/// Messages of one topic.
struct Page {
    topic: peregrine_protocol::ids::TopicId,
    body: FoundBody,
    next: Option<LogPosition>,
}

impl Page {
    fn encode(&self, shard: &Shard, kind: Kind, correlation: Correlation, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let core = shard.core.borrow();
        let topic = core.engine.known_topic(self.topic)?;
        let (messages, next) = (self.body.parts(), self.next);
        Found { topic: topic.id, name: &topic.name, shard: shard.id, messages, next }.encode(kind, correlation, out);
        Ok(())
    }
}

async fn look_for_one(executor: &Executor, shard: &Rc<Shard>, message: MessageLocator) -> Result<Page, Why> {
    let position = message.id.position();
    let mut window = SearchWindow::new(Searched(Rc::clone(shard)));
    let (begin, indexes) = match shard.core.borrow().log.get() {
        Some(log) => (log.begins_at(), log.indexes()),
        None => return Err(Why::Code(ErrorCode::ShuttingDown)),
    };
    if message.id.shard() != shard.id {
        return Err(Why::Code(ErrorCode::UnknownMessage));
    }
    if position < begin {
        return Err(Why::Code(ErrorCode::MessageTooOld));
    }
    let unknown = Why::Code(ErrorCode::UnknownMessage);
    let header = match window.entry_around(position).await {
        Ok(Some(Entry::Full(header))) if indexes.given_up_to(header.position).is_none() => header,
        // Entries follow each other in a segment, but for what was given up: where none is, damage took it.
        Ok(None) if is_in_log(&window, position) && indexes.given_up_to(position).is_none() => {
            return Err(SearchError::Damaged(position).into());
        }
        Ok(_) => return Err(unknown),
        Err(error) => return Err(why_gone(shard, error)),
    };
    if header.kind != EntryKind::Batch || header.flags.codec() != Codec::None {
        return Err(unknown);
    }
    let record = async {
        window.check_payload(&header).await?;
        let mut records = Records::of(&header);
        while let Some(record) = window.next_record(&mut records).await? {
            if record.position >= position {
                return Ok(Some((record, window.copy(&record).await?)).filter(|_| record.position == position));
            }
        }
        Ok(None)
    };
    let Some((record, bytes)) = record.await.map_err(|error| why_gone(shard, error))? else { return Err(unknown) };
    let crc = record_checksum(&bytes).ok_or(SearchError::Damaged(header.position))?;
    if MessageLocator::check_of(executor.facts.directory, crc) != message.check {
        return Err(unknown);
    }
    let mut body = FoundBody::default();
    let head = found_head(&header, &record);
    match shard.core.borrow().engine.is_shown(header.topic, header.queue, head.offset) {
        Ok(true) => body.push(&head, &bytes),
        Ok(false) => return Err(unknown),
        Err(Refusal::OffsetTooOld { .. }) => return Err(Why::Code(ErrorCode::MessageTooOld)),
        Err(refusal) => return Err(Why::Code(refusal.code())),
    }
    Ok(Page { topic: header.topic, body, next: None })
}

async fn look_for_key(shard: &Rc<Shard>, asked: KeyAsked, from: LogPosition, limit: u32) -> Result<Page, Why> {
    let topic = asked.topic;
    let indexes = shard.indexes().ok_or(Why::Code(ErrorCode::ShuttingDown))?;
    let mut search = KeySearch::new(indexes, asked, from);
    let mut window = SearchWindow::new(Searched(Rc::clone(shard)));
    let mut body = FoundBody::default();
    let first = search.from();
    loop {
        match search.next(&mut window).await? {
            Next::End => return Ok(Page { topic, body, next: None }),
            Next::Passed => {}
            Next::Batch(header) => {
                let outcome = take(shard, &mut search, &mut window, &header, limit, &mut body).await;
                match outcome {
                    Ok(true) => {}
                    Ok(false) => return Ok(Page { topic, body, next: Some(search.from()) }),
                    // Retired meanwhile.
                    Err(_) if is_retired(shard, header.position) => search.passed(header.end()),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        // The next request gets further, even where one batch takes more than that.
        if window.looked() >= SEARCH_BYTES && search.from() > first {
            return Ok(Page { topic, body, next: Some(search.from()) });
        }
    }
}

/// Takes the records of a batch that have the key into the answer. False where it has no room for one.
async fn take(
    shard: &Rc<Shard>,
    search: &mut KeySearch<ShardDisk>,
    window: &mut SearchWindow<Searched>,
    header: &EntryHeader,
    limit: u32,
    body: &mut FoundBody,
) -> Result<bool, SearchError> {
    window.check_payload(header).await?;
    let mut records = Records::of(header);
    while let Some(record) = window.next_record(&mut records).await? {
        if record.position < search.from() || !window.has_key(&record, search.key()).await? {
            continue;
        }
        let len = record.outline.length as usize;
        let count = body.parts().len();
        if count >= limit as usize || (count > 0 && body.len_with(len) > FOUND_BYTES) {
            search.passed(record.position);
            return Ok(false);
        }
        let bytes = window.copy(&record).await?;
        record_checksum(&bytes).ok_or(SearchError::Damaged(header.position))?;
        let head = found_head(header, &record);
        if shard.core.borrow().engine.is_shown(header.topic, header.queue, head.offset) == Ok(true) {
            body.push(&head, &bytes);
        }
    }
    search.passed(header.end());
    Ok(true)
}

fn found_head(header: &EntryHeader, record: &FoundRecord) -> FoundHead {
    FoundHead {
        queue: header.queue,
        offset: header.base_offset + u64::from(record.index),
        epoch: header.epoch,
        position: record.position,
        store_time: header.store_time,
        record_length: record.outline.length,
        flags: header.flags,
    }
}

/// A search that found nothing to read is no damage where its segment was retired meanwhile.
fn why_gone(shard: &Shard, error: SearchError) -> Why {
    match &error {
        SearchError::Read(ReadError::NotInLog(position)) if is_retired(shard, *position) => {
            Why::Code(ErrorCode::MessageTooOld)
        }
        _ => Why::Search(error),
    }
}

fn is_in_log(window: &SearchWindow<Searched>, position: LogPosition) -> bool {
    window.log().stretch(position).is_some_and(|stretch| stretch.contains(&position))
}

fn is_retired(shard: &Shard, position: LogPosition) -> bool {
    shard.core.borrow().log.get().is_none_or(|log| position < log.begins_at())
}

/// A shard's log.
struct Searched(Rc<Shard>);

impl SearchedLog for Searched {
    fn seal(&self) -> EntrySeal {
        self.0.seal
    }

    fn stretch(&self, position: LogPosition) -> Option<Range<LogPosition>> {
        let core = self.0.core.borrow();
        let log = core.log.get()?;
        let Range { start, end } = log.reader().segment_behind(position)?;
        let end = end.min(log.published());
        (position < end && start < end).then_some(start..end)
    }

    async fn read(
        &self,
        position: LogPosition,
        need: usize,
        wish: usize,
    ) -> Result<Box<dyn Deref<Target = [u8]>>, ReadError> {
        {
            let core = self.0.core.borrow();
            let log = core.log.get().ok_or(ReadError::NotInLog(position))?;
            let published = log.published().0.saturating_sub(position.0) as usize;
            let mut len = wish.min(STEP).min(published).max(need);
            loop {
                if let Some(bytes) = log.read_ring(position, len) {
                    return Ok(Box::new(bytes.to_vec()));
                }
                if len == need {
                    break;
                }
                // The ring's end, or that of what stands in it, may lie in between.
                len = (len / 2).max(need);
            }
            if position + need as u64 > log.durable() {
                return Err(ReadError::NotInLog(position));
            }
        }
        self.0.read_disk(position, need, wish).await
    }

    async fn rest(&self) {
        turn().await;
    }
}
