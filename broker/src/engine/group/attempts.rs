//! How often the messages of a queue that a group has not acknowledged were handed out before.
//!
//! A queue is handed out from the group's place on, as far as credit goes, again and again until what was handed out is
//! acknowledged. What lies closer to the place was therefore handed out at least as often as what lies behind it:
//!
//! ```text
//!  place                12            20                    31
//!    │   three times     │    twice    │        once         │   never
//! ```
//!
//! Not durable: after a start the first delivery counts as the first.

use peregrine_protocol::ids::QueueOffset;

use crate::limits::ATTEMPT_STEPS_MAX;

/// Steps downwards: the offset below which messages were handed out so often, ascending; the counts descend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    steps: Vec<(QueueOffset, u16)>,
}

impl Attempts {
    /// How often the message at `offset` was handed out before.
    pub fn before(&self, offset: QueueOffset) -> u16 {
        let step = self.steps.partition_point(|&(end, _)| end <= offset);
        self.steps.get(step).map_or(0, |&(_, count)| count)
    }

    /// All between the group's place and `end` was handed out once more, and comes again.
    pub fn add(&mut self, place: QueueOffset, end: QueueOffset) {
        self.acknowledge(place);
        if place >= end {
            return;
        }
        let at = self.steps.partition_point(|&(step, _)| step < end);
        if self.steps.get(at).is_none_or(|&(step, _)| step != end) {
            let count = self.steps.get(at).map_or(0, |&(_, count)| count);
            self.steps.insert(at, (end, count));
        }
        for (_, count) in &mut self.steps[..=at] {
            *count = count.saturating_add(1);
        }
        // The two furthest become one: it is better to count too few than too many, as the count may end a message's life.
        if self.steps.len() > ATTEMPT_STEPS_MAX {
            let last = self.steps.len() - 1;
            self.steps[last - 1].1 = self.steps[last].1;
            self.steps[last - 1].0 = self.steps[last].0;
            self.steps.pop();
        }
    }

    /// All below `place` is done.
    pub fn acknowledge(&mut self, place: QueueOffset) {
        let done = self.steps.partition_point(|&(end, _)| end <= place);
        self.steps.drain(..done);
    }

    pub fn clear(&mut self) {
        self.steps = Vec::new();
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_what_a_plain_list_counts(turns in prop::collection::vec((0u64..5, 0u64..12), 0..40)) {
            let mut attempts = Attempts::default();
            let mut plain = [0u16; 300];
            let (mut place, mut exact) = (0, true);
            for (acknowledged, handed_out) in turns {
                place += acknowledged;
                let end = place + handed_out;
                attempts.add(QueueOffset(place), QueueOffset(end));
                for count in &mut plain[place as usize..end as usize] {
                    *count += 1;
                }
                exact &= attempts.steps.len() < ATTEMPT_STEPS_MAX;
                for offset in place..300 {
                    let (found, right) = (attempts.before(QueueOffset(offset)), plain[offset as usize]);
                    prop_assert!(found == right || !exact && (1..right).contains(&found), "{offset}: {found}, not {right}");
                }
            }
            attempts.acknowledge(QueueOffset(300));
            prop_assert!(attempts.is_empty());
        }
    }

    #[test]
    fn steps_stay_few() {
        let mut attempts = Attempts::default();
        for end in (1..=100).rev() {
            attempts.add(QueueOffset(0), QueueOffset(end));
        }
        assert_eq!(attempts.steps.len(), ATTEMPT_STEPS_MAX);
        assert_eq!((attempts.before(QueueOffset(0)), attempts.before(QueueOffset(99))), (100, 1));
    }
}
