//! What a checkpoint looks like, and what is no checkpoint.

use peregrine_protocol::ids::DurableLevel::Synced;
use peregrine_protocol::ids::{GroupId, QueueOffset};

use super::*;

/// A topic, a group, a deleted topic; in queue 0 a batch of an idempotent producer, and a place; saved in one slice.
fn bench() -> Bench {
    let mut bench = Bench { now: Nanos(0x0102_0304), ..Bench::empty(ONE_SHARD) };
    bench.create("t", 1);
    bench.change(bench.engine.decide_create_group("g", &[(TOPIC, StartAt::Earliest)], bench.now));
    bench.harden();
    bench.create("u", 1);
    bench.change(bench.engine.decide_delete("u", None, bench.now));
    bench.harden();
    let offer = BatchOffer {
        producer_id: ProducerId(0x77),
        producer_epoch: ProducerEpoch(5),
        payload_crc: 0x66,
        length: 0x40,
        records: 3,
        level: Synced,
        ..offer(0)
    };
    let Ok(ProduceDecision::Append(draft)) = bench.engine.decide_produce(&offer, bench.now) else { panic!() };
    bench.append(&draft, Vec::new());
    bench.harden();
    let Some(entry) = bench.begin(GroupId(2), TOPIC, QueueId(0)) else { panic!() };
    bench.append(&entry.draft, entry.payload.to_vec());
    bench.harden();
    bench
}

fn saved(bench: &mut Bench) -> Vec<u8> {
    save(bench, usize::MAX, |_| {}).0.concat()
}

/// The bytes of version 1. If this fails, old checkpoints can no longer be read: raise the version instead.
#[test]
fn golden_bytes_of_version_1() {
    // Time, and where the batch and the last entry end, as the bench has them.
    let (time, batch, end) = ([4, 3, 2, 1, 0, 0, 0, 0], [0x40, 0x12, 0, 0, 0, 0, 0, 0], [0xC0, 0x13, 0, 0, 0, 0, 0, 0]);
    let (queue, zero) = ([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0; 8]);
    let number = |number: u8| [number, 0, 0, 0, 0, 0, 0, 0];
    let records = [
        // Begin, of shard 0 of 1.
        [&[1, 1, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0][..], &end, &time].concat(),
        // Topic 1, with one queue, named t.
        [&[2, 1, 0, 0, 25, 0, 0, 0][..], &time, &[1, 1, 1, 0, 1, 0, 0, 0], &number(1), b"t"].concat(),
        // Group 2, of one topic: topic 1 from the earliest on; named g.
        [
            &[2, 1, 0, 0, 57, 0, 0, 0][..],
            &time,
            &[1, 4, 1, 0, 1, 0, 0, 0],
            &number(2),
            &time,
            &[&number(1)[..], &number(1), &zero].concat(),
            b"g",
        ]
        .concat(),
        // The queue, of one epoch, from 0 to 3; epoch 1 from 0 on; a chunk of one batch, 0 to 3, with 64 bytes of payload.
        [
            &[3, 1, 0, 0, 108, 0, 0, 0][..],
            &queue,
            &[1, 0, 0, 0],
            &[zero, number(3), batch, time].concat(),
            &[number(1), zero].concat(),
            &[zero, batch, time, number(3)].concat(),
            &[1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 64, 0],
        ]
        .concat(),
        // The place of group 2, at epoch 0 and offset 0.
        [&[5, 1, 0, 0, 48, 0, 0, 0][..], &queue, &[0; 4], &number(2), &zero, &zero, &end].concat(),
        // The producer, in epoch 5, with its one batch.
        [
            &[6, 1, 0, 0, 72, 0, 0, 0][..],
            &queue,
            &[5, 0, 0, 0],
            &[number(0x77), number(1), time, zero, batch].concat(),
            &[0x66, 0, 0, 0, 0x40, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat(),
        // Topic 3 was deleted.
        [&[7, 1, 0, 0, 16, 0, 0, 0][..], &number(3), &number(3)].concat(),
        // End; no index files; 3 is the highest id; nothing was lost.
        [&[8, 1, 0, 0, 32, 0, 0, 0][..], &end, &zero, &number(3), &zero].concat(),
    ];
    assert_eq!(saved(&mut bench()), records.concat());
}

/// Restores a changed checkpoint of [`bench`].
fn restore_changed(change: impl FnOnce(&mut Vec<u8>)) -> Result<(), RestoreError> {
    let mut bytes = saved(&mut bench());
    change(&mut bytes);
    let mut engine = Engine::new(ONE_SHARD);
    engine.restore(&bytes)?;
    engine.restore_end()
}

#[test]
fn what_a_newer_program_wrote_is_refused() {
    assert_eq!(restore_changed(|_| {}), Ok(()));
    assert_eq!(restore_changed(|bytes| bytes[0] = 9), Err(RestoreError::Newer { kind: 9, version: 1 }));
    assert_eq!(restore_changed(|bytes| bytes[1] = 2), Err(RestoreError::Newer { kind: 1, version: 2 }));
    assert_eq!(restore_changed(|bytes| bytes[2] = 1), Err(RestoreError::Newer { kind: 1, version: 1 }));
    let of_object = CatalogueChangeError::Version(3);
    assert_eq!(restore_changed(|bytes| bytes[8 + 24 + 8 + 8] = 3), Err(RestoreError::Catalogue(of_object)));
}

#[test]
fn what_is_cut_misplaced_or_of_another_shard_is_refused() {
    let whole = saved(&mut bench());
    for end in 0..whole.len() {
        let mut engine = Engine::new(ONE_SHARD);
        let restored = engine.restore(&whole[..end]).and_then(|()| engine.restore_end());
        assert!(matches!(restored, Err(RestoreError::Cut | RestoreError::Incomplete)), "{end}: {restored:?}");
    }
    let longer = restore_changed(|bytes| {
        bytes.splice(32..32, [0; 8]);
        bytes[4] += 8;
    });
    assert_eq!(longer, Err(RestoreError::Malformed(1)));
    let other = EngineOptions { shards: 2, ..ONE_SHARD };
    assert_eq!(Engine::new(other).restore(&whole), Err(RestoreError::OfAnother(HOME, 1)));
    let twice = [&whole[..32], &whole[..]].concat();
    assert_eq!(Engine::new(ONE_SHARD).restore(&twice), Err(RestoreError::Misplaced(1)));
    assert_eq!(Engine::new(ONE_SHARD).restore(&whole[32..]), Err(RestoreError::Misplaced(2)));
    let behind_the_end = [&whole[..], &whole[32..]].concat();
    assert_eq!(Engine::new(ONE_SHARD).restore(&behind_the_end), Err(RestoreError::Misplaced(2)));
}

/// What is wrong and looks right is for a checksum to find; nothing makes it panic.
#[test]
fn no_flipped_byte_makes_it_panic() {
    let whole = saved(&mut bench());
    for at in 0..whole.len() {
        for flip in [1, 0x80, 0xff] {
            // Many are an error, some say something else.
            let _is_refused = restore_changed(|bytes| bytes[at] ^= flip).is_err();
        }
    }
}

#[test]
fn what_was_dropped_before_a_checkpoint_is_known_to_be_elsewhere_after_it() {
    let mut bench = bench();
    for _ in 0..200 {
        bench.store(0, 1, Synced);
    }
    let to = bench.log[120].0.position;
    for queue in bench.engine.queues.iter_mut() {
        queue.index.drop_below(to);
        queue.start = QueueOffset(7);
    }
    bench.engine.indexed_to = to;
    let (sections, _) = save(&mut bench, 1000, |_| {});
    let mut engine = put_back(ONE_SHARD, None, &sections);
    engine.restore_end().expect("all of it is there");
    assert_eq!(engine.digest(), bench.engine.digest());
    let queue = engine.queues.iter().next().expect("one");
    let first = queue.index.iter().next().expect("some are held");
    assert!(first.position <= to && first.offset > QueueOffset(0));
    assert!(queue.index.is_held(first.offset) && !queue.index.is_held(QueueOffset(first.offset.0 - 1)));
    assert_eq!((queue.start, queue.end), (QueueOffset(7), QueueOffset(203)));
}
