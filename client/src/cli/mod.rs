//! The command line: arguments in, one exit code out. Data goes to stdout; everything said goes to stderr, errors as one sentence.

mod arguments;
mod consume;
mod consume_group;
mod failure;
mod group;
mod message;
mod produce;
mod progress;
mod start;
mod stats;
mod table;
mod topic;

use std::process::ExitCode;

use clap::Parser;

use self::arguments::{Arguments, Command};
use self::failure::Failure;

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    // Sockets are served by a thread of their own, so that a full pipe on stdout never looks like a silent client.
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::from(error).exit(),
    };
    let result = runtime.block_on(execute(arguments));
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.exit(),
    }
}

async fn execute(arguments: Arguments) -> Result<(), Failure> {
    let broker = arguments.broker;
    match arguments.command {
        Command::Topic(command) => topic::run(&broker, command).await,
        Command::Group(command) => group::run(&broker, command).await,
        Command::Produce(options) => produce::run(&broker, options).await,
        Command::Consume(options) => consume::run(&broker, options).await,
        Command::Message(command) => message::run(&broker, command).await,
        Command::Stats(options) => stats::run(&broker, options).await,
    }
}
