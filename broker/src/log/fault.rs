//! Switches for tests: ways to hold, fail and stop the log, and faults that break it on purpose so that the simulator can
//! prove that it would notice. Shared by clones, so that a test flips them while the log runs. All off by default; the cost
//! on a message's path is one load of a cell per flush.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A defect planted in the log: each breaks one invariant of DESIGN.md and must be caught by the simulator's oracle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Planted {
    /// Durable moves when a write is issued, not when it has returned.
    AcknowledgeBeforeWrite,
    /// A flush writes the block before its own once more.
    RewriteSyncedBlock,
    /// Recovery reads a segment on beyond the previous end that its successor states.
    ReadPastCut,
    /// Recovery without a ring syncs only the segment that it wrote itself.
    SyncOnlyWritten,
    /// Recovery takes a ring whose epoch is lower than the newest segment's.
    IgnoreRingEpoch,
    /// Recovery goes on in the newest file instead of a fresh one.
    RecoverIntoOldFile,
    /// Recovery without a ring goes on right behind the cut.
    UsePositionTwice,
    /// A checkpoint counts before the log is durable up to its end.
    CheckpointAheadOfLog,
    /// A segment is retired before two checkpoints know what it said.
    RetireTooEarly,
    /// A retired segment's file is cleared before its new name is durable.
    RecycleTooEarly,
    /// The starts of queues move behind what the oldest segment holds.
    GiveUpTooMuch,
    /// The starts of a topic's queues move behind what is too old for it.
    GiveUpTooYoung,
    /// The index of a sealed segment lacks some of its batches.
    ForgetIndexRow,
    /// A start takes entries whose headers are sound, whatever their payloads' checksums say.
    SkipChecksum,
    /// A start takes sections of checkpoints whatever their checksums say.
    SkipCheckpointChecksum,
    /// Marks are counted and not written.
    ForgetMark,
    /// The mark that closes an epoch is not written.
    ForgetClosingMark,
}

impl Planted {
    pub const ALL: [Self; 17] = [
        Self::AcknowledgeBeforeWrite,
        Self::RewriteSyncedBlock,
        Self::ReadPastCut,
        Self::SyncOnlyWritten,
        Self::IgnoreRingEpoch,
        Self::RecoverIntoOldFile,
        Self::UsePositionTwice,
        Self::CheckpointAheadOfLog,
        Self::RetireTooEarly,
        Self::RecycleTooEarly,
        Self::GiveUpTooMuch,
        Self::GiveUpTooYoung,
        Self::ForgetIndexRow,
        Self::SkipChecksum,
        Self::SkipCheckpointChecksum,
        Self::ForgetMark,
        Self::ForgetClosingMark,
    ];

    /// The word of the simulator's command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::AcknowledgeBeforeWrite => "acknowledge-before-write",
            Self::RewriteSyncedBlock => "rewrite-synced-block",
            Self::ReadPastCut => "read-past-cut",
            Self::SyncOnlyWritten => "sync-only-written",
            Self::IgnoreRingEpoch => "ignore-ring-epoch",
            Self::RecoverIntoOldFile => "recover-into-old-file",
            Self::UsePositionTwice => "use-position-twice",
            Self::CheckpointAheadOfLog => "checkpoint-ahead-of-log",
            Self::RetireTooEarly => "retire-too-early",
            Self::RecycleTooEarly => "recycle-too-early",
            Self::GiveUpTooMuch => "give-up-too-much",
            Self::GiveUpTooYoung => "give-up-too-young",
            Self::ForgetIndexRow => "forget-index-row",
            Self::SkipChecksum => "skip-checksum",
            Self::SkipCheckpointChecksum => "skip-checkpoint-checksum",
            Self::ForgetMark => "forget-mark",
            Self::ForgetClosingMark => "forget-closing-mark",
        }
    }
}

/// Points of a start behind which a test may stop it; the order is the order in time. The numbers are those that
/// `--test-fault kill-after-step=N` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RecoveryStep {
    /// Segments, marks and the ring that is due were found.
    Surveyed = 1,
    /// The cut is known and everything below and in the ring was replayed.
    Cut = 2,
    /// Temporary files and spares of earlier processes are gone, and durably so.
    Cleaned = 3,
    /// The configured ring file exists.
    RingMade = 4,
    /// What was read without a ring is durable.
    Synced = 5,
    /// The fresh segment is whole and synced under its temporary name.
    FreshWritten = 6,
    /// It has its name.
    Renamed = 7,
    /// Its name is durable.
    DirectorySynced = 8,
    /// The ring's magic is zero: its old contents no longer count.
    RingCleared = 9,
    /// The ring is set up.
    RingReady = 10,
    /// What the chain leaves out is gone.
    Finished = 11,
}

impl RecoveryStep {
    pub const ALL: [Self; 11] = [
        Self::Surveyed,
        Self::Cut,
        Self::Cleaned,
        Self::RingMade,
        Self::Synced,
        Self::FreshWritten,
        Self::Renamed,
        Self::DirectorySynced,
        Self::RingCleared,
        Self::RingReady,
        Self::Finished,
    ];
}

type AfterStep = Box<dyn FnMut(RecoveryStep)>;

#[derive(Default)]
struct Switches {
    hold_flushes: Cell<bool>,
    hold_flushes_while: Cell<Option<&'static AtomicBool>>,
    hold_write: Cell<Option<u64>>,
    fail_write: Cell<Option<u64>>,
    panic_at_write: Cell<Option<u64>>,
    planted: Cell<Option<Planted>>,
    after_step: RefCell<Option<AfterStep>>,
}

/// The switches of one log. Clones share them.
#[derive(Clone, Default)]
pub struct Faults(Rc<Switches>);

impl Faults {
    /// While true, no flush is issued: everything stays in the ring until that is full.
    pub fn hold_flushes(&self, hold: bool) {
        self.0.hold_flushes.set(hold);
    }

    /// The same for as long as `held` is true; another thread may change it.
    pub fn hold_flushes_while(&self, held: &'static AtomicBool) {
        self.0.hold_flushes_while.set(Some(held));
    }

    /// The n-th write of a run (from 1) is not handed out until this is called with `None`. It counts as in flight.
    pub fn hold_write(&self, n: Option<u64>) {
        self.0.hold_write.set(n);
    }

    /// The n-th write of a run (from 1) fails without being issued.
    pub fn fail_write(&self, n: Option<u64>) {
        self.0.fail_write.set(n);
    }

    /// The log panics where it is about to issue the n-th write of a run (from 1), as a bug in it would.
    pub fn panic_at_write(&self, n: Option<u64>) {
        self.0.panic_at_write.set(n);
    }

    pub fn plant(&self, planted: Option<Planted>) {
        self.0.planted.set(planted);
    }

    /// Called after each step of a start. It may abort the process, or unwind.
    pub fn after_step(&self, call: impl FnMut(RecoveryStep) + 'static) {
        *self.0.after_step.borrow_mut() = Some(Box::new(call));
    }

    pub(super) fn flushes_held(&self) -> bool {
        self.0.hold_flushes.get() || self.0.hold_flushes_while.get().is_some_and(|held| held.load(Ordering::Relaxed))
    }

    pub(super) fn is_held(&self, write: u64) -> bool {
        self.0.hold_write.get() == Some(write)
    }

    pub(super) fn fails(&self, write: u64) -> bool {
        self.0.fail_write.get() == Some(write)
    }

    pub(super) fn panic_if_at(&self, write: u64) {
        assert!(self.0.panic_at_write.get() != Some(write), "a test asked for a panic at write {write}");
    }

    pub(super) fn has(&self, planted: Planted) -> bool {
        self.0.planted.get() == Some(planted)
    }

    pub(super) fn reached(&self, step: RecoveryStep) {
        // Taken out for the call, which may set a switch or unwind.
        let call = self.0.after_step.borrow_mut().take();
        if let Some(mut call) = call {
            call(step);
            self.0.after_step.borrow_mut().get_or_insert(call);
        }
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults")
            .field("hold_flushes", &self.0.hold_flushes)
            .field("hold_write", &self.0.hold_write)
            .field("fail_write", &self.0.fail_write)
            .field("panic_at_write", &self.0.panic_at_write)
            .field("planted", &self.0.planted)
            .finish_non_exhaustive()
    }
}
