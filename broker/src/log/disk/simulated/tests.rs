//! What the simulated machine promises: the contract of every disk, and the crashes as the module's table draws them.

use super::*;
use crate::log::disk::tests::contract;
use crate::log::disk::{Access, BLOCK, Disk, DiskFile, RingHost, RingMemory};

const SEEDS: u64 = 200;

fn block(byte: u8) -> Vec<u8> {
    vec![byte; BLOCK]
}

/// A zeroed, synced, named file of `blocks` blocks.
async fn zeroed(disk: &SimulatedDisk, name: &str, blocks: usize) {
    let file = disk.create(name, (blocks * BLOCK) as u64).await.expect("create");
    file.write_at(vec![0; blocks * BLOCK], 0).await.expect("zero");
    file.sync().await.expect("sync");
    disk.sync_directory().await.expect("sync_directory");
}

#[test]
fn keeps_the_contract_of_a_disk() {
    for seed in 0..SEEDS {
        let machine = Machine::new(seed, 1, Conditions { slow_one_in: 9, ..Conditions::default() });
        machine.block_on(contract::check(&machine.disk(0)));
    }
}

#[test]
fn what_was_synced_survives_power_loss() {
    for seed in 0..SEEDS {
        let machine = Machine::new(seed, 1, Conditions::default());
        let disk = machine.disk(0);
        machine.block_on(async {
            zeroed(&disk, "log", 4).await;
            let file = disk.open("log", Access::Append).await.expect("open");
            file.write_at(block(1), 0).await.expect("append");
            disk.rename("log", "renamed").await.expect("rename");
            disk.sync_directory().await.expect("sync_directory");
        });
        machine.crash(Crash::Power);
        let bytes = machine.block_on(async {
            assert_eq!(disk.list().await.expect("list"), ["renamed"]);
            let file = disk.open("renamed", Access::Read).await.expect("open");
            file.read_at(0, 4 * BLOCK).await.expect("read")
        });
        assert!(bytes[..BLOCK].iter().all(|byte| *byte == 1) && bytes[BLOCK..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn what_was_not_synced_survives_power_loss_in_part() {
    let (mut none, mut some, mut all, mut inside_a_block) = (0, 0, 0, 0);
    for seed in 0..SEEDS {
        let machine = Machine::new(seed, 1, Conditions::default());
        let disk = machine.disk(0);
        machine.block_on(async {
            zeroed(&disk, "log", 4).await;
            let file = disk.open("log", Access::Prepare).await.expect("open");
            file.write_at(vec![1; 4 * BLOCK], 0).await.expect("write");
        });
        machine.crash(Crash::Power);
        let bytes = machine.block_on(async {
            let file = disk.open("log", Access::Read).await.expect("open");
            file.read_at(0, 4 * BLOCK).await.expect("read")
        });
        match bytes.iter().map(|byte| usize::from(*byte)).sum::<usize>() {
            0 => none += 1,
            count if count == 4 * BLOCK => all += 1,
            count => {
                some += 1;
                inside_a_block += usize::from(!count.is_multiple_of(BLOCK));
            }
        }
    }
    assert!(none > 0 && all > 0 && some > inside_a_block && inside_a_block > 0, "{none} {some} {all} {inside_a_block}");
}

#[test]
fn names_not_synced_may_be_lost_or_kept() {
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..SEEDS {
        let machine = Machine::new(seed, 1, Conditions::default());
        let disk = machine.disk(0);
        machine.block_on(async {
            zeroed(&disk, "temporary", 1).await;
            disk.rename("temporary", "final").await.expect("rename");
            drop(disk.create("other", BLOCK as u64).await.expect("create"));
        });
        machine.crash(Crash::Power);
        outcomes.insert(machine.block_on(disk.list()).expect("list"));
    }
    assert_eq!(outcomes.len(), 4, "{outcomes:?}");
}

#[test]
fn a_write_in_flight_may_land_after_a_kill_and_never_after_a_power_loss() {
    let (mut landed_late, mut never_landed) = (0, 0);
    for seed in 0..SEEDS {
        for crash in [Crash::Kill, Crash::Power] {
            let machine = Machine::new(seed, 1, Conditions::default());
            let disk = machine.disk(0);
            machine.block_on(zeroed(&disk, "log", 1));
            let killed = machine.survive(|| {
                machine.arm(3, crash);
                machine.block_on(async {
                    let file = disk.open("log", Access::Append).await.expect("open");
                    file.write_at(block(1), 0).await.expect("append");
                });
            });
            assert_eq!(killed, Err(crash));
            machine.crash(crash);
            let read = || machine.block_on(async { disk.open("log", Access::Read).await?.read_at(0, BLOCK).await });
            let early = read().expect("read");
            while machine.advance(u64::MAX) {}
            let late = read().expect("read");
            assert!(crash == Crash::Kill || early == late);
            landed_late += usize::from(early != late);
            never_landed += usize::from(late == block(0));
        }
    }
    assert!(landed_late > 0 && never_landed > 0, "{landed_late} {never_landed}");
}

#[test]
fn a_kill_leaves_the_ring_as_it_stood_at_that_store() {
    for steps in 0..5 {
        let machine = Machine::new(7, 1, Conditions::default());
        let rings = machine.rings();
        drop(rings.create("ring", 2 * BLOCK).expect("create"));
        let ended = machine.survive(|| {
            let mut ring = rings.open("ring").expect("open").expect("made above");
            machine.arm(steps, Crash::Kill);
            ring.bytes_mut()[BLOCK] = 1;
            ring.store_u64(0, 1);
            ring.store_u64(8, 1);
            ring.store_u64(0, 2);
            ring.store_u64(8, 2);
        });
        assert_eq!(ended, Err(Crash::Kill));
        machine.crash(Crash::Kill);
        let ring = rings.open("ring").expect("open").expect("survives");
        let found = (ring.bytes()[BLOCK], ring.bytes()[0], ring.bytes()[8]);
        assert_eq!(found, [(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 2, 1)][steps as usize]);
    }
}

#[test]
fn power_takes_rings_and_changes_the_boot_id() {
    let machine = Machine::new(1, 1, Conditions::default());
    let rings = machine.rings();
    drop(rings.create("ring", BLOCK).expect("create"));
    let boot = machine.boot_id();
    machine.crash(Crash::Kill);
    assert_eq!(machine.boot_id(), boot);
    assert!(rings.open("ring").expect("open").is_some());
    machine.crash(Crash::Power);
    assert_ne!(machine.boot_id(), boot);
    assert!(rings.open("ring").expect("open").is_none());
}

#[test]
fn a_mapped_ring_is_locked() {
    let machine = Machine::new(1, 1, Conditions::default());
    let rings = machine.rings();
    let held = rings.create("ring", BLOCK).expect("create");
    assert!(rings.open("ring").is_err());
    drop(held);
    assert!(rings.open("ring").expect("open").is_some());
}

#[test]
fn a_block_appended_twice_is_noticed() {
    let machine = Machine::new(1, 1, Conditions::default());
    let disk = machine.disk(0);
    machine.block_on(async {
        zeroed(&disk, "log", 2).await;
        let file = disk.open("log", Access::Append).await.expect("open");
        file.write_at(block(1), 0).await.expect("append");
        file.write_at(block(1), BLOCK as u64).await.expect("append");
        assert!(machine.take_breaches().is_empty());
        file.write_at(block(2), 0).await.expect("append");
    });
    assert_eq!(machine.take_breaches(), [Breach::Rewritten { shard: 0, file: "log".to_owned(), block: 0 }]);
}

#[test]
fn a_write_into_an_earlier_process_s_file_is_noticed() {
    let machine = Machine::new(1, 1, Conditions::default());
    let disk = machine.disk(0);
    machine.block_on(zeroed(&disk, "log", 2));
    machine.crash(Crash::Kill);
    machine.block_on(async {
        let file = disk.open("log", Access::Append).await.expect("open");
        file.write_at(block(1), 0).await.expect("append");
    });
    assert_eq!(machine.take_breaches(), [Breach::Inherited { shard: 0, file: "log".to_owned() }]);
}

#[test]
fn one_seed_gives_one_trace() {
    let run = |seed| {
        let machine = Machine::new(seed, 1, Conditions { fail_write_one_in: 50, ..Conditions::default() });
        let disk = machine.disk(0);
        machine.block_on(async {
            for round in 0..20 {
                if let Ok(file) = disk.create(&format!("file-{round}"), 4 * BLOCK as u64).await {
                    // Injected failures are part of the run.
                    let _ = file.write_at(vec![round; 4 * BLOCK], 0).await;
                    let _ = file.sync().await;
                }
            }
        });
        machine.crash(Crash::Kill);
        machine.crash(Crash::Power);
        machine.trace()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}
