//! `peregrine`: topics, producing, consuming and statistics from the command line.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
