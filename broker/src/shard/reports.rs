//! Figures of all shards, as JSON, for `peregrine stats`. Off the path of messages: copies are made when somebody asks.

use crate::engine::EngineCounts;
use crate::log::LogCounters;
use crate::log::cache::CacheCounters;
use crate::shard::executor::Executor;
use crate::shard::mesh_messages::Request;
use crate::shard::router::Asker;
use crate::shard::runtime;
use crate::shard::stages::{Stage, Stages};
use crate::shard::state::Shard;
use crate::shard::tickets::Reply;
use hdrhistogram::Histogram;
use peregrine_protocol::ids::{Correlation, ShardId};
use peregrine_protocol::message::{Stats, StatsAnswer};
use serde_json::{Value, json};
use std::rc::Rc;

/// The percentiles of the report.
const PERCENTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999), ("p99.996", 0.99996)];

/// A copy of one shard's figures.
pub struct ShardReport {
    shard: ShardId,
    executor: usize,
    core: usize,
    stages: Stages,
    engine: EngineCounts,
    log: LogCounters,
    cache: CacheCounters,
    sealed_segments: usize,
    indexed_segments: usize,
    epoch: u64,
    published: u64,
    durable: u64,
    marked: u64,
    poisoned: bool,
    disk_full: bool,
    produced_batches: u64,
    produced_records: u64,
    duplicates: u64,
    delivered_batches: u64,
    busy: u64,
    corrupt: u64,
    waiting: usize,
    waiting_for_room: usize,
    executor_figures: ExecutorFigures,
}

/// Figures of the executor that a shard lives on.
#[derive(Clone, Copy)]
struct ExecutorFigures {
    peers: usize,
    receive_bytes: usize,
    accepted: u64,
    handed_over: u64,
    forwarded: u64,
    closed_slow: u64,
    refused_connections: u64,
    mesh_backlog: usize,
    mesh_credit_used: usize,
    mesh_credit_bytes: usize,
    mesh_credit_waiting: usize,
    mesh_gates_waiting: usize,
    mesh_unhandled: usize,
    held: usize,
    mesh_returned: usize,
    busy_elsewhere: u64,
}

/// The figures of this executor's shards.
pub fn local(executor: &Executor) -> Vec<ShardReport> {
    let counters = &executor.counters;
    let figures = ExecutorFigures {
        peers: executor.peers.len(),
        receive_bytes: executor.receive.held(),
        accepted: counters.accepted.get(),
        handed_over: counters.handed_over.get(),
        forwarded: counters.forwarded.get(),
        closed_slow: counters.closed_slow.get(),
        refused_connections: counters.refused_connections.get(),
        mesh_backlog: executor.mesh().backlog(),
        mesh_credit_used: executor.credit_used(),
        mesh_credit_bytes: executor.credit_bytes_used(),
        mesh_credit_waiting: executor.credit_waiting(),
        mesh_gates_waiting: executor.gates_waiting(),
        mesh_unhandled: executor.forwarded_here.get(),
        held: executor.peers.held(),
        mesh_returned: executor.returned(),
        busy_elsewhere: counters.busy_elsewhere.get(),
    };
    executor.local_shards().iter().map(|shard| of(shard, executor, figures)).collect()
}

fn of(shard: &Shard, executor: &Executor, executor_figures: ExecutorFigures) -> ShardReport {
    let core = shard.core.borrow();
    let counters = &shard.counters;
    let (sealed_segments, indexed_segments) = core.log.get().map(|log| log.indexes().counts()).unwrap_or_default();
    ShardReport {
        sealed_segments,
        indexed_segments,
        shard: shard.id,
        executor: executor.index,
        core: executor.facts.core,
        stages: core.stages.clone(),
        engine: core.engine.counts(),
        log: core.log.counters(),
        cache: core.log.get().map(|log| log.reader().cache().counters()).unwrap_or_default(),
        epoch: core.log.epoch().0,
        published: core.log.published().0,
        durable: core.log.durable().0,
        marked: core.log.marked().0,
        poisoned: core.log.is_poisoned(),
        disk_full: core.log.is_disk_full(),
        produced_batches: counters.produced_batches.get(),
        produced_records: counters.produced_records.get(),
        duplicates: counters.duplicates.get(),
        delivered_batches: counters.delivered_batches.get(),
        busy: counters.busy.get(),
        corrupt: counters.corrupt.get(),
        waiting: core.waiting.len(),
        waiting_for_room: shard.waiting_for_room(),
        executor_figures,
    }
}

/// Answers a request for figures, once all executors have sent theirs.
pub fn answer(executor: &Rc<Executor>, asker: Asker, correlation: Correlation, what: Stats) {
    let executor = executor.clone();
    runtime::spawn(async move {
        let mut reports = local(&executor);
        for peer in executor.mesh().peers().collect::<Vec<_>>() {
            let asked = executor.tickets.ask(|ticket| {
                executor.mesh().request(peer, Request::AskReports { ticket });
            });
            if let Some(Reply::Reports(more)) = asked.await {
                reports.extend(more);
            }
        }
        reports.sort_by_key(|report| report.shard);
        let value = match what {
            Stats::Shards => json!({
                "data_dir": executor.facts.data,
                "idle": executor.facts.idle.word(),
                "shards": reports.iter().map(figures).collect::<Vec<_>>(),
            }),
            _ => latency(&reports),
        };
        let text = value.to_string();
        let answer = StatsAnswer { what, json: text.as_bytes() };
        executor.answer(asker, |out| answer.encode(correlation, out));
    })
    .detach();
}

fn latency(reports: &[ShardReport]) -> Value {
    let mut all = Stages::default();
    for report in reports {
        all.add(&report.stages);
    }
    let shards: Vec<Value> =
        reports.iter().map(|report| json!({ "shard": report.shard.0, "stages": stages(&report.stages) })).collect();
    json!({ "stages": stages(&all), "shards": shards })
}

fn stages(stages: &Stages) -> Value {
    let rows: Vec<Value> = Stage::ALL.iter().map(|&stage| row(stage, stages.of(stage))).collect();
    Value::Array(rows)
}

/// One stage: times in microseconds.
fn row(stage: Stage, times: &Histogram<u64>) -> Value {
    let micros = |nanos: u64| (nanos as f64 / 100.0).round() / 10.0;
    let mut row = json!({ "stage": stage.word(), "count": times.len(), "max_us": micros(times.max()) });
    for (name, quantile) in PERCENTILES {
        row[format!("{name}_us")] = json!(micros(times.value_at_quantile(quantile)));
    }
    row
}

fn figures(report: &ShardReport) -> Value {
    let (engine, log, executor) = (&report.engine, &report.log, &report.executor_figures);
    json!({
        "shard": report.shard.0,
        "executor": report.executor,
        "core": report.core,
        "flushes": log.durable_moves,
        "epoch": report.epoch,
        "published": report.published,
        "durable": report.durable,
        "marked": report.marked,
        "poisoned": report.poisoned,
        "disk_full": report.disk_full,
        "topics": engine.topics,
        "groups": engine.groups,
        "group_places": engine.group_places,
        "queues": engine.queues,
        "producers": engine.producers,
        "subscriptions": engine.subscriptions,
        "pending_batches": engine.pending_batches,
        "waiting_acknowledgements": report.waiting,
        "waiting_for_room": report.waiting_for_room,
        "produced_batches": report.produced_batches,
        "produced_messages": report.produced_records,
        "duplicate_batches": report.duplicates,
        "delivered_batches": report.delivered_batches,
        "busy": report.busy,
        "corrupt": report.corrupt,
        "log": {
            "entries": log.entries,
            "payload_bytes": log.payload_bytes,
            "pads": log.pads,
            "writes": log.writes,
            "written_bytes": log.written_bytes,
            "write_amplification": log.write_amplification(),
            "durable_moves": log.durable_moves,
            "marks": log.marks,
            "rolls": log.rolls,
            "sealed_segments": report.sealed_segments,
            "indexed_segments": report.indexed_segments,
            "refused_no_room": log.refused_no_room,
            "refused_disk_full": log.refused_disk_full,
        },
        "scrub": {
            "segments": log.scrubbed_segments,
            "bytes": log.scrubbed_bytes,
            "rounds": log.scrub_rounds,
            "bad_indexes": log.scrub_bad_indexes,
            "unread": log.scrub_unread,
            "damaged": log.scrub_damaged,
        },
        "block_cache": {
            "hits": report.cache.hits,
            "misses": report.cache.misses,
            "joined": report.cache.joined,
            "bytes": report.cache.bytes,
        },
        "executor_figures": figures_of_executor(executor),
    })
}

fn figures_of_executor(executor: &ExecutorFigures) -> Value {
    json!({
        "connections": executor.peers,
        "receive_bytes": executor.receive_bytes,
        "accepted": executor.accepted,
        "handed_over": executor.handed_over,
        "forwarded": executor.forwarded,
        "closed_slow": executor.closed_slow,
        "refused_connections": executor.refused_connections,
        "mesh_backlog": executor.mesh_backlog,
        "mesh_credit_used": executor.mesh_credit_used,
        "mesh_credit_bytes": executor.mesh_credit_bytes,
        "mesh_credit_waiting": executor.mesh_credit_waiting,
        "mesh_gates_waiting": executor.mesh_gates_waiting,
        "mesh_unhandled": executor.mesh_unhandled,
        "held": executor.held,
        "mesh_returned": executor.mesh_returned,
        "busy_elsewhere": executor.busy_elsewhere,
    })
}
