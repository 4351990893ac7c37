//! The same on a real disk, and how long the steps are there.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use peregrine_protocol::entry::Codec;
use peregrine_protocol::ids::Nanos;

use super::lookups::check;
use super::segment::{Draft, FIRST_TIME, mixed};
use crate::log::disk::uring::UringDisk;
use crate::log::index::{SegmentIndex, Stop, build_index};
use crate::log::options::LogOptions;
use crate::log::tests::device::on_this_disk;

#[test]
fn an_index_on_a_real_disk_finds_all() {
    on_this_disk(async |path: std::path::PathBuf, _: LogOptions| {
        let disk = UringDisk::new(path);
        let draft = mixed();
        draft.write(&disk).await;
        build_index(&disk, &draft.options, &draft.sealed(), Stop::default()).await.unwrap();
        let index = SegmentIndex::open(&disk, &draft.options, &draft.sealed()).await.unwrap();
        check(&index, &draft).await;
    });
}

/// Runs a future and measures each of its polls: as the clock goes, and what the thread ran of it.
struct Timed<F> {
    work: F,
    polls: Polls,
}

#[derive(Clone)]
struct Polls {
    elapsed: Histogram<u64>,
    ran: Histogram<u64>,
}

/// What this thread has run so far: on a machine that others use too it says more than a clock.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a value of ours that lives across the call.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl<F: Future + Unpin> Future for Timed<F> {
    type Output = (F::Output, Polls);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (since, ran) = (Instant::now(), thread_time());
        let polled = Pin::new(&mut self.work).poll(context);
        self.polls.ran.record(thread_time().checked_sub(ran).unwrap().as_nanos() as u64).unwrap();
        self.polls.elapsed.record(since.elapsed().as_nanos() as u64).unwrap();
        polled.map(|output| (output, self.polls.clone()))
    }
}

/// How long the reactor is kept from others, and how long the whole takes:
/// `cargo test --release -p peregrine-broker --lib log::index::tests::device -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn steps_of_making_the_index_of_64_mib() {
    for records in [1, 16, 1000] {
        on_this_disk(async move |path: std::path::PathBuf, _: LogOptions| {
            let mut draft = Draft::new();
            let mut n = 0_u64;
            while draft.bytes.len() < 64 << 20 {
                let keys: Vec<_> = (0..records).map(|key| Some(format!("key-{:012}", n + key).into_bytes())).collect();
                n += records;
                draft.time = Nanos(FIRST_TIME + n * 10_000);
                draft.push_batch(1, n as u32 % 64, 0, Codec::None, &keys, 128);
            }
            let disk = UringDisk::new(path);
            draft.write(&disk).await;
            let since = Instant::now();
            let (options, sealed) = (draft.options.clone(), draft.sealed());
            let work = pin!(build_index(&disk, &options, &sealed, Stop::default()));
            let empty = Histogram::new(3).unwrap();
            let polls = Polls { elapsed: empty.clone(), ran: empty };
            let (report, polls) = Timed { work, polls }.await;
            let report = report.unwrap();
            eprintln!("{records} records a batch: {:?} in all, {report:?}", since.elapsed());
            for (what, polls) in [("elapsed", &polls.elapsed), ("ran", &polls.ran)] {
                let at = |quantile| Duration::from_nanos(polls.value_at_quantile(quantile));
                eprintln!(
                    "  {} steps {what}: p50 {:?}, p99 {:?}, p99.9 {:?}, longest {:?}",
                    polls.len(),
                    at(0.5),
                    at(0.99),
                    at(0.999),
                    at(1.0),
                );
            }
        });
    }
}
