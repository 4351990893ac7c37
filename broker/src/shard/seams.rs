//! Where tests of this process take hold of an executor: what they hold back, and what they make small. In production all of it is
//! as [`crate::limits`] says.

use crate::control::settings::{Switch, TestFault};
use crate::limits::{ACKNOWLEDGEMENTS_PER_SHARD, ROOM_WITHIN};
use crate::simulated::Scheduler;
use peregrine_protocol::ids::Nanos;
use std::sync::atomic::Ordering;

/// Defects that a simulation plants in an executor, to see that they are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlantedInShards {
    /// Batches are acknowledged as soon as they are in the ring, whatever level they asked for.
    AnswerBatchesEarly,
    /// Where a socket takes a part of what it is given, one byte of the rest is forgotten.
    ForgetUnsentByte,
    /// The answer to a request that another executor sent on is lost.
    LoseForwardedAnswer,
}

impl PlantedInShards {
    pub const ALL: [Self; 3] = [Self::AnswerBatchesEarly, Self::ForgetUnsentByte, Self::LoseForwardedAnswer];

    /// The word of the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::AnswerBatchesEarly => "answer-batches-early",
            Self::ForgetUnsentByte => "forget-unsent-byte",
            Self::LoseForwardedAnswer => "lose-forwarded-answer",
        }
    }
}

/// One executor's.
#[derive(Clone, Copy, Debug)]
pub struct Seams {
    /// What shard 0 tells of the catalogue is not heard here.
    pub misses_news: bool,
    /// Acknowledgements of one shard that may wait.
    pub acknowledgements: usize,
    patient: Option<Switch>,
    forwarded_held: Option<Switch>,
    planted: Option<PlantedInShards>,
}

impl Seams {
    pub fn new(faults: &[TestFault]) -> Self {
        let mut seams = Seams {
            misses_news: false,
            acknowledgements: ACKNOWLEDGEMENTS_PER_SHARD,
            patient: None,
            forwarded_held: None,
            planted: Scheduler::with_here(|scheduler| scheduler.options().planted).flatten(),
        };
        for fault in faults {
            match *fault {
                TestFault::MissNews => seams.misses_news = true,
                TestFault::AcknowledgementPlaces(places) => seams.acknowledgements = places,
                TestFault::PatientWhile(switch) => seams.patient = Some(switch),
                TestFault::HoldForwardedWhile(switch) => seams.forwarded_held = Some(switch),
                _ => {}
            }
        }
        seams
    }

    pub fn has_planted(&self, fault: PlantedInShards) -> bool {
        self.planted == Some(fault)
    }

    /// How long a batch waits for room.
    pub fn room_within(&self) -> Nanos {
        if is_on(self.patient) { Nanos::from_secs(3600) } else { Nanos::from(ROOM_WITHIN) }
    }

    /// Frames from other executors are not handled.
    pub fn holds_forwarded(&self) -> bool {
        is_on(self.forwarded_held)
    }
}

fn is_on(switch: Option<Switch>) -> bool {
    switch.is_some_and(|switch| switch.0.load(Ordering::Relaxed))
}
