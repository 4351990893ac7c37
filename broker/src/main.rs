//! `peregrine-broker`: reads its configuration, checks that it can work here, and serves until a signal.
//!
//! Standard output carries one line, when the broker is ready; logs and refusals go to standard error. Exit codes: 0 after a
//! clean stop, 1 where it could not start or could not stop cleanly, 2 for a wrong command line or configuration. Those of `check`: 0
//! sound, 1 damaged or not to be verified, 3 where only such files are bad as are made again.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use peregrine_broker::control::check::{self, Verdict};
use peregrine_broker::control::checks::{self, Refusal, Rings};
use peregrine_broker::control::configuration::{Command, Configuration, EchoOptions, parse};
use peregrine_broker::control::directory::DataDirectory;
use peregrine_broker::control::kernel::StopSignals;
use peregrine_broker::control::logging::{self, Log, LogSettings};
use peregrine_broker::control::settings::Ready;
use peregrine_broker::control::shutdown;
use peregrine_broker::shard::echo;
use peregrine_broker::shard::run;
use peregrine_broker::shard::runtime::{self, ExecutorOptions};
use peregrine_protocol::limits::SHARDS_MAX;

/// Frees across threads cheaply: what one shard allocates may be dropped on another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let started = Instant::now();
    // Variables that are no text are nobody's settings.
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let outcome = match parse(std::env::args_os(), environment) {
        Ok(Command::Print(text)) => io::stdout().write_all(text.as_bytes()).map_err(|error| error.to_string()),
        Ok(Command::Serve(configuration)) => serve(*configuration, started),
        Ok(Command::Check { data, as_json }) => match check::check(&data, as_json) {
            Ok(Verdict::Sound) => Ok(()),
            Ok(Verdict::Harmless) => return ExitCode::from(3),
            Ok(Verdict::Damaged) => Err(format!("{} is damaged", data.display())),
            Err(sentence) => Err(sentence),
        },
        Ok(Command::Echo(options)) => serve_echo(&options, started),
        Err(sentence) => {
            eprintln!("peregrine-broker: {sentence}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("peregrine-broker: {sentence}");
            ExitCode::FAILURE
        }
    }
}

/// Serves; an error is a sentence that says why it did not start, or did not stop cleanly.
fn serve(configuration: Configuration, started: Instant) -> Result<(), String> {
    let refused = |refusal: Refusal| refusal.to_string();
    let failed = |error: io::Error| error.to_string();
    let signals = StopSignals::block().map_err(failed)?;
    logging::abort_on_panic();
    let log = Log::start(&configuration.log);
    for variable in &configuration.unknown_variables {
        tracing::warn!(variable, "there is no such setting; the variable is not used");
    }
    checks::io_uring().map_err(refused)?;
    checks::locked_memory().map_err(refused)?;
    let cores = runtime::cores().map_err(failed)?;
    let directory = DataDirectory::lock(&configuration.data).map_err(|error| error.to_string())?;
    let identity = directory
        .identity(configuration.shards, (cores.len() as u16).min(SHARDS_MAX))
        .map_err(|error| error.to_string())?;
    checks::direct_writes(directory.path()).map_err(refused)?;
    let executors = cores.len().min(usize::from(identity.shards));
    let warnings = [checks::file_system(directory.path()), checks::descriptors(executors)];
    for warning in warnings.into_iter().flatten() {
        tracing::warn!("{warning}");
    }
    let rings =
        checks::ring_directory(configuration.ring_directory().map(AsRef::as_ref), configuration.ring_directory_chosen);
    let rings = match rings.map_err(refused)? {
        Rings::At(path) => Some(path),
        Rings::Anonymous(reason) => {
            tracing::warn!(reason, "the staging rings are anonymous memory: nothing is acknowledged at memory");
            None
        }
    };
    let settings = configuration.settle(identity.shards, rings)?;
    if let Some(rings) = &settings.ring_directory {
        checks::ring_space(rings, identity.id, settings.shards, settings.ring_bytes).map_err(refused)?;
    }
    let listener = checks::listen(settings.listen).map_err(refused)?;
    let address = listener.local_addr().map_err(failed)?;
    let shutdown = shutdown::watch(signals).map_err(failed)?;
    tracing::info!(directory = %identity.id, shards = settings.shards, %address, idle = %settings.idle, "starting");
    let shards = settings.shards;
    let ready = move |ready: Ready| {
        let messages = ready.messages_from_ring;
        let milliseconds = started.elapsed().as_millis();
        say(&format!(
            "ready: listening on {address}, {shards} shards, {milliseconds} ms, {messages} messages from the ring"
        ));
    };
    let outcome = run::run(&settings, &identity, listener, &shutdown, ready).map_err(|error| error.to_string());
    if log.lost_lines() > 0 {
        tracing::warn!(lines = log.lost_lines(), "standard error was too slow for these log lines");
    }
    if outcome.is_ok() {
        tracing::info!("stopped");
    }
    // The lock is held until the process is gone: executors that still run may hold files in the directory.
    std::mem::forget(directory);
    outcome
}

/// The load generator's floor: the same executor as a shard's, and nothing behind the socket.
fn serve_echo(options: &EchoOptions, started: Instant) -> Result<(), String> {
    let failed = |error: io::Error| error.to_string();
    let signals = StopSignals::block().map_err(failed)?;
    logging::abort_on_panic();
    let _log = Log::start(&LogSettings { filter: "warn".to_owned(), json: false });
    checks::io_uring().map_err(|refusal| refusal.to_string())?;
    checks::locked_memory().map_err(|refusal| refusal.to_string())?;
    let cores = runtime::cores().map_err(failed)?;
    let core = match options.core {
        Some(core) if !cores.contains(&core) => return Err(format!("this process may not use core {core}")),
        Some(core) => core,
        None => *cores.first().ok_or("this process may use no core")?,
    };
    let listener = checks::listen(options.listen).map_err(|refusal| refusal.to_string())?;
    let address = listener.local_addr().map_err(failed)?;
    let shutdown = shutdown::watch(signals).map_err(failed)?;
    say(&format!("ready: listening on {address}, echo, {} ms", started.elapsed().as_millis()));
    let executor = ExecutorOptions {
        index: 0,
        core,
        spin: options.idle.spin(options.adaptive_spin),
        io_memory: runtime::io_memory(1, 1, runtime::lockable_memory()),
    };
    echo::run(&executor, listener, shutdown).map_err(failed)
}

/// The one line on standard output.
fn say(line: &str) {
    let mut stdout = io::stdout().lock();
    if let Err(error) = writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        tracing::warn!(%error, "the ready line could not be written");
    }
}
