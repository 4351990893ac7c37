//! The batches that may hold a key, in the order of the log: from the indexes of those segments that have one, by looking at every entry
//! of the others.

use super::{SearchError, SearchWindow, SearchedLog};
use crate::limits::INDEX_FOUND_MAX;
use crate::log::disk::Disk;
use crate::log::error::ReadError;
use crate::log::index::{KeyHash, LogIndexes};
use peregrine_protocol::entry::{Codec, Entry, EntryHeader, EntryKind};
use peregrine_protocol::ids::{LogPosition, Nanos, TopicId};
use peregrine_protocol::limits::RECORD_ALIGN;
use std::collections::VecDeque;

/// What is looked for.
#[derive(Clone, Debug)]
pub struct KeyAsked {
    pub topic: TopicId,
    pub key: Box<[u8]>,
    /// Stored at or after this instant,
    pub begin: Nanos,
    /// and before this one.
    pub end: Nanos,
}

/// One step of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A batch of the topic, stored when it is asked for: records from [`KeySearch::from`] on are to be looked at.
    Batch(EntryHeader),
    /// Nothing in this step.
    Passed,
    End,
}

/// A search under way.
pub struct KeySearch<D: Disk> {
    indexes: LogIndexes<D>,
    asked: KeyAsked,
    from: LogPosition,
    region: Region,
}

/// Where it looks now.
enum Region {
    Unknown,
    /// At these records; what is looked for in front of `to` is among them.
    Indexed {
        records: VecDeque<LogPosition>,
        to: LogPosition,
    },
    /// At every entry from `at` up to `to`.
    Whole {
        at: LogPosition,
        to: LogPosition,
    },
}

impl<D: Disk> KeySearch<D> {
    /// Looks at records from `from` on, which may be any position.
    pub fn new(indexes: LogIndexes<D>, asked: KeyAsked, from: LogPosition) -> Self {
        let from = LogPosition(from.0 / RECORD_ALIGN as u64 * RECORD_ALIGN as u64);
        let from = from.max(indexes.begin_of(asked.begin));
        Self { indexes, asked, from, region: Region::Unknown }
    }

    pub fn key(&self) -> &[u8] {
        &self.asked.key
    }

    /// Where the search goes on.
    pub fn from(&self) -> LogPosition {
        self.from
    }

    /// Records in front of `position` were looked at.
    pub fn passed(&mut self, position: LogPosition) {
        self.from = self.from.max(position);
    }

    pub async fn next(&mut self, window: &mut SearchWindow<impl SearchedLog>) -> Result<Next, SearchError> {
        match self.step(window).await {
            // Its segment was retired meanwhile.
            Err(SearchError::Read(ReadError::NotInLog(position)))
                if window.log().stretch(position).is_none_or(|stretch| !stretch.contains(&position)) =>
            {
                self.region = Region::Unknown;
                Ok(Next::Passed)
            }
            outcome => outcome,
        }
    }

    async fn step(&mut self, window: &mut SearchWindow<impl SearchedLog>) -> Result<Next, SearchError> {
        let header = match &mut self.region {
            Region::Unknown => return self.enter(window).await,
            Region::Indexed { records, to } => {
                let Some(record) = records.pop_front() else {
                    self.from = self.from.max(*to);
                    self.region = Region::Unknown;
                    return Ok(Next::Passed);
                };
                if record < self.from {
                    return Ok(Next::Passed);
                }
                self.from = record;
                match window.entry_around(record).await? {
                    Some(Entry::Full(header)) => header,
                    _ => return Ok(Next::Passed),
                }
            }
            Region::Whole { at, to } if *at >= *to => {
                self.from = self.from.max(*to);
                self.region = Region::Unknown;
                return Ok(Next::Passed);
            }
            Region::Whole { at, .. } => {
                if let Some(to) = self.indexes.given_up_to(*at) {
                    *at = to;
                    return Ok(Next::Passed);
                }
                let entry = window.entry(*at).await?.ok_or(SearchError::Damaged(*at))?;
                *at = entry.end();
                match entry {
                    Entry::Full(header) => header,
                    Entry::Pad(pad) => {
                        self.passed(pad.position + pad.len());
                        return Ok(Next::Passed);
                    }
                }
            }
        };
        Ok(self.judge(&header))
    }

    /// Finds out how to look at what comes next.
    async fn enter(&mut self, window: &mut SearchWindow<impl SearchedLog>) -> Result<Next, SearchError> {
        let Some(stretch) = window.log().stretch(self.from) else { return Ok(Next::End) };
        self.from = self.from.max(stretch.start);
        let sealed_end = self.indexes.sealed_end(self.from);
        let hash = KeyHash::of(self.asked.topic, &self.asked.key);
        if let Some(end) = sealed_end
            && let Ok((found, _)) = self.indexes.lookup_key(hash, self.from, INDEX_FOUND_MAX).await
        {
            let last = found.last().filter(|_| found.len() == INDEX_FOUND_MAX);
            let to = last.map_or(end, |&last| last + RECORD_ALIGN as u64);
            self.region = Region::Indexed { records: found.into(), to };
            return Ok(Next::Passed);
        }
        // It has no index, or one that is made again.
        let to = sealed_end.unwrap_or(stretch.end).min(stretch.end);
        let at = match window.entry(self.from).await? {
            Some(entry) => entry.position(),
            None if self.indexes.given_up_to(self.from).is_some() => self.from,
            None => match window.entry_around(self.from).await? {
                Some(around) => around.position(),
                None => return Err(SearchError::Damaged(self.from)),
            },
        };
        self.region = Region::Whole { at, to };
        Ok(Next::Passed)
    }

    fn judge(&mut self, header: &EntryHeader) -> Next {
        let asked = &self.asked;
        // Store times never go back in a shard.
        if header.store_time >= asked.end {
            return Next::End;
        }
        let is_batch = header.kind == EntryKind::Batch && header.flags.codec() == Codec::None;
        if is_batch && header.topic == asked.topic && header.store_time >= asked.begin {
            return Next::Batch(*header);
        }
        self.passed(header.end());
        Next::Passed
    }
}
