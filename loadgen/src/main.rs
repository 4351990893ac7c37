//! `peregrine-loadgen`: exit code 0 for a valid and sound run, 3 for an INVALID one, 2 where messages were lost, doubled,
//! reordered, damaged or refused, 1 where there was no run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use peregrine_loadgen::cli::{Cli, Command, FindRateArgs, FlushWaysArgs, RunArgs};
use peregrine_loadgen::clock::Clock;
use peregrine_loadgen::find_rate::find_rate;
use peregrine_loadgen::floor::ways::{self, Comparison};
use peregrine_loadgen::markdown;
use peregrine_loadgen::report::Report;
use peregrine_loadgen::run::{RunError, replay, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let command = std::env::args().collect::<Vec<_>>().join(" ");
    let done = match &cli.command {
        Command::Run(args) => run_once(args, &command),
        Command::FindRate(args) => search(args, &command),
        Command::Replay(args) => replay(args).map(|rate| {
            println!("{rate:.1} MiB/s");
            ExitCode::SUCCESS
        }),
        Command::FlushWays(args) => flush_ways(args),
        Command::Table { reports, highest } => table(reports, *highest),
    };
    done.unwrap_or_else(|error| {
        eprintln!("peregrine-loadgen: {error}");
        ExitCode::from(1)
    })
}

fn run_once(args: &RunArgs, command: &str) -> Result<ExitCode, RunError> {
    let report = run(args, command)?;
    print!("{}", report.table());
    if let Some(path) = &args.json {
        written(path, report.write_json(path))?;
    }
    if let Some(prefix) = args.hgrm.clone().or_else(|| args.json.as_ref().map(|path| path.with_extension(""))) {
        written(&prefix, report.write_hgrm(&prefix))?;
    }
    Ok(verdict(&report))
}

fn search(args: &FindRateArgs, command: &str) -> Result<ExitCode, RunError> {
    let progress = |report: &Report| {
        let p99 = report.latency_us.acknowledged.percentile_ns("p99").map_or(f64::INFINITY, |ns| ns as f64 / 1e3);
        let why = report.invalid_because.as_deref().unwrap_or("valid");
        eprintln!("{:>9}/s  acknowledged p99 {p99:>9.1} µs  {why}", report.rate);
    };
    let Some(best) = find_rate(args, command, progress)? else {
        println!("no rate from {}/s on was valid", args.from);
        return Ok(ExitCode::from(3));
    };
    print!("highest valid rate: {} messages/s\n{}", best.rate, best.table());
    if let Some(path) = &args.json {
        written(path, best.write_json(path))?;
    }
    Ok(verdict(&best))
}

fn flush_ways(args: &FlushWaysArgs) -> Result<ExitCode, RunError> {
    let span = u64::try_from(args.duration.as_nanos()).unwrap_or(u64::MAX);
    let comparison = Comparison { rate: args.rate, span, rounds: args.rounds };
    let compared = ways::compare(&args.directory, comparison, Clock::start());
    print!("{}", compared.map_err(|source| RunError::File { path: args.directory.clone(), source })?);
    Ok(ExitCode::SUCCESS)
}

fn table(paths: &[PathBuf], highest: bool) -> Result<ExitCode, RunError> {
    let read = |path: &PathBuf| {
        let text = std::fs::read(path);
        let report = text.and_then(|text| Ok(serde_json::from_slice(&text)?));
        report.map_err(|source| RunError::File { path: path.clone(), source })
    };
    let reports = paths.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    print!("{}", if highest { markdown::highest_rows(&reports) } else { markdown::table(&reports) });
    Ok(ExitCode::SUCCESS)
}

fn verdict(report: &Report) -> ExitCode {
    match (report.is_sound(), report.valid) {
        (false, _) => ExitCode::from(2),
        (true, false) => ExitCode::from(3),
        (true, true) => ExitCode::SUCCESS,
    }
}

fn written(path: &Path, result: std::io::Result<()>) -> Result<(), RunError> {
    result.map_err(|source| RunError::File { path: path.to_owned(), source })
}
