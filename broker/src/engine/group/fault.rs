//! Defects planted in the handing out of queues, so that the simulator can prove that it would notice them. None by default.

use crate::engine::Engine;

/// A planted defect: each breaks one promise of how a queue goes from member to member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlantedInGroups {
    /// An owner takes an assignment in whatever its number.
    TakeOlderAssignment,
    /// An owner that is told of a newer assignment while it follows one leaves out the queues that it has followed that in.
    WalkOnOnly,
    /// An owner goes on handing out a queue that it has not looked at since it was told of an assignment.
    HandOutBehind,
    /// A queue goes on to the next member while messages are unacknowledged and the old one is there.
    HandOnUndrained,
    /// Where a group began is not kept until the log says it.
    BeginAnew,
    /// A drain never ends by itself.
    DrainForever,
    /// What was handed out before comes again as if for the first time.
    ForgetAttempts,
}

impl PlantedInGroups {
    pub const ALL: [Self; 7] = [
        Self::TakeOlderAssignment,
        Self::WalkOnOnly,
        Self::HandOutBehind,
        Self::HandOnUndrained,
        Self::BeginAnew,
        Self::DrainForever,
        Self::ForgetAttempts,
    ];

    /// The word of the simulator's command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::TakeOlderAssignment => "take-older-assignment",
            Self::WalkOnOnly => "walk-on-only",
            Self::HandOutBehind => "hand-out-behind",
            Self::HandOnUndrained => "hand-on-undrained",
            Self::BeginAnew => "begin-anew",
            Self::DrainForever => "drain-forever",
            Self::ForgetAttempts => "forget-attempts",
        }
    }
}

impl Engine {
    pub fn plant(&mut self, planted: Option<PlantedInGroups>) {
        self.holders.planted = planted;
    }
}
