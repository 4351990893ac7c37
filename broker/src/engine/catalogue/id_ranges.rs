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

    /// Adds the ids from `first` to `last`, which lie above all that are there; false where they do not.
    #[must_use]
    pub fn push(&mut self, first: ObjectId, last: ObjectId) -> bool {
        let end = self.ranges.last().map(|&(_, last)| last);
        if last < first || end.is_some_and(|end| end >= first.0) {
            return false;
        }
        match self.ranges.last_mut() {
            Some((_, end)) if *end + 1 == first.0 => *end = last.0,
            _ => self.ranges.push((first.0, last.0)),
        }
        true
    }

    /// What of each range lies above `id`, ascending.
    pub fn above(&self, id: ObjectId) -> impl Iterator<Item = (ObjectId, ObjectId)> + '_ {
        let from = self.ranges.partition_point(|&(_, last)| last <= id.0);
        self.ranges[from..].iter().map(move |&(first, last)| (ObjectId(first.max(id.0 + 1)), ObjectId(last)))
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
                let above: Vec<_> = ranges.above(ObjectId(id)).flat_map(|(first, last)| first.0..=last.0).collect();
                prop_assert_eq!(above, plain.range(id + 1..).copied().collect::<Vec<_>>());
                let mut pushed = IdRanges::default();
                prop_assert!(ranges.iter().all(|(first, last)| pushed.push(first, last)));
                prop_assert_eq!(&pushed, &ranges);
                prop_assert!(!pushed.push(ObjectId(0), ObjectId(id)));
                let runs = plain.iter().filter(|&&id| !plain.contains(&(id - 1))).count();
                prop_assert_eq!(ranges.iter().count(), runs);
            }
        }
    }
}
