use peregrine_protocol::entry::DirectoryId;
use peregrine_protocol::ids::{Epoch, ShardId};

use super::*;
use crate::log::options::{BootId, RunId};

struct Memory(Vec<u8>);

impl RingMemory for Memory {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
    fn store_u64(&mut self, offset: usize, value: u64) {
        self.0[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }
    fn resize(&mut self, len: usize) -> std::io::Result<()> {
        self.0.resize(len, 0);
        Ok(())
    }
}

const SIZE: u64 = 16 * 4096;

fn page() -> RingPage {
    RingPage {
        directory: DirectoryId(1),
        device: 2,
        inode: 3,
        shard: ShardId(4),
        boot: BootId(5),
        log: RunId(7),
        run: RunId(7),
        epoch: Epoch(6),
        size: SIZE,
    }
}

fn ring(start: u64) -> Ring<Memory> {
    Ring::set_up(Memory(vec![0xEE; PAGE_LEN + SIZE as usize]), &page(), LogPosition(start))
}

#[test]
fn a_byte_is_reused_only_below_durable() {
    let mut ring = ring(3 * SIZE + 4096);
    let start = ring.tail();
    assert!(ring.has_room_to(start + SIZE) && !ring.has_room_to(start + SIZE + 1));
    ring.reserve(start + 8192);
    ring.slice_mut(start, 8192).fill(1);
    assert_eq!(ring.read(start, 8192), None, "not published");
    ring.publish(start + 8192);
    assert_eq!(ring.read(start, 8192), Some(&[1; 8192][..]));
    ring.set_durable(start + 4096);
    assert!(ring.has_room_to(start + SIZE + 4096) && !ring.has_room_to(start + SIZE + 4097));
    ring.reserve(ring.lap_end(start));
    ring.publish(ring.tail());
    assert_eq!(ring.read(start, 64), Some(&[1; 64][..]), "durable bytes stay readable");
    ring.reserve(start + SIZE + 64);
    assert_eq!(ring.read(start, 64), None, "about to be written over");
    assert!(ring.read(start + 64, 64).is_some());
}

#[test]
fn nothing_is_read_from_before_the_run() {
    let ring = ring(8192);
    assert_eq!(ring.read(LogPosition(4096), 64), None);
    assert_eq!(ring.read(LogPosition(u64::MAX), 64), None);
}

#[test]
fn the_page_tells_the_larger_published_and_the_lower_durable() {
    let mut ring = ring(0);
    ring.reserve(LogPosition(8192));
    ring.publish(LogPosition(8192));
    ring.set_durable(LogPosition(4096));
    let Memory(mut file) = ring.memory;
    assert!(StoredPositions::read(&file).agree(), "each is stored twice");
    file[192..200].copy_from_slice(&4096_u64.to_le_bytes());
    file[256..264].copy_from_slice(&8192_u64.to_le_bytes());
    let ready = PageState::Ready { page: page(), published: LogPosition(8192), durable: LogPosition(4096) };
    assert_eq!(PageState::read(&file), Ok(ready));
    for bit in 8 * 8..84 * 8 {
        file[bit / 8] ^= 1 << (bit % 8);
        assert!(PageState::read(&file).is_err(), "bit {bit}");
        file[bit / 8] ^= 1 << (bit % 8);
    }
    file[0] ^= 1;
    assert_eq!(PageState::read(&file), Err(RingUnfit::Magic));
    assert_eq!(PageState::read(&file[..4095]), Err(RingUnfit::Magic));
    let mut memory = Memory(file);
    Ring::clear(&mut memory);
    assert_eq!(PageState::read(&memory.0), Ok(PageState::Unready));
}

#[test]
fn what_an_earlier_run_left_may_wrap_around() {
    let mut file = vec![0; PAGE_LEN];
    file.extend((0..SIZE).map(|at| (at / 4096) as u8));
    let from = LogPosition(5 * SIZE - 4096);
    let [first, second] = leftover(&file, SIZE, from, from + 8192);
    assert_eq!((first, second), (&[15; 4096][..], &[0; 4096][..]));
    let [first, second] = leftover(&file, SIZE, from, from + SIZE);
    assert_eq!((first.len(), second.len()), (4096, SIZE as usize - 4096));
}
