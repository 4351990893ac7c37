//! Step 3: reads the log from its first entry, or from where a checkpoint was begun, hands every entry to the engine, and finds the cut; tells a torn tail from
//! damage by every durable position that anything states.

use peregrine_protocol::entry::{Entry, EntryHeader, EntryKind, EntrySeal};
use peregrine_protocol::ids::{Epoch, LogPosition, Nanos};
use peregrine_protocol::limits::{ENTRY_ALIGN, ENTRY_HEADER_LEN};

use super::due_ring::RingTail;
use super::survey::Survey;
use super::{Replay, io_error};
use crate::log::chain::{Chain, Link};
use crate::log::checkpoint::CheckpointHead;
use crate::log::damage::{DamageTally, Extent, decode_loss};
use crate::log::disk::{Access, Disk, DiskFile};
use crate::log::error::StartError;
use crate::log::fault::Planted;
use crate::log::options::LogOptions;
use crate::log::ring::leftover;
use crate::log::segment::Identity;
use crate::log::window::{BadEntry, Expected, Window, decode_entry};

/// Where a pass over the log begins, and what is known of what lies before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ScanStart {
    /// Where an entry begins.
    pub position: LogPosition,
    /// No entry from there on has a lower one.
    pub epoch: Epoch,
    /// Of the last entry before.
    pub store_time: Nanos,
}

impl ScanStart {
    /// Behind what a checkpoint says; at the log's first entry without one.
    pub fn behind(checkpoint: Option<&CheckpointHead>) -> Self {
        checkpoint.map_or_else(Self::default, |head| Self {
            position: head.begin,
            epoch: head.epoch,
            store_time: head.store_time,
        })
    }
}

/// One pass over the log.
pub(super) struct Scan<'a, D: Disk> {
    disk: &'a D,
    options: &'a LogOptions,
    survey: &'a Survey,
    chain: &'a Chain,
    replay: &'a mut dyn Replay,
    seal: EntrySeal,
    /// Reading begins here: what the log says below is known.
    from: LogPosition,
    /// The epoch of the last entry: none behind it is lower.
    epoch: Epoch,
    /// The newest durable position that identities and marks state, and pads behind the first bad entry.
    pub durable: LogPosition,
    /// The end of the highest pad seen, or of what was given up behind the last entry.
    pub highest: LogPosition,
    /// Of the last entry that the engine took.
    pub store_time: Nanos,
    pads_searched: bool,
    pub tally: DamageTally,
}

impl<'a, D: Disk> Scan<'a, D> {
    /// `given_up`: what earlier starts gave up. None of it is read.
    pub fn new(
        disk: &'a D,
        options: &'a LogOptions,
        survey: &'a Survey,
        chain: &'a Chain,
        start: ScanStart,
        given_up: &[Extent],
        replay: &'a mut dyn Replay,
    ) -> Self {
        let mut tally = DamageTally::default();
        tally.accepted(given_up.iter().copied());
        Self {
            disk,
            options,
            survey,
            chain,
            replay,
            seal: options.seal(),
            from: start.position,
            epoch: start.epoch,
            durable: survey.durable(),
            highest: LogPosition(0),
            store_time: start.store_time,
            pads_searched: false,
            tally,
        }
    }

    /// Reads what is on the device and answers the cut. With a ring that is the ring's durable position, and everything below
    /// must be good. Without, it is where the good prefix expects its next entry.
    pub async fn read_segments(&mut self, ring_cut: Option<LogPosition>) -> Result<LogPosition, StartError> {
        let mut expected = LogPosition(0);
        let mut holes = self.holes().into_iter().peekable();
        for (n, link) in self.chain.links.iter().enumerate() {
            if let Some(cut) = ring_cut
                && link.base >= cut
            {
                // A run that has flushed nothing: its cut is its segment's base, which may stand far above the log before it.
                expected = if link.base == cut { cut } else { expected };
                break;
            }
            while let Some(hole) = holes.next_if(|hole| hole.from < link.base) {
                self.lose(hole, "no segment holds these positions");
            }
            expected = link.base;
            let limit = ring_cut.map_or(link.end, |cut| cut.min(link.end));
            if self.from < limit
                && let Some(torn) = self.read_link(n, link, limit, ring_cut.is_some()).await?
            {
                return Ok(torn);
            }
            expected = expected.max(limit);
            if let Some(next) = self.chain.links.get(n + 1)
                && ring_cut.is_none()
            {
                expected = next.base;
            }
        }
        let due = ring_cut.unwrap_or(self.durable);
        if expected < due {
            self.lose(Extent { from: expected, to: due }, "no segment holds these positions");
        }
        Ok(ring_cut.unwrap_or(expected))
    }

    /// What no segment holds and should, in order. What a checkpoint says of it does not bring its messages back.
    fn holes(&self) -> Vec<Extent> {
        let mut holes = Vec::new();
        for &hole in &self.chain.holes {
            // In front of all segments is what was retired, as far as a checkpoint knows it: but for files that are none.
            if hole.from > LogPosition(0) || hole.to > self.from {
                holes.push(hole);
                continue;
            }
            let bad = self.survey.bad.iter().filter(|bad| bad.name.base < hole.to);
            holes.extend(bad.map(|bad| Extent { from: bad.name.base, to: bad.end.min(hole.to) }));
        }
        holes.sort_unstable();
        holes
    }

    /// Reads what stands only in the ring. The messages among it.
    pub fn read_ring(&mut self, file: &[u8], tail: RingTail) -> u64 {
        let [first, second] = leftover(file, tail.size, tail.durable, tail.published);
        let lap = tail.durable + first.len() as u64;
        let mut messages = 0;
        let skips = self.options.faults.has(Planted::SkipChecksum);
        for (bytes, from) in [(first, tail.durable), (second, lap)] {
            let limit = from + bytes.len() as u64;
            let mut position = from;
            while position < limit {
                if let Some(to) = self.pass_over(position, limit) {
                    position = to;
                    continue;
                }
                let rest = &bytes[(position - from) as usize..];
                let expected = Expected { position, epoch_min: self.epoch, epoch_max: tail.epoch, limit };
                match ring_entry(rest, self.seal, &expected, skips) {
                    Ok(entry) => {
                        if let Entry::Full(header) = entry {
                            let payload = &rest[ENTRY_HEADER_LEN..ENTRY_HEADER_LEN + header.length as usize];
                            if self.visit_full(&header, payload) {
                                messages += u64::from(header.record_count);
                            }
                        }
                        self.epoch = entry.epoch();
                        position = entry.end();
                    }
                    Err(bad) => {
                        let mut next = position + ENTRY_ALIGN;
                        while next < limit {
                            let expected = Expected { position: next, ..expected };
                            if ring_entry(&bytes[(next - from) as usize..], self.seal, &expected, skips).is_ok() {
                                break;
                            }
                            next += ENTRY_ALIGN;
                        }
                        self.lose(Extent { from: position, to: next }, &format!("in the staging ring: {bad}"));
                        position = next;
                    }
                }
            }
        }
        messages
    }

    /// Reads one segment's part. `Some`: the log ends here with a torn tail.
    async fn read_link(
        &mut self,
        n: usize,
        link: &Link,
        limit: LogPosition,
        with_ring: bool,
    ) -> Result<Option<LogPosition>, StartError> {
        let identity = &self.survey.segments[link.index];
        let is_last = n + 1 == self.chain.links.len();
        let mut window = open_window(self.disk, self.options, identity).await?;
        let mut position = link.base.max(self.from);
        while position < limit {
            if let Some(to) = self.pass_over(position, limit) {
                position = to;
                continue;
            }
            let expected = Expected { position, epoch_min: self.epoch, epoch_max: identity.epoch, limit };
            let bad = match window.entry(&expected).await {
                Ok(entry) => {
                    self.visit(entry, &mut window).await;
                    position = entry.end();
                    continue;
                }
                Err(bad) => bad,
            };
            let unreadable = matches!(bad, BadEntry::Unreadable(_));
            if !with_ring {
                self.search_pads(n, position).await?;
                if position >= self.durable && (!unreadable || self.was_closed_at(position)) {
                    return Ok(Some(position));
                }
            }
            let behind = Expected { position: position + ENTRY_ALIGN, ..expected };
            let next = window.next_good(behind).await;
            let ends_here = is_last && !with_ring && next.is_none();
            let known_end = if unreadable { self.durable.max(window.unreadable_end(position)) } else { self.durable };
            let to = next.unwrap_or(if ends_here { limit.min(known_end) } else { limit });
            self.lose(Extent { from: position, to }, &bad.to_string());
            if ends_here {
                self.highest = self.highest.max(to);
                return Ok(Some(position));
            }
            position = to;
        }
        if !is_last && self.options.faults.has(Planted::ReadPastCut) {
            self.read_past(&mut window, position, identity.epoch, identity.end()).await;
        }
        Ok(None)
    }

    /// Where reading goes on if what stands at this position was given up by an earlier start.
    fn pass_over(&mut self, position: LogPosition, limit: LogPosition) -> Option<LogPosition> {
        let to = self.tally.given_up_to(position)?.min(limit);
        self.replay.lost(Extent { from: position, to });
        Some(to)
    }

    /// A planted fault: takes what stands behind the segment's part of the log.
    async fn read_past<F: DiskFile>(
        &mut self,
        window: &mut Window<F>,
        mut position: LogPosition,
        epoch_max: Epoch,
        limit: LogPosition,
    ) {
        while position < limit {
            let expected = Expected { position, epoch_min: self.epoch, epoch_max, limit };
            let Ok(entry) = window.entry(&expected).await else { break };
            self.visit(entry, window).await;
            position = entry.end();
        }
    }

    async fn visit<F: DiskFile>(&mut self, entry: Entry, window: &mut Window<F>) {
        self.epoch = entry.epoch();
        match entry {
            // What it states to be durable lies below it, and was found good.
            Entry::Pad(_) => {}
            Entry::Full(header) => {
                let payload = window.payload(header.payload_position(), header.length).await;
                self.visit_full(&header, payload);
            }
        }
    }

    /// Hands an entry to the engine. False where that does not take it: a sound entry that contradicts those before it is
    /// damage like any other, whatever wrote it.
    fn visit_full(&mut self, header: &EntryHeader, payload: &[u8]) -> bool {
        match self.take(header, payload) {
            Ok(()) => {
                self.store_time = header.store_time;
                true
            }
            Err(reason) => {
                let extent = Extent { from: header.position, to: header.end() };
                self.lose(extent, &format!("{} contradicts what stands before it: {reason}", name_entry(header)));
                false
            }
        }
    }

    fn take(&mut self, header: &EntryHeader, payload: &[u8]) -> Result<(), String> {
        if header.kind == EntryKind::Loss {
            let extents = decode_loss(payload).ok_or_else(|| "it lists no extents".to_owned())?;
            // Where the loss was the log's end, this entry alone still tells of it.
            for extent in &extents {
                self.replay.lost(*extent);
            }
            self.tally.accepted(extents);
        }
        self.replay.entry(header, payload)
    }

    fn lose(&mut self, extent: Extent, reason: &str) {
        self.tally.found(extent, reason.to_owned());
        self.replay.lost(extent);
    }

    /// Whether a clean stop says that the log ends here or before: nothing was ever written behind.
    fn was_closed_at(&self, position: LogPosition) -> bool {
        let closed = self.survey.newest().is_some_and(|newest| self.survey.closes(newest.epoch));
        closed && position >= self.survey.durable()
    }

    /// Looks for pads behind the first bad entry: what they say to be durable must be good. A torn tail can hold good blocks
    /// behind a hole.
    async fn search_pads(&mut self, n: usize, position: LogPosition) -> Result<(), StartError> {
        if std::mem::replace(&mut self.pads_searched, true) || self.was_closed_at(position) {
            return Ok(());
        }
        for link in &self.chain.links[n..] {
            let identity = &self.survey.segments[link.index];
            let mut window = open_window(self.disk, self.options, identity).await?;
            let from = position.max(link.base);
            let mut expected =
                Expected { position: from, epoch_min: Epoch(0), epoch_max: identity.epoch, limit: link.end };
            while let Some(pad) = window.next_pad(expected).await {
                if pad.node == self.options.node() {
                    self.durable = self.durable.max(pad.durable);
                }
                self.highest = self.highest.max(pad.end());
                expected.position = pad.position + ENTRY_ALIGN;
            }
            // A pad may stand there that says more.
            for (block, reason) in window.unreadable(from, link.end) {
                self.tally.unknown(block, format!("the device cannot read it: {reason}"));
            }
        }
        Ok(())
    }
}

/// An entry in the ring, its payload checked, unless a planted fault skips that.
fn ring_entry(bytes: &[u8], seal: EntrySeal, expected: &Expected, skips: bool) -> Result<Entry, BadEntry> {
    let entry = decode_entry(bytes, seal, expected)?;
    if let Entry::Full(header) = entry
        && !skips
    {
        let payload = bytes.get(ENTRY_HEADER_LEN..).and_then(|rest| rest.get(..header.length as usize));
        header.check_payload(payload.unwrap_or_default())?;
    }
    Ok(entry)
}

/// Opens a segment for reading from its first entry on.
pub(super) async fn open_window<D: Disk>(
    disk: &D,
    options: &LogOptions,
    identity: &Identity,
) -> Result<Window<D::File>, StartError> {
    let name = identity.name();
    let file = disk.open(&name.to_string(), Access::Read).await;
    let file = file.map_err(io_error(options, || format!("open segment {name}")))?;
    let skips_checksums = options.faults.has(Planted::SkipChecksum);
    Ok(Window::new(file, identity.base, options.seal()).skipping_checksums(skips_checksums))
}

/// An entry in an operator's words.
fn name_entry(header: &EntryHeader) -> String {
    if header.kind != EntryKind::Batch {
        return format!("a sound entry of kind {:?}", header.kind);
    }
    let EntryHeader { topic, queue, base_offset, .. } = *header;
    format!("a sound batch for topic {topic} queue {queue} offsets {base_offset}..{}", header.end_offset())
}
