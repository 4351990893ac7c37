//! What the log makes of one piece of harm, and whether that is allowed.
//!
//! | after | a start that comes up may miss |
//! |---|---|
//! | a clean stop, `kill -9` | nothing |
//! | a power cut | entries behind every durable position that something unharmed states: the window of ARCHITECTURE.md |

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures_lite::future::block_on;
use peregrine_broker::engine::{Engine, EngineOptions, MemoryLevel};
use peregrine_broker::log::damage::Extent;
use peregrine_broker::log::disk::BLOCK;
use peregrine_broker::log::index::SegmentIndex;
use peregrine_broker::log::{Log, Replay, StartError, StartReport};
use peregrine_protocol::checksum::crc32;
use peregrine_protocol::entry::{Entry, EntryHeader, EntryKind};
use peregrine_protocol::ids::{LogPosition, Nanos, QueueId, QueueOffset, ShardId, TopicId};
use peregrine_protocol::limits::{ENTRY_ALIGN, ENTRY_HEADER_LEN};
use peregrine_protocol::record::Batch;

use super::kind::Harm;
use super::medium::Medium;
use super::state::{State, Stop};

/// One broken rule, as a sentence.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation(pub String);

/// What became of a piece of harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The start ends with an error that says what and where.
    Refused,
    /// The start came up with everything from its checkpoint; reads of that entry are refused, and `check` tells.
    Told,
    /// A cache was passed over, and everything is there.
    PutAside,
    /// Everything is there.
    NoEffect,
    /// A torn tail, as it could have been.
    TornTail,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Outcome::Refused => "start refused",
            Outcome::Told => "told by check",
            Outcome::PutAside => "put aside",
            Outcome::NoEffect => "no effect",
            Outcome::TornTail => "torn tail",
        })
    }
}

/// What a start hands over: to a real engine, and kept.
pub struct Replayed {
    pub engine: Engine,
    pub store_time: Nanos,
    pub entries: BTreeMap<LogPosition, (EntryHeader, u32)>,
    bodies: Option<BTreeMap<(TopicId, QueueId, QueueOffset), u32>>,
}

impl Replayed {
    pub fn new() -> Self {
        Self { engine: engine(), store_time: Nanos::ZERO, entries: BTreeMap::new(), bodies: None }
    }
}

fn engine() -> Engine {
    Engine::new(EngineOptions {
        shard: ShardId(0),
        shards: 1,
        memory_level: MemoryLevel::Kept,
        group_drain: Nanos::from_secs(5),
    })
}

impl Replay for Replayed {
    fn entry(&mut self, header: &EntryHeader, payload: &[u8]) -> Result<(), String> {
        self.engine.apply(header, payload).map_err(|error| error.to_string())?;
        self.store_time = header.store_time;
        self.entries.insert(header.position, (*header, crc32(payload)));
        if let Some(bodies) = &mut self.bodies
            && header.kind == EntryKind::Batch
        {
            let batch = Batch::new(payload, header.record_count).map_err(|error| error.to_string())?;
            for (offset, record) in (header.base_offset.0..).zip(batch.records()) {
                let body = record.map_err(|error| error.to_string())?.body();
                bodies.insert((header.topic, header.queue, QueueOffset(offset)), crc32(body));
            }
        }
        Ok(())
    }

    fn lost(&mut self, extent: Extent) {
        self.engine.accept_hole(&(extent.from..extent.to));
    }

    fn begin(&mut self) {
        self.engine = engine();
        self.entries.clear();
    }

    fn restore(&mut self, section: &[u8]) -> Result<(), String> {
        self.engine.restore(section).map_err(|error| error.to_string())
    }

    fn restored(&mut self) -> Result<(), String> {
        self.engine.restore_end().map_err(|error| error.to_string())
    }
}

/// What an unharmed state says, all of it read.
pub struct Reference {
    entries: BTreeMap<LogPosition, (EntryHeader, u32)>,
    digest: u64,
    /// Where the log ends on the device: what comes behind is read from the ring.
    cut: LogPosition,
    /// Durable positions that something states: where that stands, and what it says.
    stated: Vec<(String, Range<usize>, LogPosition)>,
}

impl Reference {
    /// # Panics
    /// Where what was acknowledged is not there.
    pub fn of(state: &State) -> Self {
        let whole = state.without_checkpoints();
        let mut replayed = Replayed { bodies: Some(BTreeMap::new()), ..Replayed::new() };
        let (log, report) = start(&whole, &whole.medium.copy(), &mut replayed).expect("unharmed, it starts");
        assert_eq!((report.accepted.len(), report.bad_checkpoints.len()), (0, 0));
        replayed.engine.recovered(log.durable());
        let stored = replayed.bodies.take().unwrap_or_default();
        for (message, (_, body)) in &state.promised {
            assert_eq!(stored.get(message), Some(body), "{message:?} was acknowledged");
        }
        Self { entries: replayed.entries, digest: replayed.engine.digest(), cut: report.cut, stated: stated(state) }
    }

    /// Entries, and how many messages there are in them.
    pub fn counts(&self) -> (usize, u64) {
        (self.entries.len(), self.entries.values().map(|(header, _)| u64::from(header.record_count)).sum())
    }

    /// Does the harm, and judges what the log makes of it. A panic is a violation like any other.
    pub fn try_harm(&self, state: &State, harm: &Harm, again: bool) -> Result<Outcome, Violation> {
        let tried = catch_unwind(AssertUnwindSafe(|| self.judge(state, harm, again)));
        tried.unwrap_or_else(|_| Err(Violation("the log panicked; what it said stands above".to_owned())))
    }

    fn judge(&self, state: &State, harm: &Harm, again: bool) -> Result<Outcome, Violation> {
        let medium = state.medium.copy();
        harm.strike(&medium);
        let index = self.ask_index(state, &medium, harm)?;
        let harmed = medium.copy();
        let mut replayed = Replayed::new();
        let (log, report) = match start(state, &medium, &mut replayed) {
            Ok(started) => started,
            Err(error) => return refused(state, harm, &error),
        };
        replayed.engine.recovered(log.durable());
        if !report.accepted.is_empty() {
            return Err(Violation(format!("damage was accepted that nobody accepted: {:?}", report.accepted)));
        }
        for (position, entry) in &replayed.entries {
            if self.entries.get(position) != Some(entry) {
                return Err(Violation(format!("position {position} holds what was never written: {entry:?}")));
            }
        }
        let digest = replayed.engine.digest();
        if again {
            drop(log);
            let mut later = Replayed::new();
            let started = start(state, &medium, &mut later);
            let (log, _) = started.map_err(|error| Violation(format!("the start after it is refused: {error}")))?;
            later.engine.recovered(log.durable());
            if later.engine.digest() != digest {
                return Err(Violation("the start after it finds another state".to_owned()));
            }
        }
        if digest != self.digest {
            return self.torn_tail(state, harm, &replayed, &report);
        }
        let told = self.read_and_check(state, harm, &harmed)?;
        Ok(match (index, told, report.bad_checkpoints.is_empty()) {
            (_, true, _) => Outcome::Told,
            (false, _, true) => Outcome::NoEffect,
            _ => Outcome::PutAside,
        })
    }

    /// Something is missing. That is right only after a power cut, behind all that is known to have been durable.
    fn torn_tail(
        &self,
        state: &State,
        harm: &Harm,
        replayed: &Replayed,
        report: &StartReport,
    ) -> Result<Outcome, Violation> {
        let first_read = report.checkpoint.unwrap_or_default();
        let missing = |position: &LogPosition| *position >= first_read && !replayed.entries.contains_key(position);
        let Some(first) = self.entries.keys().copied().find(missing) else {
            return Err(Violation("every entry is there, and yet the state is another".to_owned()));
        };
        let harmed = harm.range(&state.medium);
        let is_harmed = |file: &str, range: &Range<usize>| {
            file == harm.file() && harmed.iter().any(|harmed| harmed.start < range.end && range.start < harmed.end)
        };
        let unharmed = self.stated.iter().filter(|(file, range, _)| !is_harmed(file, range));
        let known = unharmed.map(|(_, _, durable)| *durable).max().unwrap_or_default();
        let is_tail = self.entries.range(first..).all(|(position, _)| !replayed.entries.contains_key(position));
        if state.stop == Stop::Power && first >= known && is_tail {
            Ok(Outcome::TornTail)
        } else {
            Err(Violation(format!("position {first} is missing in silence; known to be durable was {known}")))
        }
    }

    /// The entries that the harm touches are refused by whoever reads them, and then `check` tells of them: true. Or all of them
    /// are as they were.
    fn read_and_check(&self, state: &State, harm: &Harm, harmed: &Medium) -> Result<bool, Violation> {
        let mut bad = None;
        for range in harm.range(&state.medium) {
            let (Some(from), Some(to)) = (
                state.position(harm.file(), range.start.max(BLOCK)),
                state.position(harm.file(), range.end.max(BLOCK)),
            ) else {
                continue;
            };
            let touched = self.entries.values().filter(|(header, _)| header.position < to && header.end() > from);
            for (header, crc) in touched {
                if !self.is_sound(state, harmed, harm.file(), header, *crc)? {
                    bad = Some(header.position);
                }
            }
        }
        let options = state.options();
        let report = block_on(Log::check(harmed.clone(), harmed.clone(), options, &mut |_, _| {}));
        let is_sound = report.as_ref().is_ok_and(peregrine_broker::log::CheckReport::is_sound);
        match bad {
            Some(position) if is_sound => {
                Err(Violation(format!("check finds nothing wrong, and the entry at {position} is not what it was")))
            }
            Some(_) => Ok(true),
            None => Ok(false),
        }
    }

    /// Whether a reader of that entry gets what was written, where this file is the one that it is read from.
    fn is_sound(
        &self,
        state: &State,
        harmed: &Medium,
        file: &str,
        header: &EntryHeader,
        crc: u32,
    ) -> Result<bool, Violation> {
        let Some(offset) = state.offset(file, header.position) else { return Ok(true) };
        if self.is_stale(state, file, header) {
            return Ok(true);
        }
        let bytes = harmed.read(file, offset, header.len() as usize);
        let decoded = bytes.get(..ENTRY_HEADER_LEN).map(|head| Entry::decode(head, state.options().seal()));
        let payload = bytes.get(ENTRY_HEADER_LEN..ENTRY_HEADER_LEN + header.length as usize);
        match (decoded, payload) {
            (Some(Ok(Entry::Full(found))), Some(payload)) if found.check_payload(payload).is_ok() => {
                // A whole entry of another place, as a doubled block may hold, says so by its position.
                let is_other = (found, crc32(payload)) != (*header, crc);
                if is_other && found.position == header.position {
                    return Err(Violation(format!("a reader of position {} is given {found:?}", header.position)));
                }
                Ok(!is_other)
            }
            _ => Ok(false),
        }
    }

    /// Whether the log has those positions from the ring, or from another file: this one was cut before them.
    fn is_stale(&self, state: &State, file: &str, header: &EntryHeader) -> bool {
        let holding =
            state.identities().iter().rev().find(|it| it.base <= header.position && header.position < it.end());
        header.position >= self.cut || holding.is_none_or(|identity| identity.name().to_string() != file)
    }

    /// A harmed index says that it is bad or says what is so; true where it is bad.
    fn ask_index(&self, state: &State, medium: &Medium, harm: &Harm) -> Result<bool, Violation> {
        let options = state.options();
        let Some(segment) =
            state.sealed().into_iter().find(|segment| harm.file() == format!("index-{}", segment.name()))
        else {
            return Ok(false);
        };
        let index = match block_on(SegmentIndex::open(medium, &options, &segment)) {
            Ok(index) => index,
            Err(error) if error.is_bad_index() => return Ok(true),
            Err(error) => return Err(Violation(format!("an index cannot be opened: {error}"))),
        };
        let mut is_bad = false;
        let name = segment.name().to_string();
        let here = |header: &&EntryHeader| header.kind == EntryKind::Batch && !self.is_stale(state, &name, header);
        for header in self.entries.values().map(|(header, _)| header).filter(here) {
            match block_on(index.lookup(header.topic, header.queue, header.base_offset, 1)) {
                Ok(found) if found.first().is_some_and(|batch| batch.position == header.position) => {}
                Ok(found) => return Err(Violation(format!("an index gives {found:?} for {header:?}"))),
                Err(error) if error.is_bad_index() => is_bad = true,
                Err(error) => return Err(Violation(format!("an index does not answer: {error}"))),
            }
        }
        Ok(is_bad)
    }
}

fn start(
    state: &State,
    medium: &Medium,
    replayed: &mut Replayed,
) -> Result<(Log<Medium, Medium>, StartReport), StartError> {
    block_on(Log::start(medium.clone(), medium.clone(), state.options(), replayed))
}

/// A refusal must say where.
fn refused(state: &State, harm: &Harm, error: &StartError) -> Result<Outcome, Violation> {
    match error {
        StartError::Ring { .. } | StartError::RingTaken { .. } => Ok(Outcome::Refused),
        StartError::Damage(damage) => {
            let names_file = damage.files.iter().any(|(name, _)| name.contains(harm.file()));
            let ranges = harm.range(&state.medium);
            let places = ranges.iter().filter_map(|range| state.position(harm.file(), range.start.max(BLOCK)));
            let names_place = places.into_iter().any(|at| {
                // A block that is harmed belongs to entries that begin before it or within it.
                let holds = |extent: &Extent| extent.from < at + BLOCK as u64 && extent.to > at;
                damage.extents.iter().any(|damaged| holds(&damaged.extent))
            });
            let in_ring = harm.file().contains('/') && !damage.extents.is_empty();
            if names_file || names_place || in_ring {
                Ok(Outcome::Refused)
            } else {
                Err(Violation(format!("the start names another place: {error}")))
            }
        }
        other => Err(Violation(format!("a refusal that does not tell of damage: {other}"))),
    }
}

/// Every durable position that identities, marks, checkpoints and pads state.
fn stated(state: &State) -> Vec<(String, Range<usize>, LogPosition)> {
    let mut stated = Vec::new();
    let number = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let seal = state.options().seal();
    for identity in state.identities() {
        let file = identity.name().to_string();
        stated.push((file.clone(), 0..BLOCK, identity.durable));
        let bytes = state.medium.get(&file);
        for at in (BLOCK..state.written(&file)).step_by(ENTRY_ALIGN as usize) {
            if let Some(Ok(Entry::Pad(pad))) =
                bytes.get(at..at + ENTRY_HEADER_LEN).map(|head| Entry::decode(head, seal))
            {
                stated.push((file.clone(), at..at + ENTRY_ALIGN as usize, pad.durable));
            }
        }
    }
    for name in state.medium.names() {
        let bytes = state.medium.get(&name);
        if name.starts_with("mark-") {
            let blocks = (0..bytes.len()).step_by(BLOCK).filter(|&at| number(&bytes, at) != 0);
            stated.extend(blocks.map(|at| (name.clone(), at..at + BLOCK, LogPosition(number(&bytes, at + 48)))));
        } else if name.starts_with("checkpoint-") {
            stated.push((name.clone(), 0..BLOCK, LogPosition(number(&bytes, 56))));
        }
    }
    stated
}
