//! How the making of an index goes on behind damage, where that does not end it.

use peregrine_protocol::entry::EntryHeader;
use peregrine_protocol::ids::LogPosition;
use peregrine_protocol::limits::ENTRY_ALIGN;

use super::Builder;
use crate::log::damage::Extent;
use crate::log::disk::Disk;
use crate::log::index::damage::Harm;
use crate::log::index::{IndexError, pace};
use crate::log::window::{BadEntry, Expected};

/// Bytes that are searched in one step for the next entry behind damage.
const STEP: u64 = 64 << 10;

impl<D: Disk> Builder<'_, D> {
    /// Where entries go on behind one whose header is bad.
    pub(super) async fn pass_over(&mut self, expected: &Expected, reason: BadEntry) -> Result<LogPosition, IndexError> {
        let Expected { position, limit, .. } = *expected;
        if !self.may_pass_over(&reason) {
            return Err(self.bad(position, reason));
        }
        // What was given up is no part of the log, whatever stands there.
        let given_up = self.segment.given_up.iter().map(|extent| extent.from).filter(|from| *from > position);
        let limit = given_up.min().map_or(limit, |from| from.min(limit));
        let mut next = position + ENTRY_ALIGN;
        while next < limit {
            let to = limit.min(next + STEP);
            self.pace.spend_bytes(STEP as usize).await;
            let Some(found) = self.window.next_magic(next, to).await else {
                next = to;
                continue;
            };
            self.pace.spend(pace::ENTRY).await;
            let expected = Expected { position: found, limit, ..*expected };
            if self.window.header(&expected).await.is_ok() {
                next = found;
                break;
            }
            next = found + ENTRY_ALIGN;
        }
        let to = next.min(limit);
        if let Some(passed) = &mut self.passed {
            passed.gap(Extent { from: position, to }, &reason.to_string());
        }
        Ok(to)
    }

    /// A payload is bad: its entry stands where it stands.
    pub(super) fn pass_payload(&mut self, header: &EntryHeader, reason: BadEntry) -> Result<(), IndexError> {
        if !self.may_pass_over(&reason) {
            return Err(self.bad(header.position, reason));
        }
        if let Some(passed) = &mut self.passed {
            passed.entry(header, Harm::Payload, &reason.to_string());
        }
        Ok(())
    }

    /// A sound entry contradicts those before it: nobody knows which of them to believe, and no row can say both.
    pub(super) fn pass_contradiction(&mut self, header: &EntryHeader, what: &'static str) -> Result<(), IndexError> {
        match &mut self.passed {
            Some(passed) => {
                passed.entry(header, Harm::Entries, what);
                Ok(())
            }
            None => Err(self.disorder(header.position, what)),
        }
    }

    fn may_pass_over(&self, reason: &BadEntry) -> bool {
        let is_unread = matches!(reason, BadEntry::Unreadable(_));
        self.passed.as_ref().is_some_and(|passed| passed.takes_unread || !is_unread)
    }
}
