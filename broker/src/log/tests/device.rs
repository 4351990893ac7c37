//! The log on a real disk through io_uring, with its ring in a file: the same code as on the simulated machine, so this looks
//! at what only the real one has. A process that is killed is not to be had within a test; a log that is dropped while
//! nothing is in flight leaves the same behind.

use std::future::Future;
use std::time::Instant;

use futures_lite::future::or;
use glommio::channels::local_channel::{LocalReceiver, LocalSender, new_unbounded};
use glommio::{LocalExecutorBuilder, Placement, PoolPlacement, spawn_local};
use peregrine_protocol::entry::{DirectoryId, DirectorySecret};
use peregrine_protocol::ids::DurableLevel::{Memory, Synced};
use peregrine_protocol::ids::{DurableLevel, Nanos, ShardId};

use super::bench::{Seen, draft, payload};
use crate::log::disk::tmpfs::TmpfsRings;
use crate::log::disk::uring::UringDisk;
use crate::log::log::CloseState;
use crate::log::options::{BootId, Directory, RunId};
use crate::log::recovery::RingFate;
use crate::log::{AppendRefused, Completion, Log, LogOptions, StartReport};

type DeviceLog = Log<UringDisk, TmpfsRings>;

struct Device {
    log: DeviceLog,
    report: StartReport,
    seen: Seen,
    since: Instant,
    done: LocalReceiver<Completion<UringDisk>>,
    finish: std::rc::Rc<LocalSender<Completion<UringDisk>>>,
    in_flight: usize,
}

impl Device {
    async fn start(directory: &std::path::Path, options: LogOptions) -> Self {
        let mut seen = Seen::default();
        let disk = UringDisk::new(directory.to_path_buf());
        let started = Log::start(disk, TmpfsRings, options, &mut seen).await;
        let (log, report) = started.map_err(|error| error.to_string()).unwrap();
        let (finish, done) = new_unbounded();
        Self { log, report, seen, since: Instant::now(), done, finish: std::rc::Rc::new(finish), in_flight: 0 }
    }

    fn now(&self) -> Nanos {
        self.since.elapsed().into()
    }

    fn turn(&mut self) {
        while let Some(task) = self.log.next_task(self.now()) {
            self.in_flight += 1;
            let finish = std::rc::Rc::clone(&self.finish);
            spawn_local(async move {
                assert!(finish.try_send(task.run().await).is_ok(), "the receiver outlives its tasks");
            })
            .detach();
        }
    }

    /// Waits for the next completion or deadline.
    async fn wait(&mut self) {
        let deadline = self.log.next_deadline().unwrap_or(Nanos::MAX);
        let wait = Nanos(deadline.saturating_sub(self.now()).min(1_000_000_000)).to_duration();
        let timer = async {
            glommio::timer::sleep(wait).await;
            None
        };
        if let Some(completion) = or(self.done.recv(), timer).await {
            self.in_flight -= 1;
            let now = self.now();
            self.log.complete(completion, now);
        }
        self.turn();
    }

    async fn wait_until(&mut self, what: impl Fn(&DeviceLog) -> bool) {
        self.turn();
        while !what(&self.log) {
            self.wait().await;
        }
    }

    async fn append_all(&mut self, numbers: std::ops::Range<u64>, level: DurableLevel, len: usize) {
        for number in numbers {
            let payload = payload(number, len);
            let draft = draft(number, level, &payload);
            while let Err(refused) = self.log.append(&draft, &payload, self.now()) {
                assert_eq!(refused, AppendRefused::NoRoom);
                self.wait().await;
            }
            self.turn();
        }
    }

    /// Lets everything in flight come back, then forgets the log without a stop.
    async fn abandon(mut self) {
        self.log.begin_close();
        while self.in_flight > 0 {
            if let Some(completion) = self.done.recv().await {
                self.in_flight -= 1;
                let now = self.now();
                self.log.complete(completion, now);
            }
        }
    }

    async fn close(mut self) {
        self.log.begin_close();
        self.wait_until(|log| log.close_state() == CloseState::Done).await;
        self.log.finish_close().unwrap();
    }
}

/// Runs a case on the disk that the build stands on, in a directory of its own.
pub(in crate::log) fn on_this_disk<F: Future<Output = ()>>(
    case: impl FnOnce(std::path::PathBuf, LogOptions) -> F + Send + 'static,
) {
    let program = std::env::current_exe().unwrap();
    let directory = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
    let path = directory.path().to_path_buf();
    let rings = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let ring = rings.path().join("1-0").to_string_lossy().into_owned();
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(4 << 20)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
        .make()
        .unwrap();
    let identity = Directory { id: DirectoryId(1), secret: DirectorySecret([2; 16]), device: 3, inode: 4 };
    let mut options = LogOptions::new(ShardId(0), identity, BootId(0), RunId(0), Some(ring));
    options.ring_bytes = 1 << 20;
    options.segment_bytes = 4 << 20;
    options.largest_entry = 256 << 10;
    executor.run(case(path, options));
}

#[test]
fn appends_roll_over_real_segments_and_come_back() {
    on_this_disk(async |path: std::path::PathBuf, options: LogOptions| {
        let mut device = Device::start(&path, options.clone()).await;
        assert_eq!(device.report.ring, RingFate::FirstStart);
        device.append_all(0..2000, Memory, 8000).await;
        device.append_all(2000..2100, Synced, 500).await;
        device.wait_until(|log| log.durable() == log.tail()).await;
        assert!(device.log.counters().rolls >= 3);
        let entry = device.log.read_disk(device.report.start, 96 + 8000).await.map_err(|_| ()).unwrap();
        assert_eq!(entry[96..96 + 8000], payload(0, 8000));
        drop(entry);
        device.close().await;
        let device = Device::start(&path, options).await;
        assert_eq!(device.seen.numbers, (0..2100).collect::<Vec<_>>());
        assert_eq!(device.report.ring, RingFate::Closed);
        device.close().await;
    });
}

#[test]
fn what_stood_only_in_the_ring_file_comes_back() {
    on_this_disk(async |path: std::path::PathBuf, options: LogOptions| {
        for round in 0..5 {
            let mut device = Device::start(&path, options.clone()).await;
            assert_eq!(device.seen.numbers, (0..round * 100).collect::<Vec<_>>());
            assert_eq!(device.report.messages_from_ring, if round > 0 { 60 } else { 0 });
            device.append_all(round * 100..round * 100 + 40, Synced, 700).await;
            device.wait_until(|log| log.durable() == log.tail()).await;
            options.faults.hold_flushes(true);
            device.append_all(round * 100 + 40..round * 100 + 100, Memory, 700).await;
            options.faults.hold_flushes(false);
            device.abandon().await;
        }
    });
}

#[test]
fn a_second_process_cannot_take_the_ring() {
    on_this_disk(async |path: std::path::PathBuf, options: LogOptions| {
        let device = Device::start(&path, options.clone()).await;
        let disk = UringDisk::new(path.clone());
        let refused = Log::start(disk, TmpfsRings, options, &mut Seen::default()).await.err();
        let refused = refused.map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains("another process uses it"), "{refused}");
        device.close().await;
    });
}
