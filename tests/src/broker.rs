//! A real `peregrine-broker` process in directories of its own, on a free port, with the smallest sizes that the log allows.
//!
//! [`Settings`] says how to start it, [`Broker`] is the running one. A broker keeps its directories and its address over kills and
//! restarts, and takes both away when it is dropped: the process is killed by its process id, the data and ring directories are
//! removed. Its log goes to a file, which a panic in the test's thread prints.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::command_line::CommandLine;
use crate::programs::{disk_folder, program, wait_for_exit};

/// Longest wait for the ready line: recovery of a small log on a busy machine, and 2 s in which a dead process keeps its files open.
const READY_WITHIN: Duration = Duration::from_mins(1);
/// Longest wait for a process to end after a signal, or after it refused to start.
const EXIT_WITHIN: Duration = Duration::from_secs(30);
/// How much of the broker's log a failure shows.
const LOG_TAIL_BYTES: usize = 16 * 1024;

/// How a broker is started; the directories are made with [`Settings::prepare`].
#[derive(Debug, Clone)]
pub struct Settings {
    shards: u16,
    ring_bytes: u64,
    segment_bytes: u64,
    arguments: Vec<String>,
    listen: Option<SocketAddr>,
    idle: &'static str,
    ring_parent: PathBuf,
    ring_in_file: bool,
}

impl Default for Settings {
    /// One shard that parks when it is idle, 4 MiB segments, and the smallest ring.
    fn default() -> Self {
        Settings {
            shards: 1,
            ring_bytes: 1 << 20,
            segment_bytes: 4 << 20,
            arguments: Vec::new(),
            listen: None,
            idle: "park",
            ring_parent: PathBuf::from("/dev/shm"),
            ring_in_file: true,
        }
    }
}

impl Settings {
    pub fn shards(mut self, shards: u16) -> Self {
        self.shards = shards;
        self
    }

    pub fn ring_bytes(mut self, bytes: u64) -> Self {
        self.ring_bytes = bytes;
        self
    }

    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// The ring directory is made in this folder instead of `/dev/shm`.
    pub fn ring_parent(mut self, folder: &Path) -> Self {
        self.ring_parent = folder.to_path_buf();
        self
    }

    /// The staging ring is anonymous memory, as where there is no tmpfs.
    pub fn without_ring_file(mut self) -> Self {
        self.ring_in_file = false;
        self
    }

    /// The idle policy: `spin`, `adaptive`, or the default of tests, `park`.
    pub fn idle(mut self, policy: &'static str) -> Self {
        self.idle = policy;
        self
    }

    /// The address to listen on at the first start, instead of a free port.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// One more argument for the broker, for example a test switch.
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Makes the directories, and starts nothing yet.
    pub fn prepare(self) -> Broker {
        let ring = tempfile::Builder::new().prefix("peregrine-test-").tempdir_in(&self.ring_parent);
        let home = tempfile::Builder::new().prefix("broker-").tempdir_in(disk_folder());
        let home = home.expect("a directory can be made under target");
        let ring = ring.expect("a directory can be made on tmpfs");
        Broker {
            address: self.listen,
            settings: self,
            data: home.path().join("data"),
            home,
            ring_directory: ring.path().to_path_buf(),
            _ring: Some(ring),
            running: None,
        }
    }

    /// A broker that is ready.
    pub fn start(self) -> Broker {
        let mut broker = self.prepare();
        broker.start_again();
        broker
    }
}

/// What the ready line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    pub address: SocketAddr,
    pub shards: u16,
    pub milliseconds: u64,
    pub messages_from_ring: u64,
}

impl Ready {
    /// From `ready: listening on HOST:PORT, N shards, T ms, R messages from the ring`.
    fn parse(line: &str) -> Option<Self> {
        let parts: Vec<&str> = line.trim_end().strip_prefix("ready: listening on ")?.split(", ").collect();
        let [address, shards, milliseconds, messages] = parts.as_slice() else { return None };
        Some(Ready {
            address: address.parse().ok()?,
            shards: shards.strip_suffix(" shards").or_else(|| shards.strip_suffix(" shard"))?.parse().ok()?,
            milliseconds: milliseconds.strip_suffix(" ms")?.parse().ok()?,
            messages_from_ring: messages.strip_suffix(" messages from the ring")?.parse().ok()?,
        })
    }
}

/// A broker that did not become ready: how it ended, and what it said.
#[derive(Debug)]
pub struct Refusal {
    pub status: ExitStatus,
    pub stderr: String,
    pub stdout: String,
}

/// A broker and its directories, running or not.
#[derive(Debug)]
pub struct Broker {
    settings: Settings,
    home: TempDir,
    data: PathBuf,
    ring_directory: PathBuf,
    /// Removes the ring directory, unless it is another broker's.
    _ring: Option<TempDir>,
    running: Option<Running>,
    /// Where it listened when it was last ready; a restart listens there again.
    address: Option<SocketAddr>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// The lines of its standard output, then the end of the channel.
    lines: Receiver<String>,
}

impl Broker {
    /// Starts the broker on the same directories and, from the second time, the same port; waits until it is ready.
    ///
    /// # Panics
    /// With the broker's log, if it does not become ready.
    pub fn start_again(&mut self) -> Ready {
        let mut running = self.spawn();
        let line = running.lines.recv_timeout(READY_WITHIN);
        let Some(ready) = line.as_ref().ok().and_then(|line| Ready::parse(line)) else {
            // SIGKILL where it still runs, so that the log is whole and nothing is left behind.
            let _ = running.child.kill();
            let status = running.child.wait();
            panic!("the broker did not become ready: {line:?}, {status:?}; its log:\n{}", self.log_tail());
        };
        self.address = Some(ready.address);
        self.running = Some(running);
        ready
    }

    /// Starts the broker, which must refuse: it ends by itself, with a failure and without a ready line.
    ///
    /// # Panics
    /// If it becomes ready, succeeds, or still runs after some seconds.
    pub fn start_refused(&mut self) -> Refusal {
        self.start_refused_as(|_| {})
    }

    /// The same, with the process changed before it starts: other limits, another user.
    pub fn start_refused_as(&mut self, change: impl FnOnce(&mut Command)) -> Refusal {
        let logged_before = self.log().len();
        let mut running = self.spawn_as(change);
        let status = wait_for_exit(&mut running.child, EXIT_WITHIN);
        let status = status.unwrap_or_else(|| {
            let _ = running.child.kill();
            let _ = running.child.wait();
            panic!("the broker still runs where it should have refused to start; its log:\n{}", self.log_tail())
        });
        let stdout: String = running.lines.iter().collect();
        let refusal = Refusal { status, stderr: self.log()[logged_before..].to_owned(), stdout };
        assert!(!refusal.status.success(), "the broker refused with success: {refusal:?}");
        assert!(refusal.stdout.is_empty(), "the broker refused, yet wrote to its standard output: {refusal:?}");
        refusal
    }

    /// Starts the broker, which a test switch kills by SIGKILL before it is ready.
    ///
    /// # Panics
    /// If it becomes ready, ends in another way, or still runs after some seconds.
    pub fn start_killed(&mut self) {
        let mut running = self.spawn();
        let status = wait_for_exit(&mut running.child, EXIT_WITHIN);
        if status.is_none() {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
        let lines: Vec<String> = running.lines.iter().collect();
        let signal = status.and_then(|status| status.signal());
        assert!(
            signal == Some(libc::SIGKILL) && lines.is_empty(),
            "the broker was not killed before it was ready: {status:?}, {lines:?}; its log:\n{}",
            self.log_tail()
        );
    }

    /// A second broker on the directories of this one, which must refuse.
    pub fn twin_refused(&self) -> Refusal {
        let mut twin = Broker {
            settings: self.settings.clone(),
            home: tempfile::Builder::new().prefix("twin-").tempdir_in(disk_folder()).expect("a directory can be made"),
            data: self.data.clone(),
            ring_directory: self.ring_directory.clone(),
            _ring: None,
            running: None,
            address: None,
        };
        twin.start_refused()
    }

    fn spawn(&mut self) -> Running {
        self.spawn_as(|_| {})
    }

    fn spawn_as(&mut self, change: impl FnOnce(&mut Command)) -> Running {
        assert!(self.running.is_none(), "the broker already runs");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("the log can be opened");
        let mut command = Command::new(program("peregrine-broker"));
        // Settings of the person who runs the tests are not the tests'.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PEREGRINE_")) {
            command.env_remove(name);
        }
        command.args(self.arguments()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        change(&mut command);
        let mut child = command.spawn().expect("the broker can be started");
        let stdout = child.stdout.take().expect("standard output is piped");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Running { child, lines }
    }

    /// All arguments of the next start.
    pub fn arguments(&self) -> Vec<String> {
        let listen = self.address.map_or_else(|| "127.0.0.1:0".to_owned(), |address| address.to_string());
        let none = Path::new("none");
        let ring_directory = if self.settings.ring_in_file { self.ring_directory.as_path() } else { none };
        let mut arguments = vec![
            "--data".to_owned(),
            self.data.to_string_lossy().into_owned(),
            format!("--listen={listen}"),
            format!("--shards={}", self.settings.shards),
            format!("--idle={}", self.settings.idle),
            format!("--segment-size={}", self.settings.segment_bytes),
            format!("--ring-size={}", self.settings.ring_bytes),
            format!("--ring-dir={}", ring_directory.display()),
        ];
        arguments.extend(self.settings.arguments.iter().cloned());
        arguments
    }

    /// Replaces what [`Settings::argument`] added, from the next start on.
    pub fn set_arguments(&mut self, arguments: &[&str]) {
        self.settings.arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    }

    /// The next start asks for another number of shards, or another size of ring.
    pub fn change_settings(&mut self, change: impl FnOnce(Settings) -> Settings) {
        self.settings = change(self.settings.clone());
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill_nine(&mut self) {
        self.signal(libc::SIGKILL);
        let mut running = self.running.take().expect("the broker runs");
        let status = wait_for_exit(&mut running.child, EXIT_WITHIN);
        assert!(status.is_some(), "the broker outlived SIGKILL");
    }

    /// SIGTERM, and waits for the end: a clean stop drains and flushes.
    ///
    /// # Panics
    /// With the broker's log, if it does not end, or wrote anything but its ready line to its standard output.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.wait_for_end()
    }

    /// Waits for an end that something else brings about, for example a test switch.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let mut running = self.running.take().expect("the broker runs");
        let Some(status) = wait_for_exit(&mut running.child, EXIT_WITHIN) else {
            let _ = running.child.kill();
            let _ = running.child.wait();
            panic!("the broker did not end within {EXIT_WITHIN:?}; its log:\n{}", self.log_tail());
        };
        let more: Vec<String> = running.lines.iter().collect();
        assert!(more.is_empty(), "after its ready line the broker wrote {more:?} to its standard output");
        status
    }

    /// SIGSTOP: the process is frozen, its sockets stay. Returns when the last of its threads stands still, which on a busy
    /// machine is some milliseconds after the signal was sent.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
        let stands_still = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            // The state stands behind the name, which ends with the last parenthesis.
            stat.rsplit(')').next().is_some_and(|fields| fields.trim_start().starts_with('T'))
        };
        eventually("every thread of the broker stands still", EXIT_WITHIN, || {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.process_id())).expect("the broker runs");
            tasks.map_while(Result::ok).all(stands_still)
        });
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: libc::c_int) {
        let process = libc::pid_t::try_from(self.process_id()).expect("a process id fits");
        // SAFETY: a plain system call without memory of ours; the child is not reaped yet, so that the id is still its own.
        let result = unsafe { libc::kill(process, signal) };
        assert_eq!(result, 0, "signal {signal} to the broker: {}", std::io::Error::last_os_error());
    }

    pub fn process_id(&self) -> u32 {
        self.running.as_ref().expect("the broker runs").child.id()
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Where it listens, also while it is down.
    pub fn address(&self) -> SocketAddr {
        self.address.expect("the broker was ready once")
    }

    /// `peregrine --broker ADDRESS` for this broker.
    pub fn command_line(&self) -> CommandLine {
        CommandLine::new(self.address())
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The data directory of the next start, for a file system of its own.
    pub fn set_data(&mut self, data: PathBuf) {
        self.data = data;
    }

    pub fn ring_directory(&self) -> &Path {
        &self.ring_directory
    }

    /// A directory for the test's own files, removed with the broker.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Resident memory of the process, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process_id())).expect("the broker runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has a resident size");
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        kibibytes * 1024
    }

    /// Processor time that the process has used, in user and kernel mode.
    pub fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process_id())).expect("the broker runs");
        // Fields 14 and 15, counted behind the name, which ends with the last parenthesis.
        let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number of ticks")).sum();
        // SAFETY: a plain query without memory of ours.
        let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64)
    }

    /// Everything that it logged, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(self.log_path()) {
            let _ = file.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("log")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            // SIGKILL works on a frozen process too.
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("log of the broker in the failed test:\n{}", self.log_tail());
        }
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// With `what` was waited for, after `limit`.
pub fn eventually(what: &str, limit: Duration, condition: impl FnMut() -> bool) {
    let started = Instant::now();
    assert!(crate::programs::wait_until(limit, condition), "{what}: not so after {:?}", started.elapsed());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_is_read() {
        let line = "ready: listening on 127.0.0.1:7400, 2 shards, 12 ms, 3 messages from the ring";
        let expected =
            Ready { address: "127.0.0.1:7400".parse().unwrap(), shards: 2, milliseconds: 12, messages_from_ring: 3 };
        assert_eq!(Ready::parse(line), Some(expected));
        assert_eq!(Ready::parse(&line.replace("2 shards", "1 shard")).map(|ready| ready.shards), Some(1));
        assert_eq!(Ready::parse("ready: listening on 127.0.0.1:7400"), None);
    }
}
