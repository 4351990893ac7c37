//! `simulate --seeds FROM..TO`: runs a simulator over a range of seeds and says how many broke a promise.
//!
//! Ends with `N seeds, V violations`; the exit code is 1 where V is not 0. A failing seed prints the command that replays it.

use std::fmt::Display;
use std::panic;
use std::process::ExitCode;
use std::time::Instant;

use peregrine_broker::control::logging::{Log, LogSettings};
use peregrine_tests::{network_simulator, simulator};

const USAGE: &str = "usage: scripts/simulate [--network] --seeds FROM..TO [--fault NAME] [--verbose]
  --network  the whole broker, with clients behind a simulated network; without it log, engine and groups, which is faster
  FROM..TO   without TO; FROM..=TO with it; one number is that seed alone
  --fault    plants a defect that must be found: ";

struct Arguments {
    network: bool,
    from: u64,
    to: u64,
    fault: Option<String>,
    verbose: bool,
}

fn main() -> ExitCode {
    let ran = parse(std::env::args().skip(1)).and_then(|arguments| {
        // What the broker says goes to standard error, between the events.
        let filter = if arguments.verbose { "info" } else { "off" };
        let _log = Log::start(&LogSettings { filter: filter.to_owned(), json: false });
        if !arguments.verbose {
            // A panic is a violation like any other and is told with its seed.
            panic::set_hook(Box::new(|_| {}));
        }
        if arguments.network { network(&arguments) } else { log_and_groups(&arguments) }
    });
    ran.unwrap_or_else(|sentence| {
        let here: Vec<&str> = simulator::Fault::all().map(simulator::Fault::word).collect();
        let there: Vec<&str> = network_simulator::Fault::all().map(network_simulator::Fault::word).collect();
        eprintln!("{sentence}\n{USAGE}{}; with --network {}", here.join(", "), there.join(", "));
        ExitCode::from(2)
    })
}

fn log_and_groups(arguments: &Arguments) -> Result<ExitCode, String> {
    let planted = find(arguments, simulator::Fault::all(), simulator::Fault::word)?;
    let mut totals = simulator::Statistics::default();
    let violations = campaign(arguments, |seed| {
        let outcome = simulator::run(seed, planted, arguments.verbose);
        totals.add(&outcome.statistics);
        outcome.violation
    });
    Ok(close(arguments, violations, &totals))
}

fn network(arguments: &Arguments) -> Result<ExitCode, String> {
    let planted = find(arguments, network_simulator::Fault::all(), network_simulator::Fault::word)?;
    let mut totals = network_simulator::Statistics::default();
    let violations = campaign(arguments, |seed| {
        let outcome = network_simulator::run(seed, planted, arguments.verbose);
        totals.add(&outcome.statistics);
        outcome.violation
    });
    Ok(close(arguments, violations, &totals))
}

/// The fault of that name among those that the simulator can plant.
fn find<F: Copy>(
    arguments: &Arguments,
    mut all: impl Iterator<Item = F>,
    word: impl Fn(F) -> &'static str,
) -> Result<Option<F>, String> {
    let Some(name) = &arguments.fault else { return Ok(None) };
    all.find(|&fault| word(fault) == name).map(Some).ok_or(format!("there is no fault {name:?}"))
}

/// How many seeds broke a promise.
fn campaign(arguments: &Arguments, mut run: impl FnMut(u64) -> Option<simulator::Violation>) -> u64 {
    let began = Instant::now();
    let mut violations = 0_u64;
    for seed in arguments.from..arguments.to {
        if let Some(violation) = run(seed) {
            violations += 1;
            let network = if arguments.network { "--network " } else { "" };
            let fault = arguments.fault.as_ref().map_or(String::new(), |name| format!(" --fault {name}"));
            println!(
                "seed {seed}: {violation}\n  replay: scripts/simulate {network}--seeds {seed}..={seed}{fault} --verbose"
            );
        }
    }
    let seeds = (arguments.to - arguments.from).max(1);
    let seconds = began.elapsed().as_secs_f64();
    println!("{seconds:.1} s, {:.1} ms a seed", seconds * 1e3 / seeds as f64);
    violations
}

fn close(arguments: &Arguments, violations: u64, totals: &impl Display) -> ExitCode {
    println!("{totals}");
    println!("{} seeds, {violations} violations", arguments.to - arguments.from);
    ExitCode::from(u8::from(violations > 0))
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments { network: false, from: 0, to: 0, fault: None, verbose: false };
    let mut ranged = false;
    while let Some(word) = words.next() {
        match word.as_str() {
            "--network" => arguments.network = true,
            "--seeds" => {
                let range = words.next().ok_or("--seeds wants a range")?;
                (arguments.from, arguments.to) =
                    parse_range(&range).ok_or(format!("{range:?} is no range of seeds"))?;
                ranged = true;
            }
            "--fault" => arguments.fault = Some(words.next().ok_or("--fault wants a name")?),
            "--verbose" => arguments.verbose = true,
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    if ranged { Ok(arguments) } else { Err("--seeds is missing".to_owned()) }
}

fn parse_range(range: &str) -> Option<(u64, u64)> {
    if let Some((from, last)) = range.split_once("..=") {
        return Some((from.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?));
    }
    if let Some((from, to)) = range.split_once("..") {
        return Some((from.parse().ok()?, to.parse().ok()?)).filter(|(from, to)| from < to);
    }
    let seed: u64 = range.parse().ok()?;
    Some((seed, seed.checked_add(1)?))
}
