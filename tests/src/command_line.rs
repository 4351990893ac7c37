//! The `peregrine` command, run as a user would.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::programs::{program, wait_for_exit};

/// A command that takes longer hangs.
const COMMAND_WITHIN: Duration = Duration::from_mins(2);

/// `peregrine --broker ADDRESS`.
#[derive(Debug, Clone, Copy)]
pub struct CommandLine {
    address: SocketAddr,
}

/// How a command ended, and all that it wrote.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// # Panics
    /// With what the command wrote, unless it succeeded.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert!(self.status.success(), "the command failed with {}: {}", self.status, self.stderr);
        self
    }

    pub fn lines(&self) -> Vec<&str> {
        self.stdout.lines().collect()
    }
}

/// A command that still runs.
#[derive(Debug)]
pub struct RunningCommand {
    child: Child,
    stdout: std::thread::JoinHandle<String>,
    stderr: std::thread::JoinHandle<String>,
}

impl CommandLine {
    pub fn new(address: SocketAddr) -> Self {
        CommandLine { address }
    }

    /// The command with these arguments, for a test that sets more.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("peregrine"));
        command.arg("--broker").arg(self.address.to_string()).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the command to its end.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        RunningCommand::spawn(self.command(arguments)).wait()
    }

    /// Starts the command with the file as its standard input.
    pub fn start_with_input(&self, arguments: &[&str], input: &Path) -> RunningCommand {
        let mut command = self.command(arguments);
        command.stdin(File::open(input).expect("the input can be opened"));
        RunningCommand::spawn(command)
    }

    /// # Panics
    /// Unless the topic was created.
    pub fn create_topic(&self, name: &str, queues: u32) {
        self.run(&["topic", "create", name, "--queues", &queues.to_string()]).succeeded();
    }

    /// Everything that stands in the topic, as the lines in which it is printed.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn consume_all(&self, topic: &str) -> Vec<String> {
        let ended = self.run(&["consume", topic, "--from", "earliest"]).succeeded();
        ended.stdout.lines().map(str::to_owned).collect()
    }
}

impl RunningCommand {
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the command can be started");
        let stdout = collect(child.stdout.take().expect("standard output is piped"));
        let stderr = collect(child.stderr.take().expect("standard error is piped"));
        RunningCommand { child, stdout, stderr }
    }

    /// The command's standard input, where that is piped; dropping it ends the input.
    pub fn take_input(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("standard input is piped")
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours can be waited for").is_none()
    }

    /// Waits for the command's end.
    ///
    /// # Panics
    /// With what it wrote, if it still runs after two minutes.
    pub fn wait(mut self) -> Ended {
        let status = wait_for_exit(&mut self.child, COMMAND_WITHIN);
        if status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let stdout = self.stdout.join().expect("the pipe can be read");
        let stderr = self.stderr.join().expect("the pipe can be read");
        let status = status.unwrap_or_else(|| panic!("the command hangs, having written {stderr}"));
        Ended { status, stdout, stderr }
    }
}

/// Both pipes are read while the command runs: a full one would block it.
fn collect(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
