//! An index file that is not what it was, or is another's: an error, or no difference to any look-up.

use peregrine_protocol::entry::Codec;
use peregrine_protocol::ids::{LogPosition, QueueId, QueueOffset, TopicId};

use super::segment::{BASE, Bench, Draft, mixed, small_bounds};
use crate::log::disk::simulated::Random;
use crate::log::disk::{BLOCK, Disk, DiskFile};
use crate::log::index::builder::Bounds;
use crate::log::index::compare::{Reading, compare_index};
use crate::log::index::format::BlockSeal;
use crate::log::index::{BadIndex, IndexError, IndexedBatch, KeyHash, SealedSegment, Stop};
use crate::log::options::RunId;

/// What the look-ups of one kind answer; `None` for those that end with an error of the index.
#[derive(Debug, PartialEq)]
struct Answers {
    batches: Vec<Option<Vec<IndexedBatch>>>,
    positions: Vec<Option<Vec<LogPosition>>>,
}

impl Answers {
    fn all(&self) -> bool {
        self.batches.iter().all(Option::is_some) && self.positions.iter().all(Option::is_some)
    }

    /// Whether each that is there is the same.
    fn agree_with(&self, right: &Self) -> bool {
        let batches = self.batches.iter().zip(&right.batches).all(|(this, right)| this.is_none() || this == right);
        let positions =
            self.positions.iter().zip(&right.positions).all(|(this, right)| this.is_none() || this == right);
        batches && positions
    }
}

fn checked<T>(result: Result<T, IndexError>) -> Option<T> {
    result.map_err(|error| assert!(error.is_bad_index(), "{error}")).ok()
}

/// Asks for everything, so that every block is needed for some answer.
fn ask(bench: &Bench, draft: &Draft) -> Option<Answers> {
    let index = checked(bench.open())?;
    let mut answers = Answers { batches: Vec::new(), positions: Vec::new() };
    bench.machine.block_on(async {
        for queue in (0..3).map(QueueId) {
            for topic in (1..3).map(TopicId) {
                answers.batches.push(checked(index.lookup(topic, queue, QueueOffset(0), usize::MAX).await));
            }
        }
        let mut keys: Vec<_> = draft.keys.iter().map(|(topic, key, _)| KeyHash::of(*topic, key)).collect();
        keys.sort_unstable();
        keys.dedup();
        for hash in keys {
            answers.positions.push(checked(index.lookup_key(hash, LogPosition(0), usize::MAX).await));
        }
        answers.positions.push(checked(index.entry_at(BASE).await).map(|position| vec![position]));
    });
    Some(answers)
}

fn assert_seen(bench: &Bench, draft: &Draft, right: &Answers, what: &str) {
    if let Some(answers) = ask(bench, draft) {
        assert!(!answers.all(), "{what}: not seen");
        assert!(answers.agree_with(right), "{what}: a wrong answer");
    }
}

#[test]
fn every_flipped_bit_of_a_small_index_is_seen() {
    let mut draft = Draft::new();
    for n in 0..9_u64 {
        let key = [Some(vec![n as u8; 3])];
        draft.push_batch(1, 0, 0, Codec::None, &key, 10);
    }
    let bench = Bench::of(&draft);
    bench.build(Bounds::default()).unwrap();
    let right = ask(&bench, &draft).unwrap();
    let file = bench.read_index();
    assert_eq!((file.len() / BLOCK, right.all()), (5, true), "header, batches, keys, entries, contents");
    for (offset, &byte) in file.iter().enumerate() {
        // Of what is zero one bit a byte: the checksum does not know the difference.
        for bit in if byte == 0 { (offset % 8) as u8..(offset % 8) as u8 + 1 } else { 0..8 } {
            bench.machine.flip(0, &bench.index_name(), offset as u64, bit);
            assert_seen(&bench, &draft, &right, &format!("bit {bit} of byte {offset}"));
            bench.machine.flip(0, &bench.index_name(), offset as u64, bit);
        }
    }
    assert_eq!(ask(&bench, &draft).unwrap(), right);
}

#[test]
fn flipped_bits_of_an_index_with_many_trees_are_seen() {
    let draft = mixed();
    let bench = Bench::of(&draft);
    let report = bench.build(small_bounds()).unwrap();
    let right = ask(&bench, &draft).unwrap();
    let mut random = Random::new(1);
    for _ in 0..3000 {
        let (offset, bit) = (random.below(report.bytes), random.below(8) as u8);
        bench.machine.flip(0, &bench.index_name(), offset, bit);
        assert_seen(&bench, &draft, &right, &format!("bit {bit} of byte {offset}"));
        bench.machine.flip(0, &bench.index_name(), offset, bit);
    }
}

/// An index that says another thing than its segment, its checksums right: a fault of a program, not of the medium.
#[test]
fn an_index_that_is_whole_and_wrong_is_seen_by_a_comparison() {
    let draft = mixed();
    let bench = Bench::of(&draft);
    bench.build(Bounds::default()).unwrap();
    let names = bench.names();
    let compare = || {
        let (options, segment) = (&draft.options, draft.sealed());
        let compared = compare_index(&bench.disk, options, &segment, Reading::AtOnce, Stop::default());
        bench.machine.block_on(compared)
    };
    compare().unwrap();
    let file = bench.read_index();
    for (number, at) in (0..file.len() / BLOCK).flat_map(|block| [(block, 96), (block, 1000)]) {
        let mut other = file.clone();
        let block = &mut other[number * BLOCK..][..BLOCK];
        block[at] ^= 1;
        BlockSeal::new(&draft.options, &draft.sealed()).put(number as u32, block);
        bench.replace_index(&other);
        let error = compare().unwrap_err();
        assert!(error.is_bad_index(), "block {number}: {error}");
        let differs = matches!(error, IndexError::Bad { reason: BadIndex::Differs(n), .. } if n == number as u32);
        assert!(differs || number == 0 || number + 1 == file.len() / BLOCK, "block {number}: {error}");
    }
    bench.replace_index(&file);
    compare().unwrap();
    assert_eq!(bench.names(), names, "nothing is made and nothing renamed");
}

#[test]
fn blocks_that_cannot_be_read_or_stand_elsewhere_are_seen() {
    let draft = mixed();
    let bench = Bench::of(&draft);
    bench.build(small_bounds()).unwrap();
    let right = ask(&bench, &draft).unwrap();
    let file = bench.read_index();
    for block in 0..file.len() / BLOCK {
        bench.machine.set_readable(0, &bench.index_name(), block, false);
        assert_seen(&bench, &draft, &right, &format!("unreadable block {block}"));
        bench.machine.set_readable(0, &bench.index_name(), block, true);
        let mut swapped = file.clone();
        let other = (block + 1) % (file.len() / BLOCK);
        swapped.copy_within(other * BLOCK..(other + 1) * BLOCK, block * BLOCK);
        bench.replace_index(&swapped);
        assert_seen(&bench, &draft, &right, &format!("block {other} in the place of block {block}"));
        bench.replace_index(&file);
    }
}

#[test]
fn a_file_of_another_length_is_none() {
    let draft = mixed();
    let bench = Bench::of(&draft);
    bench.build(small_bounds()).unwrap();
    let file = bench.read_index();
    for blocks in (0..file.len() / BLOCK).chain([file.len() / BLOCK + 1]) {
        let mut other = file.clone();
        other.resize(blocks * BLOCK, 0);
        bench.replace_index(&other);
        let Err(IndexError::Bad { reason: BadIndex::Length(len), .. }) = bench.open() else {
            panic!("{blocks} blocks")
        };
        assert_eq!(len, (blocks * BLOCK) as u64);
    }
    bench.replace_index(&file);
    bench.open().unwrap();
}

/// Why a file is not the index of that segment.
fn refused(bench: &Bench) -> BadIndex {
    match bench.open() {
        Err(IndexError::Bad { reason, .. }) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it passed"),
    }
}

#[test]
fn the_index_of_another_segment_shard_or_directory_is_none() {
    let draft = mixed();
    let mut bench = Bench::of(&draft);
    bench.build(Bounds::default()).unwrap();
    let (options, segment) = (bench.options.clone(), bench.segment.clone());
    bench.options.shard.0 += 1;
    assert_eq!(refused(&bench), BadIndex::Elsewhere);
    bench.options = options.clone();
    bench.options.directory.id.0 += 1;
    assert_eq!(refused(&bench), BadIndex::Elsewhere);
    bench.options = options.clone();
    bench.options.directory.secret.0[7] += 1;
    assert_eq!(refused(&bench), BadIndex::Checksum(0));
    bench.options = options;

    let mut identity = draft.identity();
    identity.run = RunId(99);
    bench.segment = SealedSegment::new(&identity, draft.end(), &[]);
    assert_eq!(refused(&bench), BadIndex::Segment);
    bench.segment = SealedSegment::new(&draft.identity(), draft.end() + 64, &[]);
    assert_eq!(refused(&bench), BadIndex::Segment);
    let file = bench.read_index();
    for (base, epoch) in [(4096, 0), (0, 1)] {
        let mut identity = draft.identity();
        identity.base += base;
        identity.epoch.0 += epoch;
        bench.segment = SealedSegment::new(&identity, draft.end(), &[]);
        assert!(matches!(bench.open(), Err(error @ IndexError::Io { .. }) if !error.is_bad_index()), "there is none");
        bench.machine.block_on(async {
            let copy = bench.disk.create(&bench.index_name(), file.len() as u64).await.unwrap();
            copy.write_at(file.clone(), 0).await.unwrap();
        });
        assert_eq!(refused(&bench), BadIndex::Segment);
    }
    bench.segment = segment;
    bench.open().unwrap();
}

#[test]
fn what_is_no_index_or_of_a_later_version_is_none() {
    let draft = mixed();
    let bench = Bench::of(&draft);
    bench.build(Bounds::default()).unwrap();
    let file = bench.read_index();
    bench.replace_index(&vec![0; file.len()]);
    assert_eq!(refused(&bench), BadIndex::Magic);
    let mut later = file;
    later[8] = 3;
    bench.replace_index(&later);
    assert_eq!(refused(&bench), BadIndex::Version(3));
}

/// The format as it was first written.
#[test]
fn the_header_has_the_bytes_that_it_always_had() {
    let draft = mixed();
    let bench = Bench::of(&draft);
    bench.build(Bounds::default()).unwrap();
    let file = bench.read_index();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    let (first, second) = (
        "506753496e646578010000000500000001000000000000000000000000000000",
        "060000000000000000001000000000000700000000000000c0de150000000000",
    );
    assert_eq!(hex(&file[..64]), [first, second].concat());
    let (third, fourth) = (
        "00002a36fe9c97170000000002000000050000000300000004000000000000002b00000000000000",
        "29000000000000007a0000000000000052000000000000000000000000000000",
    );
    assert_eq!(hex(&file[64..136]), [third, fourth].concat());
    assert!(file[136..BLOCK - 4].iter().all(|&byte| byte == 0));
    assert_eq!(hex(&file[BLOCK - 4..BLOCK]), "1c9ecc7c");
}
