//! A promise of DESIGN.md that a simulation saw broken: the sentence that the seed's report ends with.

use std::fmt;

/// What was promised and did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns with a [`Violation`] unless the condition holds.
macro_rules! promise {
    ($holds:expr, $($sentence:tt)+) => {
        if !$holds {
            return Err($crate::simulator::Violation(format!($($sentence)+)));
        }
    };
}
pub(crate) use promise;
