//! A run from its arguments to its report.
//!
//! ```text
//!   learn the broker ─► floors ─► make topics and groups ─► connect, subscribe ─► load ─► delete them ─► floors ─► report
//! ```
//!
//! Everything that may block or allocate is done before the load's first message is due; its threads only meet again
//! when all of them are done.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::cli::{LoadArgs, ReplayArgs, RunArgs};
use crate::clock::{Clock, MILLISECOND, Ns, SECOND};
use crate::content::Content;
use crate::cores::{self, Cores};
use crate::floor::{Floors, Ground, echo::EchoProcess};
use crate::generator::{Generator, Idle};
use crate::report::{self, GeneratorFacts, Metrics, Report, Shape, Throughput};
use crate::schedule::{MESSAGES_MAX, Schedule};
use crate::tally::Tally;
use crate::transport::TransportError;
use crate::wire::{self, BrokerFacts, Control, Groups, Replay, Replayed, Topics, Wire};
use crate::workload::Workload;

/// Between the last connection's being ready and the first due instant.
const START_AFTER: Ns = 100 * MILLISECOND;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The arguments contradict each other or the broker.
    #[error("{0}")]
    Arguments(String),
    /// The broker could not be reached, or refused what a run needs.
    #[error("{0}")]
    Broker(#[from] TransportError),
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// A broker that runs can be made against.
#[derive(Debug)]
struct Bench {
    load: LoadArgs,
    content: Content,
    clock: Clock,
    facts: BrokerFacts,
    cores: Cores,
}

/// What the load itself brought.
struct Loaded {
    tally: Tally,
    /// Names of the groups, by number.
    groups: Vec<String>,
    failure: Option<String>,
    flushes_per_s: Option<f64>,
    replayed_mib_per_s: Option<f64>,
}

/// One run with its floors.
pub fn run(args: &RunArgs, command: &str) -> Result<Report, RunError> {
    let bench = Bench::open(&args.load)?;
    let ground = bench.ground(args);
    let mut floors = Floors::default();
    // Before the load the flush rate is not known; group commit makes it at most one per message, and `memory` asks for
    // one per millisecond.
    let guessed = if args.load.level == crate::cli::Level::Memory { args.rate.min(1_000) } else { args.rate };
    floors.take(&ground, guessed);
    let loaded = bench.load(args.rate)?;
    floors.take(&ground, loaded.flushes_per_s.map_or(guessed, |rate| rate as u64));
    Ok(bench.report(args.rate, loaded, floors, command))
}

/// One run without floors, as a search for the highest rate needs many.
pub fn probe(load: &LoadArgs, rate: u64, command: &str) -> Result<Report, RunError> {
    let bench = Bench::open(load)?;
    let loaded = bench.load(rate)?;
    Ok(bench.report(rate, loaded, Floors::default(), command))
}

/// A replay without any load beside it: what it achieves alone, in MiB a second.
pub fn replay(args: &ReplayArgs) -> Result<f64, RunError> {
    let facts = Control::connect(&args.broker)?.facts()?;
    let cores = Cores::choose(&args.cores, &cores::allowed(), &facts.cores, 1);
    let (clock, replayed) = (Clock::start(), Arc::new(Replayed::default()));
    let replay = Replay::connect(&args.broker, &args.topic, clock, Arc::clone(&replayed))?;
    let deadline = clock.now() + ns(args.duration);
    let outcome = cores.run([replay], |mut replay| {
        while clock.now() < deadline {
            replay.turn()?;
        }
        Ok::<_, TransportError>(())
    });
    outcome.into_iter().collect::<Result<(), _>>()?;
    Ok(replayed.mib_per_s())
}

impl Bench {
    fn open(load: &LoadArgs) -> Result<Self, RunError> {
        load.check().map_err(RunError::Arguments)?;
        let content = match &load.payload {
            None => Content::random(1),
            Some(path) => Content::from_file(path).map_err(|source| RunError::File { path: path.clone(), source })?,
        };
        let facts = Control::connect(&load.broker)?.facts()?;
        if load.size as u64 + wire::RECORD_OVERHEAD > u64::from(facts.message_max) {
            let (size, max) = (load.size, facts.message_max);
            return Err(RunError::Arguments(format!("--size {size}: the broker takes messages up to {max} bytes")));
        }
        if let Some(core) = load.cores.iter().find(|core| !cores::allowed().contains(core)) {
            return Err(RunError::Arguments(format!("--cores {core}: this process may not use that core")));
        }
        // A group's members share a thread.
        let consumers = if load.groups > 0 { load.groups } else { load.consumers };
        let threads_max = load.producers.max(consumers) as usize;
        let cores = Cores::choose(&load.cores, &cores::allowed(), &facts.cores, threads_max);
        Ok(Self { load: load.clone(), content, clock: Clock::start(), facts, cores })
    }

    fn ground(&self, args: &RunArgs) -> Ground {
        Ground {
            clock: self.clock,
            cores: self.cores.clone(),
            span: ns(args.floor_duration),
            rate: args.rate,
            producers: self.load.producers,
            frame: wire::produce_frame_len(self.load.size),
            binary: EchoProcess::binary(args.broker_binary.as_deref()),
            core: self.facts.cores.first().copied(),
            policy: self.facts.idle.clone(),
            data: args.data.clone().or_else(|| self.facts.data_dir.clone()),
        }
    }

    /// Makes topics and groups, runs the load, deletes them.
    fn load(&self, rate: u64) -> Result<Loaded, RunError> {
        let run = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), self.clock.now());
        let mut control = Control::connect(&self.load.broker)?;
        let topics = Topics::create(&mut control, &self.load.topic_prefix, run, self.load.topics, self.load.queues)?;
        let groups = match self.load.groups {
            0 => None,
            count => Some(Groups::create(&mut control, &self.load.topic_prefix, run, count, &topics)?),
        };
        let loaded = self.load_topics(rate, run, &topics, groups.as_ref());
        if !self.load.keep_topics {
            // The connection may have idled too long, or the broker have gone; the load's own outcome matters more.
            let deleted = Control::connect(&self.load.broker).and_then(|mut control| {
                groups.map_or(Ok(()), |groups| groups.delete(&mut control))?;
                topics.delete(&mut control)
            });
            if loaded.as_ref().is_ok_and(|loaded| loaded.failure.is_none()) {
                deleted?;
            }
        }
        loaded
    }

    fn load_topics(&self, rate: u64, run: u64, topics: &Topics, groups: Option<&Groups>) -> Result<Loaded, RunError> {
        let threads = self.cores.threads();
        let mut wires = Vec::new();
        for thread in 0..threads {
            wires.push((thread, Wire::connect(&self.load, topics, groups, self.clock, (thread, threads))?));
        }
        for (_, wire) in &mut wires {
            wire.settle()?;
        }
        let replayed = Arc::new(Replayed::default());
        if let (Some(topic), Some((_, wire))) = (&self.load.replay, wires.first_mut()) {
            wire.replay(Replay::connect(&self.load.broker, topic, self.clock, Arc::clone(&replayed))?);
        }
        let flushes_before = Control::connect(&self.load.broker)?.facts()?.flushes;
        let started = self.clock.now();
        let schedule = Schedule {
            rate,
            warmup: ns(self.load.warmup),
            duration: ns(self.load.duration),
            producers: self.load.producers,
            queues: self.load.topics * self.load.queues,
            start: started + START_AFTER,
        };
        if (ns(self.load.warmup) + ns(self.load.duration)) / SECOND + 1 > MESSAGES_MAX / rate {
            return Err(RunError::Arguments("the run has too many messages".to_owned()));
        }
        let workload = Workload { run, size: self.load.size, schedule, content: self.content.clone() };
        let workload = Arc::new(workload);
        let drain = ns(self.load.drain);
        let (warmup, span) = (self.load.warmup.as_secs_f64(), self.load.duration.as_secs_f64());
        eprintln!("load: {rate} messages/s, {warmup} s to warm up, then {span} s measured");
        let outcomes = self.cores.run(wires, |(thread, wire)| {
            let listening = wire::listening_of_thread(&self.load, thread, threads);
            let part = (thread, threads);
            Generator::new(wire, self.clock, self.cores.idle, &workload, part, &listening, drain).run()
        });
        let all = wire::listening_of_thread(&self.load, 0, 1);
        let mut tally = Tally::new(run, &workload.schedule, &all);
        let mut failure = None;
        for outcome in outcomes {
            tally.merge(&outcome.tally);
            failure = failure.or(outcome.failure.map(|error| error.to_string()));
        }
        tally.close(self.load.consumers > 0);
        let seconds = (self.clock.now() - started) as f64 / SECOND as f64;
        let after = Control::connect(&self.load.broker).and_then(|mut control| control.facts()).ok();
        let flushes = flushes_before.zip(after.and_then(|facts| facts.flushes));
        let flushes_per_s = flushes.map(|(before, after)| after.saturating_sub(before) as f64 / seconds);
        let groups = groups.map_or(Vec::new(), |groups| groups.names().map(str::to_owned).collect());
        let replayed_mib_per_s = self.load.replay.as_ref().map(|_| replayed.mib_per_s());
        Ok(Loaded { tally, groups, failure, flushes_per_s, replayed_mib_per_s })
    }

    fn report(&self, rate: u64, loaded: Loaded, floors: Floors, command: &str) -> Report {
        let load = &self.load;
        let payload = load.payload.as_ref().map_or("random".to_owned(), |path| path.display().to_string());
        let mut notes = floors.notes;
        if self.cores.idle == Idle::Sleep {
            notes.push("no core is free of shards: the generator sleeps instead of spinning (shared cores)".to_owned());
        }
        let metrics =
            Metrics { echo_floor: floors.echo, flush_floor: floors.flush, hiccup: floors.hiccup, ..Metrics::default() };
        let mut report = Report {
            level: load.level.name().to_owned(),
            rate,
            size: load.size,
            shards: self.facts.shards,
            latency_us: metrics,
            throughput: Throughput {
                flushes_per_s: loaded.flushes_per_s,
                replayed_mib_per_s: loaded.replayed_mib_per_s,
                ..Throughput::default()
            },
            shape: Shape {
                warmup_s: load.warmup.as_secs_f64(),
                duration_s: load.duration.as_secs_f64(),
                topics: load.topics,
                queues: load.queues,
                producers: load.producers,
                consumers: load.consumers,
                groups: load.groups,
                payload,
            },
            generator: GeneratorFacts {
                cores: self.cores.pinned.clone(),
                idle: if self.cores.idle == Idle::Spin { "spin" } else { "sleep" },
                shared_cores: self.cores.idle == Idle::Sleep,
            },
            broker_idle: Some(self.facts.idle.clone()),
            notes,
            machine: report::machine(),
            command: command.to_owned(),
            ..Report::default()
        };
        report.take_groups(&loaded.tally, &loaded.groups);
        report.take(loaded.tally, ns(load.duration), loaded.failure);
        report
    }
}

fn ns(duration: Duration) -> Ns {
    duration.as_nanos() as Ns
}
