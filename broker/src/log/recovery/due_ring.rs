//! Step 2: the ring that the newest segment's run left, if one is due, and whether it fits. The segment's identity decides
//! which file that is, whatever the configuration says now.

use peregrine_protocol::ids::{Epoch, LogPosition};

use super::survey::Survey;
use super::{RingFate, io_error};
use crate::log::disk::{BLOCK, RingHost, RingMemory};
use crate::log::error::StartError;
use crate::log::fault::Planted;
use crate::log::options::LogOptions;
use crate::log::ring::{PAGE_LEN, PageState, RingPage, RingUnfit};
use crate::log::segment::Identity;

/// What a due ring holds beyond the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingTail {
    /// Bytes of ring.
    pub size: u64,
    pub epoch: Epoch,
    /// The cut.
    pub durable: LogPosition,
    pub published: LogPosition,
}

/// The ring file that the newest identity names, as far as there is one.
pub(super) struct DueRing<M> {
    pub fate: RingFate,
    /// The file, opened and locked, and its path. Also where the ring is not due but was found.
    pub file: Option<(String, M)>,
    /// Set where the fate is `Recovered`.
    pub tail: Option<RingTail>,
}

impl<M: RingMemory> DueRing<M> {
    fn none(fate: RingFate) -> Self {
        Self { fate, file: None, tail: None }
    }

    pub fn find<H: RingHost<Memory = M>>(rings: &H, survey: &Survey, options: &LogOptions) -> Result<Self, StartError> {
        let given_up = |epoch| options.discard_ring == Some(epoch);
        // Damage has been accepted, or there would be no bad segment here.
        if let Some(bad) = survey.bad.iter().map(|bad| bad.name).max()
            && survey.newest().is_none_or(|newest| newest.name() < bad)
        {
            if given_up(bad.epoch) {
                return Ok(Self::none(RingFate::Discarded));
            }
            return Err(unfit(options, bad.epoch, "(unknown)", RingUnfit::Unnamed));
        }
        let Some(newest) = survey.newest() else { return Self::without_log(rings, options) };
        if newest.boot != options.boot {
            return Ok(Self::none(RingFate::OtherBoot));
        }
        let Some(path) = &newest.ring else { return Ok(Self::none(RingFate::Anonymous)) };
        let epoch = newest.epoch;
        if survey.closes(epoch) {
            // A stop that was killed behind its mark leaves the file; held here, it is taken over or unlinked.
            let is_its_own = |memory: &M| match PageState::read(memory.bytes()) {
                Ok(PageState::Ready { page, .. }) => {
                    page.run == newest.run && page.check_owner(&options.directory, options.shard).is_ok()
                }
                _ => false,
            };
            let left = rings.open(path).ok().flatten().filter(is_its_own);
            let file = left.map(|memory| (path.clone(), memory));
            return Ok(Self { fate: RingFate::Closed, file, tail: None });
        }
        let opened = rings.open(path).map_err(io_error(options, || format!("open the staging ring {path}")))?;
        let Some(memory) = opened else {
            if given_up(epoch) {
                return Ok(Self::none(RingFate::Discarded));
            }
            return Err(unfit(options, epoch, path, RingUnfit::Missing));
        };
        let (fate, tail) = if given_up(epoch) {
            (RingFate::Discarded, None)
        } else {
            match Self::judge(memory.bytes(), survey, options, newest) {
                Ok(Some(tail)) => (RingFate::Recovered, Some(tail)),
                Ok(None) => (RingFate::NeverReady, None),
                Err(reason) => return Err(unfit(options, epoch, path, reason)),
            }
        };
        Ok(Self { fate, file: Some((path.clone(), memory)), tail })
    }

    /// There is no segment. Then no ring is due; but a run names its segment before its ring is ready, so that a ready ring of
    /// this very shard tells of a log that was taken away. To start anew would clear what stands only in that ring.
    fn without_log<H: RingHost<Memory = M>>(rings: &H, options: &LogOptions) -> Result<Self, StartError> {
        let Some(path) = &options.ring else { return Ok(Self::none(RingFate::FirstStart)) };
        let opened = rings.open(path).map_err(io_error(options, || format!("open the staging ring {path}")))?;
        match opened.map(|memory| PageState::read(memory.bytes())) {
            Some(Ok(PageState::Ready { page, .. }))
                if page.boot == options.boot && page.check_owner(&options.directory, options.shard).is_ok() =>
            {
                if options.discard_ring == Some(page.epoch) {
                    return Ok(Self::none(RingFate::Discarded));
                }
                Err(unfit(options, page.epoch, path, RingUnfit::LogGone))
            }
            _ => Ok(Self::none(RingFate::FirstStart)),
        }
    }

    /// `None`: the run was never ready, and what came before it was recovered.
    fn judge(
        file: &[u8],
        survey: &Survey,
        options: &LogOptions,
        newest: &Identity,
    ) -> Result<Option<RingTail>, RingUnfit> {
        let PageState::Ready { page, published, durable } = PageState::read(file)? else { return Ok(None) };
        let RingPage { size, .. } = page;
        page.check_owner(&options.directory, options.shard)?;
        let ignores_epoch = options.faults.has(Planted::IgnoreRingEpoch);
        if page.epoch > newest.epoch {
            return Err(RingUnfit::Epoch(page.epoch));
        }
        let is_another_run = page.epoch == newest.epoch && page.run != newest.run;
        if (is_another_run || page.log != newest.log) && !ignores_epoch {
            return Err(RingUnfit::OtherLog);
        }
        if page.epoch < newest.epoch && !ignores_epoch {
            return Ok(None);
        }
        if !size.is_power_of_two() || file.len() as u64 != PAGE_LEN as u64 + size {
            return Err(RingUnfit::Size { file: file.len() as u64, page: size });
        }
        let fits = durable <= published && published - durable <= size && durable.0.is_multiple_of(BLOCK as u64);
        if !fits {
            return Err(RingUnfit::Positions { published, durable, size });
        }
        // Marks and identities never lead both copies of durable: a ring behind them is an older copy of itself.
        let known = survey.durable();
        if durable < known && !ignores_epoch {
            return Err(RingUnfit::Behind { durable, known });
        }
        Ok(Some(RingTail { size, epoch: page.epoch, durable, published }))
    }
}

pub(super) fn unfit(options: &LogOptions, epoch: Epoch, path: &str, reason: RingUnfit) -> StartError {
    StartError::Ring { shard: options.shard, epoch, path: path.to_owned(), reason }
}
