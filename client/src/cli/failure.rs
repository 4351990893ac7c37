//! How a command fails: with one sentence on stderr and an exit code that is not 0.

use std::io::ErrorKind;
use std::process::ExitCode;

use peregrine_client::Error;

/// Why the command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// To be said.
    Said(String),
    /// Said already.
    Silent,
    /// Nobody reads our output any more: the end of a pipe like `| head`, and no failure at all.
    BrokenPipe,
}

impl Failure {
    /// Says what is to be said and answers the process's exit code.
    pub fn exit(self) -> ExitCode {
        match self {
            Self::Said(sentence) => {
                eprintln!("peregrine: {sentence}");
                ExitCode::FAILURE
            }
            Self::Silent => ExitCode::FAILURE,
            Self::BrokenPipe => ExitCode::SUCCESS,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Said(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Self::BrokenPipe,
            _ => Self::Said(error.to_string()),
        }
    }
}

impl From<String> for Failure {
    fn from(sentence: String) -> Self {
        Self::Said(sentence)
    }
}
