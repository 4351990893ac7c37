//! Ending on a signal: the first SIGTERM or SIGINT asks for a clean stop, the second ends the process at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::kernel::StopSignals;

/// The exit code of a process that was told twice: as a shell shows death by SIGINT.
const TOLD_TWICE: i32 = 130;
/// A signal to the whole process group and one to this process alone (as `timeout` sends them) are one wish.
const SAME_WISH: Duration = Duration::from_millis(500);

/// Set once the process is to stop; the shards look at it in their sweep, several times a second.
pub type Shutdown = Arc<AtomicBool>;

/// Watches for the signals on a thread of its own. `signals` was blocked before any thread was started.
pub fn watch(signals: StopSignals) -> io::Result<Shutdown> {
    let shutdown = Shutdown::default();
    let told = shutdown.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut first = None;
        while let Ok(signal) = signals.wait() {
            let since = first.get_or_insert_with(Instant::now).elapsed();
            if told.swap(true, Ordering::SeqCst) {
                if since < SAME_WISH {
                    continue;
                }
                eprintln!("peregrine-broker: {signal} again: ending at once");
                // Without destructors: acknowledged messages stand in the rings and on disk as after kill -9.
                std::process::exit(TOLD_TWICE);
            }
            tracing::info!(signal, "stopping: what is acknowledged is being flushed; a second signal ends at once");
        }
    })?;
    Ok(shutdown)
}
