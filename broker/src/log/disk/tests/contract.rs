//! The behaviour that every [`Disk`] owes the log, as one suite that runs on each implementation. What a crash may take is
//! not here: only the simulated disk can be crashed, and its own tests say it.

use std::io;

use crate::log::disk::{Access, BLOCK, Disk, DiskFile};

/// Runs every case in a directory that is empty at first and is left as the cases leave it.
pub async fn check<D: Disk>(disk: &D) {
    starts_empty(disk).await;
    names_come_and_go(disk).await;
    what_is_written_is_read(disk).await;
    reads_end_with_the_file(disk).await;
    a_file_grows(disk).await;
    writes_in_flight_together_all_land(disk).await;
    a_removed_file_stays_readable_while_open(disk).await;
}

fn filled<D: Disk>(disk: &D, blocks: usize, byte: u8) -> D::Buffer {
    let mut buffer = disk.buffer(blocks * BLOCK);
    assert_eq!(buffer.len(), blocks * BLOCK, "a buffer has the length asked for");
    buffer.fill(byte);
    buffer
}

async fn sorted_names<D: Disk>(disk: &D) -> Vec<String> {
    let mut names = disk.list().await.expect("list");
    names.sort();
    names
}

async fn starts_empty<D: Disk>(disk: &D) {
    assert!(sorted_names(disk).await.is_empty());
    let missing = disk.open("missing", Access::Read).await.err().map(|error| error.kind());
    assert_eq!(missing, Some(io::ErrorKind::NotFound));
}

async fn names_come_and_go<D: Disk>(disk: &D) {
    drop(disk.create("one", BLOCK as u64).await.expect("create"));
    assert!(disk.create("one", BLOCK as u64).await.is_err(), "a name is given once");
    drop(disk.create("two", 4 * BLOCK as u64).await.expect("create"));
    assert_eq!(sorted_names(disk).await, ["one", "two"]);
    assert!(disk.rename("one", "two").await.is_err(), "a rename replaces nothing");
    disk.rename("one", "three").await.expect("rename");
    assert_eq!(sorted_names(disk).await, ["three", "two"]);
    assert!(disk.rename("one", "four").await.is_err(), "what is not there cannot be renamed");
    assert!(disk.remove("one").await.is_err(), "what is not there cannot be removed");
    disk.remove("three").await.expect("remove");
    disk.sync_directory().await.expect("sync_directory");
    let two = disk.open("two", Access::Append).await.expect("open");
    assert_eq!(two.size(), 4 * BLOCK as u64, "the size reserved is the size of the file");
    disk.remove("two").await.expect("remove");
}

async fn what_is_written_is_read<D: Disk>(disk: &D) {
    let file = disk.create("data", 8 * BLOCK as u64).await.expect("create");
    file.write_at(filled(disk, 8, 0), 0).await.expect("write zeros");
    file.sync().await.expect("sync");
    file.write_at(filled(disk, 2, 7), 3 * BLOCK as u64).await.expect("write");
    drop(file);
    let file = disk.open("data", Access::Append).await.expect("open");
    file.write_at(filled(disk, 1, 9), 5 * BLOCK as u64).await.expect("append");
    let reader = disk.open("data", Access::Read).await.expect("open");
    let bytes = reader.read_at(0, 8 * BLOCK).await.expect("read");
    let firsts: Vec<u8> = bytes.chunks(BLOCK).map(|block| block[BLOCK - 1]).collect();
    assert_eq!(firsts, [0, 0, 0, 7, 7, 9, 0, 0]);
    disk.remove("data").await.expect("remove");
}

async fn reads_end_with_the_file<D: Disk>(disk: &D) {
    let file = disk.create("short", 2 * BLOCK as u64).await.expect("create");
    file.write_at(filled(disk, 2, 1), 0).await.expect("write");
    assert_eq!(file.read_at(BLOCK as u64, 4 * BLOCK).await.expect("read").len(), BLOCK);
    assert_eq!(file.read_at(2 * BLOCK as u64, BLOCK).await.expect("read").len(), 0);
    disk.remove("short").await.expect("remove");
}

async fn a_file_grows<D: Disk>(disk: &D) {
    let file = disk.create("growing", BLOCK as u64).await.expect("create");
    file.write_at(filled(disk, 1, 1), 0).await.expect("write");
    file.extend(3 * BLOCK as u64).await.expect("extend");
    assert_eq!(file.size(), 3 * BLOCK as u64);
    file.write_at(filled(disk, 2, 2), BLOCK as u64).await.expect("write behind the old end");
    file.sync().await.expect("sync");
    let reader = disk.open("growing", Access::Read).await.expect("open");
    let bytes = reader.read_at(0, 4 * BLOCK).await.expect("read");
    assert_eq!(bytes.chunks(BLOCK).map(|block| block[9]).collect::<Vec<_>>(), [1, 2, 2]);
    disk.remove("growing").await.expect("remove");
}

async fn writes_in_flight_together_all_land<D: Disk>(disk: &D) {
    const WRITES: usize = 8;
    let file = disk.create("together", (WRITES * BLOCK) as u64).await.expect("create");
    file.write_at(filled(disk, WRITES, 0), 0).await.expect("write zeros");
    file.sync().await.expect("sync");
    drop(file);
    let file = disk.open("together", Access::Append).await.expect("open");
    let mut writes = Vec::new();
    for index in (0..WRITES).rev() {
        writes.push(Box::pin(file.write_at(filled(disk, 1, index as u8 + 1), (index * BLOCK) as u64)));
    }
    let mut left = writes.len();
    let mut done = [false; WRITES];
    std::future::poll_fn(|context| {
        for (write, done) in writes.iter_mut().zip(&mut done) {
            if *done {
                continue;
            }
            if let std::task::Poll::Ready(result) = write.as_mut().poll(context) {
                result.expect("write");
                *done = true;
                left -= 1;
            }
        }
        if left == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    let bytes = file.read_at(0, WRITES * BLOCK).await.expect("read");
    for (index, block) in bytes.chunks(BLOCK).enumerate() {
        assert!(block.iter().all(|byte| *byte == index as u8 + 1), "block {index}");
    }
    drop(writes);
    disk.remove("together").await.expect("remove");
}

async fn a_removed_file_stays_readable_while_open<D: Disk>(disk: &D) {
    let file = disk.create("gone", BLOCK as u64).await.expect("create");
    file.write_at(filled(disk, 1, 3), 0).await.expect("write");
    disk.remove("gone").await.expect("remove");
    assert!(file.read_at(0, BLOCK).await.expect("read").iter().all(|byte| *byte == 3));
    assert!(sorted_names(disk).await.is_empty());
}
