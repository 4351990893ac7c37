//! The runtime that we build on, probed for the defects that our patches mend.
//!
//! The probes fail within seconds on glommio 0.9.0 as published. They come with a watchdog, because what they provoke is a thread
//! that sleeps for ever: a hang here is a failure with a sentence, never a test that does not end.
//!
//! `hang_*` shows patch P1 (an executor parks only when no task queue has work), `dma_*` patch P2 (no polled I/O), `neighbour_*`
//! patch P6 (a spinning executor gives way); see `scripts/patches/glommio/`.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt};
use glommio::io::{DmaFile, OpenOptions};
use glommio::net::TcpListener;
use glommio::{Latency, LocalExecutorBuilder, Placement, Shares};

/// Far above any hiccup of a shared machine; a parked executor never comes back at all.
const STALL_LIMIT: Duration = Duration::from_secs(10);
/// A probe that made progress for this long has passed, however slow the machine.
const PROBE_TIME_MAX: Duration = Duration::from_secs(20);
/// As published, glommio hangs after 2,000 to 90,000 exchanges.
const EXCHANGES: u64 = 100_000;
/// Many of the time slices of a scheduler.
const SPIN_TIME: Duration = Duration::from_secs(1);

/// A short preempt timer makes the losing interleaving frequent: its event wakes no task, and lands just before the run queues are
/// looked at.
#[test]
fn hang_probe_echo_with_a_short_preempt_timer() {
    let (address_sender, address) = mpsc::channel();
    let _server = LocalExecutorBuilder::new(Placement::Unbound)
        .preempt_timer(Duration::from_micros(100))
        .spawn(move || async move {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            address_sender.send(listener.local_addr().unwrap()).unwrap();
            let mut stream = listener.incoming().next().await.unwrap().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut message = [0; 128];
            while stream.read_exact(&mut message).await.is_ok() {
                stream.write_all(&message).await.unwrap();
            }
        })
        .unwrap();

    let mut client = TcpStream::connect(address.recv().unwrap()).unwrap();
    client.set_nodelay(true).unwrap();
    client.set_read_timeout(Some(STALL_LIMIT)).unwrap();
    let started = Instant::now();
    let mut message = [7; 128];
    for exchange in 0..EXCHANGES {
        client.write_all(&message).unwrap();
        if let Err(error) = client.read_exact(&mut message) {
            panic!("echo {exchange} got no answer for {STALL_LIMIT:?}: the executor parked with work to do ({error})");
        }
        if started.elapsed() > PROBE_TIME_MAX {
            break;
        }
    }
}

/// Two executors that wake each other from outside their reactors, in a queue with a latency bound: the second way into the same
/// hang.
#[test]
fn hang_probe_two_spinning_executors() {
    let cores = cores();
    if cores.len() < 2 {
        eprintln!("skipped: two spinning executors need two cores");
        return;
    }
    let (ping, pings) = tokio::sync::mpsc::channel::<u64>(1);
    let (pong, pongs) = tokio::sync::mpsc::channel::<u64>(1);
    let messages = Arc::new(AtomicU64::new(0));
    let _players = [
        spinning_player(cores[0], ping, pongs, Some(Arc::clone(&messages))),
        spinning_player(cores[1], pong, pings, None),
    ];

    let started = Instant::now();
    let (mut seen, mut seen_at) = (0, Instant::now());
    while seen + 1 < 2 * EXCHANGES && started.elapsed() < PROBE_TIME_MAX {
        std::thread::sleep(Duration::from_millis(10));
        let now = messages.load(Ordering::Relaxed);
        if now != seen {
            (seen, seen_at) = (now, Instant::now());
        }
        assert!(
            seen_at.elapsed() < STALL_LIMIT,
            "no hop for {STALL_LIMIT:?} after {seen} messages: an executor parked with work to do"
        );
    }
}

/// Sends each number that it receives, plus one, to the other player; the one that shows its progress serves.
fn spinning_player(
    core: usize,
    to: tokio::sync::mpsc::Sender<u64>,
    mut from: tokio::sync::mpsc::Receiver<u64>,
    progress: Option<Arc<AtomicU64>>,
) -> glommio::ExecutorJoinHandle<()> {
    LocalExecutorBuilder::new(Placement::Fixed(core))
        .spin_before_park(Duration::from_millis(1))
        .spawn(move || async move {
            let bound = Latency::Matters(Duration::from_millis(1));
            let queue = glommio::executor().create_task_queue(Shares::default(), bound, "player");
            let play = async move {
                if progress.is_some() {
                    to.send(0).await.unwrap();
                }
                while let Some(number) = from.recv().await {
                    if let Some(progress) = &progress {
                        progress.store(number, Ordering::Relaxed);
                    }
                    if number >= 2 * EXCHANGES || to.send(number + 1).await.is_err() {
                        break;
                    }
                }
            };
            glommio::spawn_local_into(play, queue).unwrap().await;
        })
        .unwrap()
}

/// A new, empty, read-write file as the first DMA file of an executor is what the published probe takes for a polled device.
#[test]
fn dma_file_is_not_polled_and_reads_back_what_was_written() {
    // Not the system's temporary directory: that may be a tmpfs, which knows no direct I/O.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("first-file");
    LocalExecutorBuilder::new(Placement::Unbound).make().unwrap().run(async move {
        let file: DmaFile = OpenOptions::new().create_new(true).read(true).write(true).dma_open(&path).await.unwrap();
        let shown = format!("{file:?}");
        assert!(shown.contains("NonPollable"), "the file would use the polled-I/O ring: {shown}");

        let mut block = file.alloc_dma_buffer(4096);
        block.as_bytes_mut().fill(0x5a);
        assert_eq!(file.write_at(block, 0).await.unwrap(), 4096);
        let read = file.read_at_aligned(0, 4096).await.unwrap();
        assert!(read.len() == 4096 && read.iter().all(|&byte| byte == 0x5a));
        file.close().await.unwrap();
    });
}

/// A spinning executor leaves its core to a neighbour who has work for it; as published it takes half of it.
#[test]
fn neighbour_gets_the_core_of_an_executor_that_only_spins() {
    let core = cores()[0];
    let stop = Arc::new(AtomicBool::new(false));
    let neighbour = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            assert!(core_affinity::set_for_current(core_affinity::CoreId { id: core }), "the neighbour was not pinned");
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        }
    });
    let spinner = LocalExecutorBuilder::new(Placement::Fixed(core)).spin_before_park(STALL_LIMIT).spawn(|| async {
        let before = processor_time();
        glommio::timer::sleep(SPIN_TIME).await;
        processor_time().saturating_sub(before)
    });
    let taken = spinner.unwrap().join().unwrap();
    stop.store(true, Ordering::Relaxed);
    neighbour.join().unwrap();
    assert!(
        taken < SPIN_TIME / 5,
        "without work it took {taken:?} of the {SPIN_TIME:?} that its neighbour had work for"
    );
}

/// What the calling thread has used of a core.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes no more than the structure that it is given.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "the clock of the thread");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The processors that this process may use.
fn cores() -> Vec<usize> {
    // SAFETY: a zeroed cpu_set_t is an empty set, and the call writes at most the size given.
    let set = unsafe {
        let mut set = std::mem::zeroed::<libc::cpu_set_t>();
        assert_eq!(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set), 0, "no affinity mask");
        set
    };
    // SAFETY: the index stays below the number of bits in the set.
    (0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect()
}
