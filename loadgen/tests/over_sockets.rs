//! The generator's connections against a broker that keeps nothing: whole runs over real sockets, refusals, and the proof
//! that a generator thread allocates nothing while its load runs.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

mod null_broker;

use std::sync::Arc;

use clap::Parser;
use peregrine_allocations::of_this_thread;
use peregrine_loadgen::cli::{Cli, Command, RunArgs};
use peregrine_loadgen::clock::{Clock, MILLISECOND, SECOND};
use peregrine_loadgen::content::Content;
use peregrine_loadgen::generator::{Generator, Idle};
use peregrine_loadgen::run::run;
use peregrine_loadgen::schedule::Schedule;
use peregrine_loadgen::wire::{Control, Topics, Wire, listening_of_thread};
use peregrine_loadgen::workload::Workload;

fn arguments(broker: &str, more: &str) -> RunArgs {
    let line = format!(
        "peregrine-loadgen run --broker {broker} --floor-duration 0 --duration 500ms --warmup 200ms --drain 5s {more}"
    );
    let Command::Run(arguments) = Cli::parse_from(line.split_whitespace()).command else { panic!("not a run") };
    arguments
}

#[test]
fn a_run_over_sockets_accounts_for_every_message() {
    let broker = null_broker::start(2, None);
    let report =
        run(&arguments(&broker, "--rate 3000 --size 500 --producers 3 --topics 2 --queues 3"), "test").unwrap();
    assert_eq!((report.sent, report.acknowledged, report.delivered), (2_100, 2_100, 2_100), "{}", report.table());
    assert!(report.is_sound(), "{}", report.table());
    assert_eq!((report.latency_us.end_to_end.count(), report.latency_us.end_to_end.infinite()), (1_500, 0));
}

#[test]
fn a_refused_message_is_sent_again_and_those_behind_it_follow_in_order() {
    let broker = null_broker::start(1, Some(7));
    let report = run(&arguments(&broker, "--rate 5000 --size 100 --queues 2 --producers 2"), "test").unwrap();
    assert_eq!((report.acknowledged, report.delivered), (3_500, 3_500), "{}", report.table());
    assert!(report.is_sound() && report.retried >= 4, "{}", report.table());
}

#[test]
fn a_run_without_consumers_measures_acknowledgements_alone() {
    let broker = null_broker::start(1, None);
    let report = run(&arguments(&broker, "--rate 1000 --size 100 --consumers 0"), "test").unwrap();
    assert_eq!((report.acknowledged, report.delivered, report.lost), (700, 0, 0));
    assert_eq!(report.latency_us.end_to_end.count(), 0);
}

#[test]
fn a_generator_thread_allocates_nothing_while_the_load_runs() {
    let broker = null_broker::start(1, Some(3));
    let load = arguments(&broker, "--rate 1 --size 1024 --queues 4").load;
    let clock = Clock::start();
    let topics = Topics::create(&mut Control::connect(&broker).unwrap(), "t", 1, load.topics, load.queues).unwrap();
    let wire = Wire::connect(&load, &topics, None, clock, (0, 1)).unwrap();
    let start = clock.now() + 10 * MILLISECOND;
    let schedule = Schedule { rate: 4_000, warmup: 0, duration: SECOND, producers: 2, queues: 4, start };
    let workload = Arc::new(Workload { run: 1, size: load.size, schedule, content: Content::random(1) });
    let listening = listening_of_thread(&load, 0, 1);
    let generator = Generator::new(wire, clock, Idle::Sleep, &workload, (0, 1), &listening, 5 * SECOND);
    let (outcome, allocations) = of_this_thread(|| generator.run());
    assert!(outcome.failure.is_none(), "{:?}", outcome.failure);
    assert_eq!((outcome.tally.acknowledged(), outcome.tally.delivered()), (4_000, 4_000));
    assert_eq!(allocations, 0, "4,000 messages were sent and received");
}
