//! What the seeds went through, so that one sees that it happened.

use crate::simulator::statistics;

statistics! {
    lives: "starts",
    crashed_starts: "crashed while starting",
    failed_starts: "failed by the device",
    kills: "kills",
    power_cuts: "power cuts",
    clean_stops: "clean stops",
    connections: "connections",
    disconnections: "lost connections",
    cuts: "cut by the network",
    strangers: "strangers",
    acknowledged: "messages acknowledged",
    duplicates: "acknowledged as duplicates",
    refused: "batches refused for the time being",
    told_lost: "reported lost",
    seen: "messages delivered",
    truncated: "readers told of a cut",
    too_old: "readers told that their messages are kept no more",
    got: "found by id",
    found: "found by key",
    ends: "ends of queues asked for",
    times: "times asked for",
}
