//! A broker's shards from start to stop: executors are started, shards recover in order, requests are served until a stop is
//! asked for, and then everything acknowledged is flushed.

use crate::control::checks::ring_file;
use crate::control::settings::{Identity, Ready, Settings, TestFault, WithoutTmpfs};
use crate::engine::{CatalogueSnapshot, Engine, EngineOptions, HOME, MembershipOptions, MemoryLevel};
use crate::log::damage::{DamagedExtent, Extent};
use crate::log::fault::{Faults, RecoveryStep};
use crate::log::{
    BootId, CheckpointOptions, CloseError, Directory, FlushOptions, Log, LogOptions, Replay, RunId, StartError,
    StartReport,
};
use crate::shard::event::Event;
use crate::shard::executor::{Executor, Facts, Layout};
use crate::shard::group::members;
use crate::shard::listener::Listener;
use crate::shard::mesh::Ends;
use crate::shard::mesh_messages::{Request, Return};
use crate::shard::runtime::{self, Background, ExecutorOptions};
use crate::shard::seams::Seams;
use crate::shard::startup::Startup;
use crate::shard::state::Shard;
use crate::shard::stop;
use crate::shard::storage::{ShardDisk, ShardRings};
use crate::shard::watchdog::Watchdog;
use crate::shard::{checkpoints, flusher, forwarding, listener, mesh, retention, sweeper};
use crate::simulated::Scheduler;
use peregrine_protocol::entry::EntryHeader;
use peregrine_protocol::ids::ShardId;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Why the shards did not start, or did not stop cleanly; each a sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Close(#[from] CloseError),
    #[error(
        "cannot start an executor: {0}; see that io_uring is allowed and the limit of locked memory is not too low"
    )]
    Executor(io::Error),
    #[error("cannot {doing} {path}: {source}")]
    File { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("shard {0} could not be flushed in time: what is acknowledged at memory stands in its staging ring")]
    Unflushed(ShardId),
    /// Another failure came first.
    #[error("the start was given up")]
    Aborted,
}

/// What one executor takes with it to its thread.
pub(crate) struct Task {
    pub index: usize,
    pub core: usize,
    pub layout: Layout,
    pub settings: Settings,
    pub identity: Identity,
    pub ends: Ends<Request, Return>,
    /// On the executor that accepts.
    pub listener: Option<Listener>,
    pub startup: Arc<Startup>,
    pub watchdog: Arc<Watchdog>,
    pub stop: Arc<AtomicBool>,
}

/// Serves until `stop` is set. `ready` is called once, when every shard serves.
pub fn run(
    settings: &Settings,
    identity: &Identity,
    listener: TcpListener,
    stop: &Arc<AtomicBool>,
    ready: impl FnOnce(Ready),
) -> Result<(), RunError> {
    let cores = runtime::cores().map_err(RunError::Executor)?;
    let executors = cores.len().min(usize::from(settings.shards)).max(1);
    let layout = Layout { shards: settings.shards, executors };
    for shard in 0..settings.shards {
        make_directory(&settings.data, ShardId(shard))?;
    }
    sync_names(&settings.data)?;
    let watchdog = Watchdog::start(executors).map_err(RunError::Executor)?;
    let ended = serve_all(settings, identity, listener, stop, ready, &cores, layout, &watchdog);
    // However it ended: an executor that was never started does not beat.
    watchdog.end();
    ended
}

/// Starts an executor on each of the first cores, and waits until all have stopped.
#[expect(clippy::too_many_arguments, reason = "what a run is given, and what it was laid out to be")]
fn serve_all(
    settings: &Settings,
    identity: &Identity,
    listener: TcpListener,
    stop: &Arc<AtomicBool>,
    ready: impl FnOnce(Ready),
    cores: &[usize],
    layout: Layout,
    watchdog: &Arc<Watchdog>,
) -> Result<(), RunError> {
    let executors = layout.executors;
    let shards_each = usize::from(settings.shards).div_ceil(executors);
    let startup = Arc::new(Startup::new(settings.shards, executors));
    let mut listener = Some(listener);
    for (index, ends) in mesh::full(executors, shards_each).into_iter().enumerate() {
        let options = ExecutorOptions {
            index,
            core: cores[index],
            spin: settings.idle.spin(settings.adaptive_spin),
            io_memory: runtime::io_memory(shards_each, executors, runtime::lockable_memory()),
        };
        let task = Task {
            index,
            core: cores[index],
            layout,
            settings: settings.clone(),
            identity: *identity,
            ends,
            listener: if index == layout.executor_of(HOME) { listener.take().map(Listener::Real) } else { None },
            startup: startup.clone(),
            watchdog: watchdog.clone(),
            stop: stop.clone(),
        };
        // Executors end with the process: what their tasks hold (sockets, files) must not be dropped while the kernel uses it.
        let started = runtime::start(&options, move || async move {
            serve(task).await;
            std::future::pending::<()>().await;
        });
        watch_over(started.map_err(RunError::Executor)?, &startup)?;
    }
    let messages_from_ring = startup.wait_recovered()?;
    ready(Ready { messages_from_ring });
    let mut failures = startup.wait_ended();
    if failures.is_empty() {
        return Ok(());
    }
    for failure in failures.drain(1..) {
        tracing::error!("{failure}");
    }
    failures.pop().map_or(Ok(()), Err)
}

/// An executor that cannot be made says so only to who joins its thread.
fn watch_over(executor: runtime::Handle<()>, startup: &Arc<Startup>) -> Result<(), RunError> {
    let startup = startup.clone();
    let watch = move || {
        if let Err(error) = executor.join() {
            startup.failed(RunError::Executor(error.into()));
        }
    };
    std::thread::Builder::new().name("executor-end".to_owned()).spawn(watch).map(drop).map_err(RunError::Executor)
}

/// One executor, from start to stop. What goes wrong is told through the start-up.
pub(crate) async fn serve(task: Task) {
    task.watchdog.runs_here(task.index);
    let startup = task.startup.clone();
    let facts = Facts {
        directory: task.identity.id,
        data: std::path::absolute(&task.settings.data).unwrap_or_else(|_| task.settings.data.clone()),
        idle: task.settings.idle,
        core: task.core,
        message_max: task.settings.message_max,
        frame_max: task.settings.frame_max,
        groups: task.settings.groups,
    };
    let seams = Seams::new(&task.settings.test_faults);
    let executor = Executor::new(task.index, task.layout, facts, Background::new(), seams);
    let (mesh, incoming) = task.ends.connect().await;
    executor.install_mesh(mesh);
    let stopping = Rc::new(Event::default());
    {
        let (executor, stopping) = (executor.clone(), stopping.clone());
        let (watchdog, stop) = (task.watchdog.clone(), task.stop.clone());
        runtime::spawn(async move {
            sweeper::run(&executor, &watchdog, &stop, &stopping).await;
        })
        .detach();
    }
    for shard in task.layout.shards_of(task.index) {
        if let Err(error) = recover(&executor, &task.settings, &task.identity, &startup, shard).await {
            return startup.failed(error);
        }
    }
    let Some(highest) = startup.all_recovered().await else { return };
    if let Some(home) = executor.shard(HOME) {
        home.core.borrow_mut().engine.raise_id(highest);
    }
    forwarding::start(&executor, incoming);
    for shard in executor.local_shards() {
        runtime::spawn(flusher::run(executor.clone(), shard.clone())).detach();
        runtime::spawn(members::run(executor.clone(), shard.clone())).detach();
        executor.spawn_background(checkpoints::run(shard.clone()));
        executor.spawn_background(retention::run(shard, task.settings.retention));
    }
    match task.listener {
        Some(listener) => listener::accept(listener, &stopping, |stream| executor.serve(stream)).await,
        None => stopping.wait().await,
    }
    stop::stop(&executor, &startup).await;
    startup.ended();
}

/// Recovers a shard and installs it.
async fn recover(
    executor: &Rc<Executor>,
    settings: &Settings,
    identity: &Identity,
    startup: &Startup,
    id: ShardId,
) -> Result<(), RunError> {
    let memory_level = match (&settings.ring_directory, settings.without_tmpfs) {
        (Some(_), _) => MemoryLevel::Kept,
        (None, WithoutTmpfs::Raise) => MemoryLevel::Raised,
        (None, WithoutTmpfs::Refuse) => MemoryLevel::Refused,
    };
    let engine = EngineOptions { shard: id, shards: settings.shards, memory_level, group_drain: settings.groups.drain };
    let catalogue = if id == HOME { None } else { Some(startup.catalogue().await.ok_or(RunError::Aborted)?) };
    let disk = ShardDisk::open(shard_directory(&settings.data, id), id);
    let mut options = log_options(settings, identity, id)?;
    if let Some(simulated) = Scheduler::with_here(|scheduler| scheduler.options().clone()) {
        (options.faults, options.smallest) = (simulated.faults, simulated.smallest);
    }
    let mut replaying = Replaying::new(engine, catalogue);
    let (log, report) = Log::start(disk, ShardRings::here(), options, &mut replaying).await?;
    let mut engine = replaying.engine;
    engine.recovered(log.published());
    tell(id, &report);
    if id == HOME {
        startup.give_catalogue(engine.catalogue_snapshot());
    }
    let highest = engine.highest_id();
    engine.start_groups(MembershipOptions {
        shard: id,
        epoch: report.epoch,
        silence: settings.groups.silence,
        grace: settings.groups.grace,
    });
    executor.install_shard(Shard::new(id, engine, log, settings.message_max, executor.seams.acknowledgements));
    startup.recovered(highest, report.messages_from_ring);
    Ok(())
}

fn tell(shard: ShardId, report: &StartReport) {
    tracing::info!(
        shard = shard.0,
        epoch = report.epoch.0,
        cut = report.cut.0,
        start = report.start.0,
        checkpoint = report.checkpoint.map(|begin| begin.0),
        ring = ?report.ring,
        messages_from_ring = report.messages_from_ring,
        "the shard's log is recovered"
    );
    for (name, reason) in &report.bad_checkpoints {
        tracing::warn!(shard = shard.0, checkpoint = name, reason, "a checkpoint is of no use and was passed over");
    }
    for damaged in &report.accepted {
        let DamagedExtent { extent, reason } = damaged;
        tracing::warn!(shard = shard.0, positions = %extent, %reason, "damage was accepted");
    }
    if !report.given_up.is_empty() {
        let positions: Vec<_> = report.given_up.iter().map(ToString::to_string).collect();
        tracing::info!(
            shard = shard.0,
            positions = positions.join(" "),
            "passed over what --accept-loss gave up before"
        );
    }
}

fn log_options(settings: &Settings, identity: &Identity, id: ShardId) -> Result<LogOptions, RunError> {
    let ring = settings.ring_directory.as_ref().map(|directory| ring_file(directory, identity.id, id));
    let ring = match ring.map(|path| path.into_os_string().into_string()).transpose() {
        Ok(ring) => ring,
        Err(path) => {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "the path of a staging ring must be UTF-8");
            return Err(RunError::File { doing: "use", path: path.into(), source });
        }
    };
    let directory =
        Directory { id: identity.id, secret: identity.secret, device: identity.device, inode: identity.inode };
    let flush = &settings.flush;
    Ok(LogOptions {
        ring_bytes: settings.ring_bytes,
        segment_bytes: settings.segment_bytes,
        block_cache: settings.block_cache,
        keep_free: settings.keep_free,
        largest_entry: settings.largest_entry,
        flush: FlushOptions {
            depth: flush.depth,
            age: flush.age,
            memory_wait: flush.memory_wait,
            memory_bytes: flush.memory_bytes,
            flush_bytes: flush.max_bytes,
        },
        checkpoint: CheckpointOptions { bytes: settings.checkpoint.bytes, age: settings.checkpoint.age },
        scrub: settings.scrub,
        accept_loss: settings.accept_loss,
        discard_ring: settings.discard_ring(id),
        faults: faults(&settings.test_faults),
        ..LogOptions::new(id, directory, BootId(identity.boot), RunId(identity.run), ring)
    })
}

fn faults(wanted: &[TestFault]) -> Faults {
    let faults = Faults::default();
    for fault in wanted {
        match *fault {
            TestFault::HoldFlushes => faults.hold_flushes(true),
            TestFault::HoldFlushesWhile(switch) => faults.hold_flushes_while(switch.0),
            TestFault::HoldWrite(n) => faults.hold_write(Some(n)),
            TestFault::FailWrite(n) => faults.fail_write(Some(n)),
            // Of the executor, not of the log.
            TestFault::MissNews
            | TestFault::HoldForwardedWhile(_)
            | TestFault::PatientWhile(_)
            | TestFault::AcknowledgementPlaces(_) => {}
            TestFault::PanicAtWrite(n) => faults.panic_at_write(Some(n)),
            TestFault::KillAfterStep(n) => faults.after_step(move |step: RecoveryStep| {
                if step as u8 == n {
                    kill_this_process();
                }
            }),
        }
    }
    faults
}

/// As by kill -9: nothing is flushed, nothing is dropped.
fn kill_this_process() {
    // SAFETY: a system call without memory, to this process itself.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

/// The directory of a shard's log.
pub fn shard_directory(data: &Path, shard: ShardId) -> PathBuf {
    data.join(format!("shard-{:04}", shard.0))
}

fn make_directory(data: &Path, shard: ShardId) -> Result<(), RunError> {
    let path = shard_directory(data, shard);
    match std::fs::create_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(RunError::File { doing: "make the directory", path, source: error })
        }
        _ => Ok(()),
    }
}

/// Makes the names in the data directory durable, at every start: an earlier one may have been killed between making them and
/// this, and a power cut would then take logs that this one builds on.
fn sync_names(data: &Path) -> Result<(), RunError> {
    let synced = File::open(data).and_then(|data| data.sync_all());
    synced.map_err(|source| RunError::File { doing: "sync", path: data.to_owned(), source })
}

/// Hands the log's entries to the engine.
struct Replaying {
    engine: Engine,
    options: EngineOptions,
    /// What shard 0 said at this start; `None` on shard 0.
    catalogue: Option<CatalogueSnapshot>,
}

impl Replaying {
    fn new(options: EngineOptions, catalogue: Option<CatalogueSnapshot>) -> Self {
        let mut replaying = Self { engine: Engine::new(options), options, catalogue };
        replaying.begin();
        replaying
    }
}

impl Replay for Replaying {
    fn entry(&mut self, header: &EntryHeader, payload: &[u8]) -> Result<(), String> {
        self.engine.apply(header, payload).map(drop).map_err(|error| error.to_string())
    }

    fn lost(&mut self, extent: Extent) {
        self.engine.accept_hole(&(extent.from..extent.to));
    }

    fn begin(&mut self) {
        self.engine = Engine::new(self.options);
        if let Some(catalogue) = &self.catalogue {
            self.engine.install_catalogue(catalogue.clone());
        }
    }

    fn restore(&mut self, section: &[u8]) -> Result<(), String> {
        self.engine.restore(section).map_err(|error| error.to_string())
    }

    fn restored(&mut self) -> Result<(), String> {
        self.engine.restore_end().map_err(|error| error.to_string())
    }
}
