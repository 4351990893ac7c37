//! How much a seed, or a range of them, got to do: a simulation that reaches nothing finds nothing.

/// Makes `Statistics`: counts over a run, each with the words that it is told in.
macro_rules! statistics {
    ($($(#[$doc:meta])* $name:ident: $label:literal,)+) => {
        /// Counts over a run.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Statistics {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl Statistics {
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)+
            }

            /// Each count with what it counts.
            pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$(($label, self.$name)),+].into_iter()
            }
        }

        impl ::std::fmt::Display for Statistics {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                let counts: Vec<String> = self.counts().map(|(label, count)| format!("{count} {label}")).collect();
                f.write_str(&counts.join(", "))
            }
        }
    };
}
pub(crate) use statistics;

statistics! {
    starts: "starts",
    crashed_starts: "crashed while starting",
    failed_starts: "failed by the device",
    /// Operations that the device failed, by what they were.
    failed_lists: "failed lists",
    failed_opens: "failed opens",
    failed_makes: "failed makes",
    failed_renames: "failed renames",
    failed_removes: "failed removes",
    failed_directory_syncs: "failed directory syncs",
    failed_reads: "failed reads",
    failed_extensions: "failed extensions",
    failed_writes: "failed writes",
    failed_syncs: "failed syncs",
    failed_rings: "failed operations on rings",
    failed_full: "failed for want of room",
    short_reads: "short reads",
    short_writes: "short writes",
    happened: "failed and happened all the same",
    mended: "lives in which the devices recovered",
    kills: "kills",
    power_cuts: "power cuts",
    /// Crashes, by what was under way.
    in_flushes: "crashes within flushes",
    in_segments: "within the making of segments",
    in_marks: "within marks",
    in_checkpoints: "within checkpoints",
    in_indexes: "within the making of indexes",
    in_retirements: "within retirements",
    in_starts: "within the first segment of a start",
    clean_stops: "clean stops",
    poisoned: "poisoned logs",
    rolls: "segments rolled",
    checkpoints: "checkpoints",
    restored: "starts from a checkpoint",
    retired: "segments retired",
    recycled: "files of retired segments used again",
    aged: "entries that gave up what was too old for its topic",
    scrubbed: "segments scrubbed",
    too_old: "readers told that their messages are kept no more",
    skipped: "batches handed out behind what groups had not read and is kept no more",
    appended: "entries appended",
    acknowledged: "acknowledged",
    duplicates: "duplicates",
    /// Entries, acknowledged or not, that a start did not find.
    taken_back: "taken back",
    /// Acknowledged at `memory` and lost with the power.
    lost: "lost after an acknowledgement",
    /// Whole in the ring when a kill struck within the append, and found.
    adopted: "found though never answered",
    epochs_raised: "producer epochs raised",
    truncated: "readers told of a cut",
    deleted: "topics deleted",
    seen: "batches seen",
    read_from_disk: "read from disk",
    looked_up: "look-ups in indexes",
    refused: "appends refused",
    damaged: "entries damaged",
    damaged_at_rest: "entries damaged below a checkpoint",
    damaged_given_up: "damaged segments given up",
    /// Tampered with, replaced or removed, and the start refused.
    rings_refused: "bad rings refused",
    rings_given_up: "rings given up",
    identities_refused: "bad identities refused",
    logs_missed: "missing logs refused",
    asked_home: "questions to shard 0",
    groups_deleted: "groups deleted",
    joined: "members joined",
    fenced: "members fenced",
    assignments: "assignments",
    repeated: "assignments repeated",
    slices_left_work: "slices of work on assignments that did not end it",
    beginnings: "beginnings of groups",
    handed_out: "batches handed to members",
    handed_again: "handed out again",
    revoked: "queues revoked",
    overdue_drains: "drains overdue",
    group_acks: "places acknowledged",
    acks_refused: "acknowledgements of places refused",
    resets: "places reset",
    turns_reset: "turns ended by a reset",
    calms: "calms of groups",
    /// Queues of groups that were consumed to their end.
    finished: "queues finished by groups",
}
