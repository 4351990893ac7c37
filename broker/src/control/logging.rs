//! Logs: structured lines to standard error through a thread of their own. A shard puts a line into a bounded queue and goes
//! on; where the queue is full the line is lost and counted, never waited for.

use std::io;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// Lines that wait for standard error; at 200 bytes a line, 2 MiB.
const LINES_WAITING: usize = 10_000;
/// Added to every filter: the runtime tells of each closed file.
const QUIET: &str = "glommio=warn";

/// What is logged, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogSettings {
    pub filter: String,
    pub json: bool,
}

/// Whether `filter` can be used, or a sentence.
pub fn check_filter(filter: &str) -> Result<(), String> {
    EnvFilter::try_new(filter).map(drop).map_err(|error| format!("\"{filter}\" is no filter: {error}"))
}

/// The running log. Dropping it writes what is waiting.
pub struct Log {
    lost: ErrorCounter,
    _worker: WorkerGuard,
}

impl Log {
    /// Takes lines of this process from now on; `settings.filter` was checked.
    pub fn start(settings: &LogSettings) -> Self {
        let (writer, worker) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(LINES_WAITING)
            .thread_name("log")
            .finish(io::stderr());
        let lost = writer.error_counter();
        // The later directive wins, so that an operator can still ask for the runtime's lines.
        let filter = EnvFilter::new(format!("{QUIET},{}", settings.filter));
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
        // Fails only where a log was started before; then that one goes on.
        let _ = if settings.json { lines.json().flatten_event(true).try_init() } else { lines.try_init() };
        Self { lost, _worker: worker }
    }

    /// Lines that were lost because standard error was too slow.
    pub fn lost_lines(&self) -> usize {
        self.lost.dropped_lines()
    }
}

/// A panic anywhere is a bug that may have broken an invariant: it is written down and the process ends at once, as by kill -9,
/// which acknowledged messages survive.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // Straight to standard error: the log's thread may never run again.
        report(panic);
        std::process::abort();
    }));
}
