//! `simulate --seeds FROM..TO`: runs the simulator over a range of seeds and says how many broke a promise.
//!
//! Ends with `N seeds, V violations`; the exit code is 1 where V is not 0. A failing seed prints the command that replays it.

use std::panic;
use std::process::ExitCode;
use std::time::Instant;

use peregrine_tests::simulator::{self, Fault, Statistics};

const USAGE: &str = "usage: scripts/simulate --seeds FROM..TO [--fault NAME] [--verbose]
  FROM..TO   without TO; FROM..=TO with it; one number is that seed alone
  --fault    plants a defect that must be found: ";

struct Arguments {
    from: u64,
    to: u64,
    planted: Option<Fault>,
    verbose: bool,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(sentence) => {
            let faults: Vec<&str> = Fault::all().map(Fault::word).collect();
            eprintln!("{sentence}\n{USAGE}{}", faults.join(", "));
            return ExitCode::from(2);
        }
    };
    if !arguments.verbose {
        // A panic is a violation like any other and is told with its seed.
        panic::set_hook(Box::new(|_| {}));
    }
    let began = Instant::now();
    let mut violations = 0_u64;
    let mut totals = Statistics::default();
    for seed in arguments.from..arguments.to {
        let outcome = simulator::run(seed, arguments.planted, arguments.verbose);
        totals.add(&outcome.statistics);
        if let Some(violation) = outcome.violation {
            violations += 1;
            let fault = arguments.planted.map_or(String::new(), |planted| format!(" --fault {}", planted.word()));
            println!("seed {seed}: {violation}\n  replay: scripts/simulate --seeds {seed}..={seed}{fault} --verbose");
        }
    }
    let seeds = arguments.to - arguments.from;
    println!("{totals}");
    println!(
        "{:.1} s, {:.1} ms a seed",
        began.elapsed().as_secs_f64(),
        began.elapsed().as_secs_f64() * 1e3 / seeds.max(1) as f64
    );
    println!("{seeds} seeds, {violations} violations");
    ExitCode::from(u8::from(violations > 0))
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments { from: 0, to: 0, planted: None, verbose: false };
    let mut ranged = false;
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seeds" => {
                let range = words.next().ok_or("--seeds wants a range")?;
                (arguments.from, arguments.to) =
                    parse_range(&range).ok_or(format!("{range:?} is no range of seeds"))?;
                ranged = true;
            }
            "--fault" => {
                let name = words.next().ok_or("--fault wants a name")?;
                let planted = Fault::all().find(|planted| planted.word() == name);
                arguments.planted = Some(planted.ok_or(format!("there is no fault {name:?}"))?);
            }
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
