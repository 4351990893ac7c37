//! Where sealed segments begin and end, for whoever goes through the log itself.

use super::LogIndexes;
use crate::log::disk::Disk;
use peregrine_protocol::ids::{LogPosition, Nanos};

impl<D: Disk> LogIndexes<D> {
    /// The end of the sealed segment that holds `position`.
    pub fn sealed_end(&self, position: LogPosition) -> Option<LogPosition> {
        let set = self.0.borrow();
        let sealed = set.segments.get(set.place_behind(position) - set.retired)?;
        (sealed.segment.name.base <= position).then_some(sealed.segment.end)
    }

    /// Where the log goes on if what stands at `position` was given up after damage.
    pub fn given_up_to(&self, position: LogPosition) -> Option<LogPosition> {
        let set = self.0.borrow();
        let sealed = set.segments.get(set.place_behind(position) - set.retired)?;
        sealed.segment.given_up_to(position)
    }

    /// What was stored at `time` or later stands here or behind.
    pub fn begin_of(&self, time: Nanos) -> LogPosition {
        let set = self.0.borrow();
        let place = set.place_at(time) - set.retired;
        set.segments.get(place).map_or(LogPosition(0), |sealed| sealed.segment.name.base)
    }
}
