//! Defects that are planted to prove that the oracles would notice: in the log, in the engine, and in what stands between them.

use peregrine_broker::engine::PlantedInGroups;
use peregrine_broker::log::fault::Planted;

/// A planted defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Log(Planted),
    Groups(PlantedInGroups),
    /// A shard takes acknowledgements and resets into its state before it appends them, whether or not the log takes them.
    ApplyAcksFirst,
    /// A shard answers acknowledgements before the log has reached their level.
    AnswerAcksEarly,
}

impl Fault {
    pub fn all() -> impl Iterator<Item = Self> {
        let log = Planted::ALL.into_iter().map(Self::Log);
        let groups = PlantedInGroups::ALL.into_iter().map(Self::Groups);
        log.chain(groups).chain([Self::ApplyAcksFirst, Self::AnswerAcksEarly])
    }

    /// The word of the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Log(planted) => planted.word(),
            Self::Groups(planted) => planted.word(),
            Self::ApplyAcksFirst => "apply-acks-first",
            Self::AnswerAcksEarly => "answer-acks-early",
        }
    }

    pub fn in_log(self) -> Option<Planted> {
        if let Self::Log(planted) = self { Some(planted) } else { None }
    }

    pub fn in_groups(self) -> Option<PlantedInGroups> {
        if let Self::Groups(planted) = self { Some(planted) } else { None }
    }
}
