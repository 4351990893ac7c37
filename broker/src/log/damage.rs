//! What recovery refuses to pass over in silence: bytes that were promised and are not there, or not whole.
//!
//! Damage is never taken for the log's end. A start that meets it names positions, queues and offsets and ends, unless
//! `--accept-loss` was given: then the fresh segment opens with an entry of kind `Loss` that lists the extents given up, and
//! its identity says where that entry stands. Later starts read it before anything else: they do not ask again, and they pass
//! over what it names even where that can be read again, since what came behind was built without it.

use std::fmt;

use peregrine_protocol::ids::{LogPosition, QueueId, QueueOffset, ShardId, TopicId};

/// Positions `from` up to, not including, `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    pub from: LogPosition,
    pub to: LogPosition,
}

impl Extent {
    const LEN: usize = 16;

    pub fn contains(&self, position: LogPosition) -> bool {
        (self.from..self.to).contains(&position)
    }

    /// Whether all of it lies in `others`, which are in order of position and may overlap or touch.
    fn is_covered(&self, others: &[Self]) -> bool {
        let covered = others.iter().fold(self.from, |to, other| if other.from <= to { to.max(other.to) } else { to });
        covered >= self.to
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.from, self.to)
    }
}

/// Messages of one queue that no entry holds any more, as far as later entries of the queue tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LostOffsets {
    pub topic: TopicId,
    pub queue: QueueId,
    pub from: QueueOffset,
    pub to: QueueOffset,
}

/// One damaged stretch of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedExtent {
    pub extent: Extent,
    /// What is wrong at its first position.
    pub reason: String,
}

/// All damage that a start found in one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub shard: ShardId,
    pub extents: Vec<DamagedExtent>,
    /// Segments and marks, by their files, that are none or cannot be read, and why.
    pub files: Vec<(String, String)>,
    /// Offsets that the extents took with them. A queue whose last messages are lost, with none behind them, is not here.
    pub queues: Vec<LostOffsets>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {}: the log is damaged", self.shard)?;
        for (name, reason) in &self.files {
            write!(f, "; {name}: {reason}")?;
        }
        for DamagedExtent { extent, reason } in &self.extents {
            write!(f, "; positions {extent}: {reason}")?;
        }
        for lost in &self.queues {
            let LostOffsets { topic, queue, from, to } = lost;
            write!(f, "; topic {topic} queue {queue}: offsets {from}..{to} are lost")?;
        }
        write!(f, "; --accept-loss starts without what is named here")
    }
}

/// The payload of an entry of kind `Loss`: `from` and `to` as u64, one extent after the other.
pub fn encode_loss(extents: &[Extent]) -> Vec<u8> {
    extents.iter().flat_map(|extent| [extent.from.0.to_le_bytes(), extent.to.0.to_le_bytes()]).flatten().collect()
}

/// `None` where `payload` is no list of extents.
pub fn decode_loss(payload: &[u8]) -> Option<Vec<Extent>> {
    let (extents, rest) = payload.as_chunks::<{ Extent::LEN }>();
    let decode = |bytes: &[u8; Extent::LEN]| {
        let at = |at: usize| LogPosition(super::layout::u64_at(bytes, at));
        let extent = Extent { from: at(0), to: at(8) };
        (extent.from < extent.to).then_some(extent)
    };
    if rest.is_empty() { extents.iter().map(decode).collect() } else { None }
}

/// The stretches of damage that recovery meets, and those that an earlier start accepted.
#[derive(Debug, Default)]
pub(super) struct DamageTally {
    found: Vec<DamagedExtent>,
    /// Blocks behind the log's last good entry that cannot be read, so that nobody knows whether it is the last.
    unknown: Vec<DamagedExtent>,
    accepted: Vec<Extent>,
}

impl DamageTally {
    pub fn found(&mut self, extent: Extent, reason: String) {
        self.found.push(DamagedExtent { extent, reason });
    }

    /// Such blocks count where they are not within a stretch of damage anyhow. They come in order; neighbours become one.
    pub fn unknown(&mut self, extent: Extent, reason: String) {
        match self.unknown.last_mut() {
            Some(last) if last.extent.to == extent.from => last.extent.to = extent.to,
            _ => self.unknown.push(DamagedExtent { extent, reason }),
        }
    }

    pub fn accepted(&mut self, extents: impl IntoIterator<Item = Extent>) {
        self.accepted.extend(extents);
        self.accepted.sort_unstable();
        self.accepted.dedup();
    }

    /// What was found and no earlier start accepted.
    pub fn open(&self) -> Vec<DamagedExtent> {
        let is_open = |damaged: &&DamagedExtent, known: &[Extent]| !damaged.extent.is_covered(known);
        let mut open: Vec<_> = self.found.iter().filter(|found| is_open(found, &self.accepted)).cloned().collect();
        let mut known = self.accepted.clone();
        known.extend(self.found.iter().map(|damaged| damaged.extent));
        known.sort_unstable();
        open.extend(self.unknown.iter().filter(|unknown| is_open(unknown, &known)).cloned());
        open
    }

    /// What earlier starts gave up, in order of position.
    pub fn given_up(&self) -> &[Extent] {
        &self.accepted
    }

    /// Where an extent that was given up and that holds this position ends.
    pub fn given_up_to(&self, position: LogPosition) -> Option<LogPosition> {
        self.accepted.iter().filter(|extent| extent.contains(position)).map(|extent| extent.to).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(from: u64, to: u64) -> Extent {
        Extent { from: LogPosition(from), to: LogPosition(to) }
    }

    #[test]
    fn extents_read_back() {
        let extents = [extent(64, 4096), extent(8192, 1 << 40)];
        let payload = encode_loss(&extents);
        assert_eq!(decode_loss(&payload), Some(extents.to_vec()));
        assert_eq!(decode_loss(&payload[1..]), None);
        assert_eq!(decode_loss(&encode_loss(&[extent(64, 64)])), None);
    }

    #[test]
    fn what_was_accepted_is_not_asked_again() {
        let mut tally = DamageTally::default();
        tally.found(extent(64, 128), "torn".to_owned());
        tally.found(extent(256, 512), "gone".to_owned());
        tally.accepted([extent(0, 4096)]);
        assert_eq!(tally.open(), []);
        tally.found(extent(4096, 8192), "new".to_owned());
        assert_eq!(tally.open().len(), 1);
    }

    /// In the ring damage ends where the ring does and begins anew; in the segment that a start copied it to it is one stretch.
    #[test]
    fn what_was_accepted_in_parts_is_accepted_as_a_whole() {
        let mut tally = DamageTally::default();
        tally.accepted([extent(4096, 8192), extent(0, 4096), extent(16_384, 32_768)]);
        tally.found(extent(64, 8192), "torn".to_owned());
        assert_eq!(tally.open(), []);
        tally.found(extent(4096, 16_384), "a gap".to_owned());
        tally.found(extent(64, 8256), "longer".to_owned());
        assert_eq!(tally.open().len(), 2);
    }

    #[test]
    fn blocks_of_which_nothing_is_known_count_where_nothing_else_names_them() {
        let mut tally = DamageTally::default();
        tally.unknown(extent(4096, 8192), "unreadable".to_owned());
        tally.unknown(extent(8192, 12_288), "unreadable".to_owned());
        tally.unknown(extent(40_960, 45_056), "unreadable".to_owned());
        let open: Vec<_> = tally.open().iter().map(|damaged| damaged.extent).collect();
        assert_eq!(open, [extent(4096, 12_288), extent(40_960, 45_056)]);
        tally.found(extent(4032, 12_288), "torn".to_owned());
        tally.accepted([extent(40_960, 45_056)]);
        let open: Vec<_> = tally.open().iter().map(|damaged| damaged.extent).collect();
        assert_eq!(open, [extent(4032, 12_288)]);
        assert_eq!(tally.given_up_to(LogPosition(40_960)), Some(LogPosition(45_056)));
        assert_eq!((tally.given_up_to(LogPosition(45_056)), tally.given_up_to(LogPosition(4096))), (None, None));
    }

    #[test]
    fn the_sentence_names_positions_queues_and_offsets() {
        let lost = LostOffsets { topic: TopicId(9), queue: QueueId(1), from: QueueOffset(10), to: QueueOffset(12) };
        let damage = Damage {
            shard: ShardId(2),
            extents: vec![DamagedExtent {
                extent: extent(64, 128),
                reason: "the payload's checksum is wrong".to_owned(),
            }],
            files: vec![],
            queues: vec![lost],
        };
        assert_eq!(
            damage.to_string(),
            "shard 2: the log is damaged; positions 64..128: the payload's checksum is wrong; topic 9 queue 1: offsets \
             10..12 are lost; --accept-loss starts without what is named here"
        );
    }
}
