//! A process with one log, and what it saw at its start.

use peregrine_protocol::checksum::crc32;
use peregrine_protocol::entry::{DirectoryId, DirectorySecret, EntryDraft, EntryFlags, EntryHeader, EntryKind};
use peregrine_protocol::ids::{
    DurableLevel, LogPosition, Nanos, ProducerEpoch, ProducerId, QueueId, QueueOffset, Sequence, ShardId, TopicId,
};

use crate::log::checkpoint::FinishedCheckpoint;
use crate::log::damage::Extent;
use crate::log::disk::simulated::{Conditions, Crash, Machine, SimulatedDisk, SimulatedRings, Tasks};
use crate::log::disk::{Access, BLOCK, Disk, DiskFile};
use crate::log::fault::Faults;
use crate::log::log::{Appended, CloseState, Log};
use crate::log::options::{BootId, Directory, LogOptions, RunId};
use crate::log::recovery::{Replay, RingFate, StartReport};
use crate::log::task::{Completion, LogTask};
use crate::log::{AppendRefused, CloseError, StartError};

pub(super) type SimulatedLog = Log<SimulatedDisk, SimulatedRings>;

/// The path of the ring, unless a test says otherwise.
pub(super) const RING: &str = "/dev/shm/1-0";

/// What a start handed to the engine.
#[derive(Default)]
pub(super) struct Seen {
    /// The number that each batch was appended with, in order.
    pub numbers: Vec<u64>,
    pub headers: Vec<EntryHeader>,
    pub lost: Vec<Extent>,
    /// How many of the numbers came from a checkpoint.
    pub restored: usize,
    /// How often it was told to begin anew.
    pub begun: usize,
}

impl Replay for Seen {
    fn entry(&mut self, header: &EntryHeader, payload: &[u8]) -> Result<(), String> {
        if let Some(last) = self.headers.last()
            && header.position < last.end()
        {
            return Err("it stands before its predecessor's end".to_owned());
        }
        // The engine refuses a store time that goes back; a note of loss without one once kept every start from coming up.
        if self.headers.last().is_some_and(|last| header.store_time < last.store_time) {
            return Err("its store time lies before its predecessor's".to_owned());
        }
        self.headers.push(*header);
        if header.kind == EntryKind::Batch {
            self.numbers.push(u64::from_le_bytes(payload[..8].try_into().unwrap()));
        }
        Ok(())
    }

    fn lost(&mut self, extent: Extent) {
        self.lost.push(extent);
    }

    fn begin(&mut self) {
        *self = Self { begun: self.begun + 1, ..Self::default() };
    }

    /// A section is a row of numbers.
    fn restore(&mut self, section: &[u8]) -> Result<(), String> {
        let (numbers, rest) = section.as_chunks::<8>();
        if !rest.is_empty() {
            return Err("it is no row of numbers".to_owned());
        }
        self.numbers.extend(numbers.iter().map(|number| u64::from_le_bytes(*number)));
        self.restored = self.numbers.len();
        Ok(())
    }

    fn restored(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// The machine, and what stays the same from start to start.
pub(super) struct Bench {
    pub machine: Machine,
    pub options: LogOptions,
}

impl Bench {
    pub fn new() -> Self {
        Self::seeded(1)
    }

    pub fn seeded(seed: u64) -> Self {
        let directory = Directory { id: DirectoryId(1), secret: DirectorySecret([2; 16]), device: 3, inode: 4 };
        let mut options = LogOptions::new(ShardId(0), directory, BootId(0), RunId(0), Some(RING.to_owned()));
        options.ring_bytes = 1 << 20;
        options.segment_bytes = 4 << 20;
        options.largest_entry = 256 << 10;
        Self { machine: Machine::new(seed, 1, Conditions::default()), options }
    }

    pub fn try_start(&self) -> Result<Process, StartError> {
        self.try_start_with(|_| ())
    }

    pub fn try_start_with(&self, change: impl FnOnce(&mut LogOptions)) -> Result<Process, StartError> {
        let mut options = self.options.clone();
        options.boot = BootId(u128::from_le_bytes(self.machine.boot_id()));
        options.run = RunId(self.machine.draw_run_id());
        options.faults = Faults::default();
        change(&mut options);
        let faults = options.faults.clone();
        let mut seen = Seen::default();
        let (disk, rings) = (self.machine.disk(0), self.machine.rings());
        let (log, report) = self.machine.block_on(Log::start(disk, rings, options, &mut seen))?;
        Ok(Process { machine: self.machine.clone(), log, report, seen, faults, tasks: Tasks::default(), next: 0 })
    }

    pub fn start(&self) -> Process {
        self.try_start().map_err(|error| error.to_string()).unwrap()
    }

    /// Ends a process, as a kill or a power cut does.
    pub fn crash(&self, process: Process, crash: Crash) {
        drop(process);
        self.machine.crash(crash);
    }

    pub fn names(&self) -> Vec<String> {
        let mut names = self.machine.block_on(self.machine.disk(0).list()).unwrap();
        names.sort();
        names
    }

    /// Flips a bit of the byte that stands at a position of the named segment.
    pub fn flip(&self, name: &str, base: LogPosition, position: LogPosition) {
        self.flip_at(name, position - base + BLOCK as u64);
    }

    /// Makes the block of the named segment that holds a position unreadable, or readable again.
    pub fn set_readable(&self, name: &str, base: LogPosition, position: LogPosition, readable: bool) {
        let block = (position - base) as usize / BLOCK + 1;
        self.machine.set_readable(0, name, block, readable);
    }

    pub fn read_whole(&self, name: &str) -> Vec<u8> {
        self.machine.block_on(async {
            let file = self.machine.disk(0).open(name, Access::Read).await.unwrap();
            file.read_at(0, file.size() as usize).await.unwrap()
        })
    }

    /// Makes a file of these bytes.
    pub fn write_whole(&self, name: &str, bytes: &[u8]) {
        self.machine.block_on(async {
            let disk = self.machine.disk(0);
            let file = disk.create(name, bytes.len() as u64).await.unwrap();
            file.write_at(bytes.to_vec(), 0).await.unwrap();
            file.sync().await.unwrap();
            disk.sync_directory().await.unwrap();
        });
    }

    /// Flips a bit of the byte at an offset of a file.
    pub fn flip_at(&self, name: &str, offset: u64) {
        self.machine.flip(0, name, offset, 0);
    }
}

impl Drop for Bench {
    /// Whatever a test is about, the log broke no promise that the machine watches over.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.machine.take_breaches(), []);
        }
    }
}

/// A running broker's share of one log.
pub(super) struct Process {
    pub machine: Machine,
    pub log: SimulatedLog,
    pub report: StartReport,
    pub seen: Seen,
    pub faults: Faults,
    tasks: Tasks<Completion<SimulatedDisk>>,
    next: u64,
}

impl Process {
    pub fn now(&self) -> Nanos {
        Nanos(self.machine.now())
    }

    /// Appends a batch of one message whose payload begins with `number`.
    pub fn append(&mut self, number: u64, level: DurableLevel, len: usize) -> Result<Appended, AppendRefused> {
        let payload = payload(number, len);
        let now = self.now();
        self.log.append(&draft(number, level, &payload), &payload, now)
    }

    /// Appends numbers from `from` on, up to, not including, `to`, waiting for room as a shard would.
    pub fn append_all(&mut self, numbers: std::ops::Range<u64>, level: DurableLevel, len: usize) {
        for number in numbers {
            while let Err(refused) = self.append(number, level, len) {
                assert_eq!(refused, AppendRefused::NoRoom);
                self.wait();
            }
        }
    }

    /// Begins what the log wants done, and takes in what is done already.
    pub fn turn(&mut self) {
        loop {
            while let Some(task) = self.log.next_task(Nanos(self.machine.now())) {
                self.tasks.spawn(task.run());
            }
            let done = self.tasks.poll(&mut crate::log::disk::simulated::Random::new(self.next));
            self.next += 1;
            let Some(completion) = done else { break };
            self.log.complete(completion, Nanos(self.machine.now()));
        }
    }

    /// Lets time pass up to the next event.
    pub fn wait(&mut self) {
        self.turn();
        let until = self.log.next_deadline().map_or(u64::MAX, |deadline| deadline.0);
        self.machine.advance(until);
        self.turn();
    }

    pub fn wait_until(&mut self, what: impl Fn(&SimulatedLog) -> bool) {
        for _ in 0..100_000 {
            if what(&self.log) {
                return;
            }
            self.wait();
        }
        panic!("it does not come");
    }

    /// Writes a checkpoint that says what was appended so far, in sections of three numbers; it counts when this returns.
    pub fn checkpoint(&mut self, numbers: &[u64]) {
        let finished = self.write_checkpoint(numbers);
        self.wait_durable();
        let published = self.machine.block_on(self.log.publish_checkpoint(finished)).unwrap();
        self.log.checkpoint_ended(Some(published), self.now());
    }

    /// The same without a name: it does not count.
    pub fn write_checkpoint(&mut self, numbers: &[u64]) -> FinishedCheckpoint<SimulatedDisk> {
        let (begin, now) = (self.log.tail(), self.now());
        let writer = self.log.begin_checkpoint(begin, Nanos::ZERO, now);
        self.machine.block_on(async {
            let mut writer = writer.await.unwrap();
            for section in numbers.chunks(3) {
                let bytes: Vec<u8> = section.iter().flat_map(|number| number.to_le_bytes()).collect();
                writer.section(&bytes).await.unwrap();
            }
            writer.finish(begin).await.unwrap()
        })
    }

    /// Runs a task to its end, and nothing beside it.
    pub fn run(&mut self, task: LogTask<SimulatedDisk>) {
        let completion = self.machine.block_on(task.run());
        self.log.complete(completion, self.now());
    }

    /// Waits until nothing is to be done: the next segment is there, and the spare behind it.
    pub fn rest(&mut self) {
        for _ in 0..100_000 {
            if self.tasks.is_empty() && self.log.next_deadline().is_none() {
                return;
            }
            self.wait();
        }
        panic!("there is always something to do");
    }

    pub fn wait_durable(&mut self) {
        self.wait_until(|log| log.durable() == log.tail());
    }

    pub fn close(mut self) -> Result<(), CloseError> {
        self.log.begin_close();
        self.wait_until(|log| log.close_state() == CloseState::Done);
        self.log.finish_close()
    }

    pub fn assert_recovered(&self, numbers: std::ops::Range<u64>, fate: RingFate, from_ring: u64) {
        assert_eq!(self.seen.numbers, numbers.collect::<Vec<_>>());
        assert_eq!((self.report.ring, self.report.messages_from_ring), (fate, from_ring));
    }
}

pub(super) fn payload(number: u64, len: usize) -> Vec<u8> {
    let mut payload = vec![number as u8; len.max(8)];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    payload
}

pub(super) fn draft(number: u64, level: DurableLevel, payload: &[u8]) -> EntryDraft {
    EntryDraft {
        kind: EntryKind::Batch,
        flags: EntryFlags::for_level(level),
        payload_crc: crc32(payload),
        length: payload.len() as u32,
        record_count: 1,
        topic: TopicId(1),
        queue: QueueId(0),
        producer_epoch: ProducerEpoch(0),
        base_offset: QueueOffset(number),
        store_time: Nanos(number),
        producer_id: ProducerId::NONE,
        sequence: Sequence(0),
    }
}
