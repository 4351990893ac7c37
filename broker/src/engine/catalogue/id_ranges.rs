//! A set of ids kept as ranges: topics and groups that were deleted. Ids are given out in order, so that runs of them are one range each.

use super::object::ObjectId;

/// Ranges `[first, last]`, ascending, neither touching nor overlapping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdRanges {
    ranges: Vec<(u64, u64)>,
}

impl IdRanges {
    pub fn contains(&self, id: ObjectId) -> bool {
        let after = self.ranges.partition_point(|&(first, _)| first <= id.0);
        after > 0 && id.0 <= self.ranges[after - 1].1
    }

    /// Adds one id; one that is there already changes nothing.
    pub fn insert(&mut self, id: ObjectId) {
        let after = self.ranges.partition_point(|&(first, _)| first <= id.0);
        if after > 0 && id.0 <= self.ranges[after - 1].1 {
            return;
        }
        let extends_before = after > 0 && self.ranges[after - 1].1 + 1 == id.0;
        let extends_after = self.ranges.get(after).is_some_and(|&(first, _)| id.0 + 1 == first);
        match (extends_before, extends_after) {
            (true, true) => {
                self.ranges[after - 1].1 = self.ranges[after].1;
                self.ranges.remove(after);
            }
            (true, false) => self.ranges[after - 1].1 = id.0,
            (false, true) => self.ranges[after].0 = id.0,
            (false, false) => self.ranges.insert(after, (id.0, id.0)),
        }
    }

    /// First and last id of each range, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (ObjectId, ObjectId)> + '_ {
        self.ranges.iter().map(|&(first, last)| (ObjectId(first), ObjectId(last)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn holds_what_a_plain_set_holds_in_the_fewest_ranges(ids in prop::collection::vec(1u64..60, 0..80)) {
            let mut ranges = IdRanges::default();
            let mut plain = BTreeSet::new();
            for id in ids {
                ranges.insert(ObjectId(id));
                plain.insert(id);
                for probe in 0..62 {
                    prop_assert_eq!(ranges.contains(ObjectId(probe)), plain.contains(&probe));
                }
                let runs = plain.iter().filter(|&&id| !plain.contains(&(id - 1))).count();
                prop_assert_eq!(ranges.iter().count(), runs);
            }
        }
    }
}
