//! A log that runs: appends, flushes, rolls, back-pressure, poison, stops.

use std::pin::pin;

use futures_lite::future::or;
use peregrine_protocol::entry::{Entry, entry_len};
use peregrine_protocol::ids::DurableLevel::{Memory, Synced};
use peregrine_protocol::ids::LogPosition;

use super::bench::{Bench, SimulatedLog, draft, payload};
use crate::limits::COLD_REST;
use crate::log::disk::simulated::Crash;
use crate::log::disk::{BLOCK, Disk};
use crate::log::log::CloseState;
use crate::log::mark::Mark;
use crate::log::recovery::RingFate;
use crate::log::task::Work;
use crate::log::{AppendRefused, CloseError};

#[test]
fn what_is_appended_is_read_back_from_ring_and_disk() {
    let bench = Bench::new();
    let mut process = bench.start();
    let appended = process.append(7, Synced, 1000).unwrap();
    assert_eq!(appended.end - appended.position, entry_len(1000));
    assert_eq!(process.log.published(), appended.end);
    process.wait_durable();
    let len = (appended.end - appended.position) as usize;
    let from_ring = process.log.read_ring(appended.position, len).unwrap().to_vec();
    let from_disk = bench.machine.block_on(process.log.read_disk(appended.position, len)).map_err(|_| ()).unwrap();
    assert_eq!(from_ring, *from_disk);
    let Ok(Entry::Full(header)) = Entry::decode(&from_disk, process.log.seal()) else { panic!("no entry") };
    assert_eq!((header.position, header.epoch), (appended.position, process.log.epoch()));
    header.check_payload(&from_disk[96..96 + 1000]).unwrap();
    let beyond = process.log.read_disk(LogPosition(1 << 40), 64);
    assert!(bench.machine.block_on(beyond).is_err());
}

#[test]
fn a_large_entry_is_published_when_it_is_whole_and_holds_back_what_follows() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append(0, Synced, 100).unwrap();
    let first_end = process.log.published();
    let (one, two) = (payload(1, 200 << 10), payload(3, 130 << 10));
    let mut large = process.log.begin_large(&draft(1, Synced, &one), process.now()).unwrap();
    assert!(large.appended.position.0.is_multiple_of(BLOCK as u64));
    process.append(2, Synced, 100).unwrap();
    let mut other = process.log.begin_large(&draft(3, Synced, &two), process.now()).unwrap();
    let small = process.append(4, Synced, 100).unwrap();
    assert!(process.log.published() < large.appended.end && process.log.published() >= first_end);
    while !process.log.copy_step(&mut other, &two) {
        process.wait();
    }
    process.wait_until(|log| log.durable() == large.appended.position);
    assert!(process.log.published() <= large.appended.position, "the one before it is not whole");
    while !process.log.copy_step(&mut large, &one) {}
    assert_eq!(process.log.published(), small.end);
    process.wait_durable();
    bench.crash(process, Crash::Power);
    bench.start().assert_recovered(0..5, RingFate::OtherBoot, 0);
}

#[test]
fn segments_follow_each_other_and_old_entries_are_read_from_them() {
    let bench = Bench::new();
    let mut process = bench.start();
    let mut places = Vec::new();
    for number in 0..400 {
        loop {
            match process.append(number, Memory, 50_000) {
                Ok(appended) => break places.push(appended),
                Err(AppendRefused::NoRoom) => process.wait(),
                Err(other) => panic!("{other}"),
            }
        }
    }
    process.wait_durable();
    assert!(process.log.counters().rolls >= 4, "{:?}", process.log.counters());
    for (number, place) in places.iter().enumerate() {
        let read = process.log.read_disk(place.position, (place.end - place.position) as usize);
        let bytes = bench.machine.block_on(read).map_err(|error| error.to_string()).unwrap();
        assert_eq!(bytes[96..104], (number as u64).to_le_bytes());
    }
    process.close().unwrap();
    assert!(bench.machine.take_breaches().is_empty());
    bench.start().assert_recovered(0..400, RingFate::Closed, 0);
}

#[test]
fn one_write_held_back_releases_nothing_behind_it() {
    let bench = Bench::new();
    let mut process = bench.start();
    let start = process.log.durable();
    process.faults.hold_write(Some(1));
    for number in 0..20 {
        process.append(number, Synced, 5000).unwrap();
        process.wait();
    }
    assert_eq!(process.log.durable(), start);
    assert!(process.log.counters().writes >= 2, "later writes went out");
    process.faults.hold_write(None);
    process.wait_durable();
    assert!(process.log.durable() > start);
}

#[test]
fn a_failed_write_poisons_and_the_ring_keeps_what_was_acknowledged() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.faults.fail_write(Some(2));
    process.append_all(0..1, Synced, 100);
    process.wait_durable();
    let durable = process.log.durable();
    process.append_all(1..5, Memory, 100);
    process.wait_until(SimulatedLog::is_poisoned);
    assert!(process.log.poison_reason().unwrap().contains("test switch"));
    assert_eq!(process.append(5, Memory, 100), Err(AppendRefused::Poisoned));
    assert_eq!(process.log.durable(), durable);
    let closed = process.close();
    assert!(matches!(closed, Err(CloseError::Poisoned { messages: 4, .. })), "{closed:?}");
    bench.machine.crash(Crash::Kill);
    bench.start().assert_recovered(0..5, RingFate::Recovered, 4);
}

#[test]
fn a_ring_that_is_not_flushed_fills_up_and_then_refuses() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.faults.hold_flushes(true);
    let mut appended = 0;
    while process.append(appended, Memory, 1000).is_ok() {
        appended += 1;
        process.turn();
    }
    assert_eq!(process.append(0, Memory, 1000), Err(AppendRefused::NoRoom));
    assert!(appended > 900, "{appended} entries of 1,152 bytes fill 1 MiB");
    assert_eq!(process.log.messages_only_in_ring(), appended);
    bench.crash(process, Crash::Kill);
    bench.start().assert_recovered(0..appended, RingFate::Recovered, appended);
}

#[test]
fn a_clean_stop_leaves_no_ring_and_refuses_appends() {
    let bench = Bench::new();
    let mut process = bench.start();
    process.append_all(0..10, Memory, 100);
    process.log.begin_close();
    assert_eq!(process.append(10, Memory, 100), Err(AppendRefused::Closing));
    process.close().unwrap();
    let process = bench.start();
    process.assert_recovered(0..10, RingFate::Closed, 0);
    assert!(process.report.base - process.report.cut >= 1 << 30, "positions are never used twice");
}

#[test]
fn the_largest_entry_finds_a_place_wherever_the_ring_ends() {
    // A large entry takes a segment of its own. The ring ends in every fourth: where a large entry would go, that segment must
    // be passed over.
    for small_first in [true, false] {
        let mut bench = Bench::new();
        bench.options.ring_bytes = 16 << 20;
        bench.options.segment_bytes = 4 << 20;
        bench.options.largest_entry = (4 << 20) - 4096;
        let mut process = bench.start();
        let payload = payload(0, (4 << 20) - 4096 - 96);
        for number in 0..24_u64 {
            if number.is_multiple_of(2) == small_first {
                process.append_all(number..number + 1, Memory, 100 + 2048 * number as usize);
                continue;
            }
            let draft = draft(number, Synced, &payload);
            let mut waits = 0;
            let mut large = loop {
                match process.log.begin_large(&draft, process.now()) {
                    Ok(large) => break large,
                    Err(refused) => assert_eq!(refused, AppendRefused::NoRoom),
                }
                process.wait();
                waits += 1;
                assert!(waits < 10_000, "entry {number} finds no place");
            };
            while !process.log.copy_step(&mut large, &payload) {}
            process.turn();
        }
        process.wait_durable();
        bench.crash(process, Crash::Power);
        assert_eq!(bench.start().seen.headers.len(), 24);
    }
}

/// A mark that closes excuses the missing ring: what stood only there was lost where the stop was killed behind such a mark.
#[test]
fn the_mark_that_closes_waits_for_every_write() {
    for making_segment in [false, true] {
        let bench = Bench::new();
        let mut process = bench.start();
        let now = process.now();
        let making = if making_segment { process.log.next_task(now) } else { None };
        process.append(0, Memory, 100).unwrap();
        process.log.begin_close();
        let flush = process.log.next_task(now).unwrap();
        assert!(!flush.is_background() && process.log.next_task(now).is_none(), "a flush is in flight");
        process.log.complete(bench.machine.block_on(flush.run()), now);
        if let Some(making) = making {
            assert!(process.log.next_task(now).is_none(), "a file is being zeroed");
            process.log.complete(bench.machine.block_on(making.run()), now);
        }
        let mark = process.log.next_task(now).unwrap();
        assert!(matches!(mark.0, Work::Mark { mark: Mark { closes: true, .. }, .. }));
        process.log.complete(bench.machine.block_on(mark.run()), now);
        assert_eq!(process.log.close_state(), CloseState::Done);
        process.log.finish_close().unwrap();
        bench.start().assert_recovered(0..1, RingFate::Closed, 0);
    }
}

#[test]
fn a_block_for_readers_is_read_in_a_gap_between_flushes() {
    let bench = Bench::new();
    let mut process = bench.start();
    let old = process.append(1, Synced, 1000).unwrap();
    process.wait_durable();
    process.append(2, Synced, 1000).unwrap();
    let now = process.now();
    let write = process.log.next_task(now).unwrap();
    assert!(matches!(write.0, Work::Write { .. }));

    let need = (old.end - old.position) as usize;
    let mut read = pin!(process.log.reader().read_shared(old.position, need, need, process.log.durable()));
    let disk = bench.machine.disk(0);
    let while_it_lasts = or(async { Some(read.as_mut().await) }, async {
        disk.pause(10 * COLD_REST).await;
        None
    });
    assert!(bench.machine.block_on(while_it_lasts).is_none(), "a flush is under way");
    let completion = bench.machine.block_on(write.run());
    let now = process.now();
    let _ = process.log.complete(completion, now);
    assert!(bench.machine.block_on(read).is_ok());
}
