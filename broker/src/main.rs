//! `peregrine-broker`: reads its configuration and serves until a signal.

use std::process::ExitCode;

use peregrine_broker::control::configuration::{Command, parse};

fn main() -> ExitCode {
    match parse(std::env::args_os(), std::env::vars()) {
        Ok(Command::Print(text)) => print!("{text}"),
        Ok(Command::Serve(_) | Command::Echo(_)) => return ExitCode::FAILURE,
        Err(sentence) => {
            eprintln!("peregrine-broker: {sentence}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
