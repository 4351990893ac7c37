//! Which segments make up the log, read back from the newest.
//!
//! Each segment says where the one before it ends (*previous end*). Before a segment comes, of those based below its previous
//! end, the one of the highest epoch, then the highest base; it ends at that previous end, whatever its file holds behind it.
//!
//! ```text
//!   epoch 1  ├──── S1 ────┬ cut ─ ─ ─┤├─ ─ S2 (made ahead) ─ ─┤       S2 is left out: it is based above the cut
//!   epoch 2               ├──────── S3 ────────┤├─── S4 ───┤          the log: S1 up to the cut, S3, S4
//! ```
//!
//! What the chain leaves out is never read: late writes of a dead process may stand there.

use peregrine_protocol::ids::LogPosition;

use super::damage::Extent;
use super::segment::Identity;

/// A segment's part of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Which of the identities.
    pub index: usize,
    pub base: LogPosition,
    /// Where the log goes on elsewhere; the segment's end for the last link.
    pub end: LogPosition,
}

/// The log's segments, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    pub links: Vec<Link>,
    /// Positions below some segment's previous end that no segment holds.
    pub holes: Vec<Extent>,
    /// Segments that are no part of the log.
    pub left_out: Vec<usize>,
}

impl Chain {
    pub fn read_back(identities: &[Identity]) -> Self {
        let mut chain = Self::default();
        let newest_below = |bound: Option<LogPosition>| {
            let below = |identity: &Identity| bound.is_none_or(|bound| identity.base < bound);
            let candidates = identities.iter().enumerate().filter(|(_, identity)| below(identity));
            candidates.max_by_key(|(_, identity)| identity.name())
        };
        let mut bound = None;
        while let Some((index, identity)) = newest_below(bound) {
            let end = bound.map_or(identity.end(), |bound: LogPosition| bound.min(identity.end()));
            if let Some(bound) = bound
                && end < bound
            {
                chain.holes.push(Extent { from: end, to: bound });
            }
            chain.links.push(Link { index, base: identity.base, end });
            bound = Some(identity.previous_end);
        }
        // What was retired is a hole here too: a start that goes on from a checkpoint reads nothing below.
        if let Some(bound) = bound
            && bound > LogPosition(0)
        {
            chain.holes.push(Extent { from: LogPosition(0), to: bound });
        }
        chain.links.reverse();
        chain.holes.reverse();
        let is_left_out = |index: &usize| chain.links.iter().all(|link| link.index != *index);
        chain.left_out = (0..identities.len()).filter(is_left_out).collect();
        chain
    }
}

#[cfg(test)]
mod tests {
    use peregrine_protocol::entry::{DirectoryId, DirectorySecret};
    use peregrine_protocol::ids::{Epoch, ShardId};

    use super::*;
    use crate::log::disk::BLOCK;
    use crate::log::options::{BootId, RunId};

    /// In blocks: base, data, epoch, previous end.
    fn identity((base, data, epoch, previous_end): (u64, u64, u64, u64)) -> Identity {
        let block = BLOCK as u64;
        Identity {
            directory: DirectoryId(0),
            secret: DirectorySecret([0; 16]),
            shard: ShardId(0),
            boot: BootId(0),
            log: RunId(0),
            run: RunId(0),
            base: LogPosition(base * block),
            epoch: Epoch(epoch),
            size: (data + 1) * block,
            previous_end: LogPosition(previous_end * block),
            durable: LogPosition(base * block),
            loss: None,
            ring: None,
        }
    }

    /// Links as (index, base, end), holes as (from, to), and what is left out; in blocks.
    fn read_back(segments: &[(u64, u64, u64, u64)]) -> (Vec<(usize, u64, u64)>, Vec<(u64, u64)>, Vec<usize>) {
        let identities: Vec<_> = segments.iter().copied().map(identity).collect();
        let chain = Chain::read_back(&identities);
        let blocks = |position: LogPosition| position.0 / BLOCK as u64;
        let links = chain.links.iter().map(|link| (link.index, blocks(link.base), blocks(link.end)));
        let holes = chain.holes.iter().map(|hole| (blocks(hole.from), blocks(hole.to)));
        (links.collect(), holes.collect(), chain.left_out)
    }

    #[test]
    fn no_segment_is_an_empty_log() {
        assert_eq!(read_back(&[]), (vec![], vec![], vec![]));
    }

    #[test]
    fn one_run_is_one_segment_after_the_other() {
        let log = read_back(&[(0, 10, 1, 0), (10, 40, 1, 10), (50, 40, 1, 50)]);
        assert_eq!(log, (vec![(0, 0, 10), (1, 10, 50), (2, 50, 90)], vec![], vec![]));
    }

    #[test]
    fn after_a_kill_the_old_tail_and_what_was_made_ahead_are_left_out() {
        let log = read_back(&[(0, 10, 1, 0), (10, 40, 1, 10), (4, 10, 2, 4), (14, 10, 2, 14)]);
        assert_eq!(log, (vec![(0, 0, 4), (2, 4, 14), (3, 14, 24)], vec![], vec![1]));
    }

    #[test]
    fn after_a_power_cut_positions_jump() {
        let log = read_back(&[(0, 10, 1, 0), (10, 40, 1, 10), (1000, 10, 2, 7)]);
        assert_eq!(log, (vec![(0, 0, 7), (2, 1000, 1010)], vec![], vec![1]));
        let again = read_back(&[(0, 10, 1, 0), (1000, 10, 2, 7), (2000, 10, 3, 7)]);
        assert_eq!(again, (vec![(0, 0, 7), (2, 2000, 2010)], vec![], vec![1]), "the run of epoch 2 kept nothing");
    }

    #[test]
    fn a_segment_that_is_not_there_is_a_hole() {
        let log = read_back(&[(0, 10, 1, 0), (50, 40, 1, 50)]);
        assert_eq!(log, (vec![(0, 0, 10), (1, 50, 90)], vec![(10, 50)], vec![]));
        assert_eq!(read_back(&[(50, 40, 1, 50)]), (vec![(0, 50, 90)], vec![(0, 50)], vec![]));
    }
}
