//! What the log promises never to do, watched all the time, whether or not a crash punishes it. A rule that only the right
//! crash at the right step would show broken is seen here on every run.

use std::collections::BTreeMap;

use peregrine_protocol::ids::{Epoch, ShardId};

use super::directory::{Directory, Inode};
use super::operation::{Pending, Request};
use super::world::World;
use crate::log::chain::Chain;
use crate::log::disk::BLOCK;
use crate::log::files::{FileKind, temporary_segment_name};
use crate::log::mark::Mark;
use crate::log::ring::{RingPage, StoredPositions};
use crate::log::segment::{Identity, SegmentName};

/// A promise of the log that was broken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Breach {
    /// A durable write hit a block that an earlier one had filled.
    Rewritten { shard: usize, file: String, block: usize },
    /// A file was cleared while a power cut would have left it a segment.
    ClearedEarly { shard: usize, file: String },
    /// A process wrote into a file that an earlier one had made.
    Inherited { shard: usize, file: String },
    /// Time passed, so that something may have relied on a position of the ring's page, while its two copies differed.
    StoredOnce { shard: usize },
    /// A mark was written that states more than both copies of durable in the ring's page.
    MarkLeads { shard: usize, stated: u64, durable: u64 },
    /// A mark that closes its epoch was written before all that is published was durable, or beside another write.
    ClosedEarly { shard: usize },
    /// A file took the name of a segment or of a mark before what stands in it was synced.
    NamedUnsynced { shard: usize, file: String },
    /// A run's first segment took its name while a segment of the log that it goes on from, by its name or by bytes of the
    /// log in it, stood only in the device's cache.
    BuiltOnUnsynced { shard: usize, file: String },
}

/// The rings that running processes have set up, and what their pages say.
pub(super) type RingsInUse = BTreeMap<(ShardId, Epoch), (RingPage, StoredPositions)>;

impl World {
    /// Looks at an operation that is about to be submitted.
    pub fn watch(&mut self, shard: usize, request: &Request) {
        self.watch_rings();
        match request {
            Request::Write { inode, blocks, durable, .. } => {
                let left = self.directories[shard].durable_name_of(*inode).filter(|_| !durable);
                if let Some(file) = left.filter(|file| SegmentName::parse(file).is_some()) {
                    let file = file.to_owned();
                    self.breach(Breach::ClearedEarly { shard, file });
                }
                if self.directories[shard].file(*inode).made_by() != self.processes {
                    let file = self.directories[shard].name_of(*inode).to_owned();
                    self.breach(Breach::Inherited { shard, file });
                }
                self.watch_mark(shard, &blocks[0][..]);
            }
            Request::Rename { from, to } => self.watch_rename(shard, from, to),
            _ => {}
        }
    }

    /// Both copies of each position must agree whenever the process has let go of the processor.
    pub fn watch_rings(&mut self) {
        let torn = self.rings_in_use.values().filter(|(_, stored)| !stored.agree());
        let shards: Vec<_> = torn.map(|(page, _)| page.shard).collect();
        for ShardId(shard) in shards {
            self.breach(Breach::StoredOnce { shard: shard.into() });
        }
    }

    fn watch_mark(&mut self, shard: usize, block: &[u8]) {
        let mut rings = self.rings_in_use.values().filter(|(page, _)| usize::from(page.shard.0) == shard);
        let written = rings.find_map(|&(page, stored)| {
            let mark = Mark::decode(block, page.directory, page.shard)?;
            (mark.epoch == page.epoch).then_some((mark, stored))
        });
        let Some((mark, stored)) = written else { return };
        if mark.durable > stored.durable() {
            let (stated, durable) = (mark.durable.0, stored.durable().0);
            self.breach(Breach::MarkLeads { shard, stated, durable });
        }
        let is_beside = |pending: &Pending| pending.shard == shard && !pending.orphan && pending.request.is_write();
        let busy = self.pending.values().any(is_beside);
        if mark.closes && (busy || mark.durable < stored.published()) {
            self.breach(Breach::ClosedEarly { shard });
        }
    }

    fn watch_rename(&mut self, shard: usize, from: &str, to: &str) {
        let directory = &self.directories[shard];
        let (Ok(inode), FileKind::Segment(_) | FileKind::Mark) = (directory.lookup(from), FileKind::of(to)) else {
            return;
        };
        if !directory.file(inode).is_durable(0, u64::MAX) {
            self.breach(Breach::NamedUnsynced { shard, file: to.to_owned() });
        }
        let is_first_of_run = |name: &SegmentName| temporary_segment_name(name.epoch) == from;
        if SegmentName::parse(to).as_ref().is_some_and(is_first_of_run)
            && let Some(file) = unsynced_below(&self.directories[shard], inode)
        {
            self.breach(Breach::BuiltOnUnsynced { shard, file });
        }
    }

    pub(super) fn breach(&mut self, breach: Breach) {
        if !self.breaches.contains(&breach) {
            self.breaches.push(breach);
        }
    }
}

/// A segment of the log that `fresh` ends, of which a power cut could take the name or bytes that belong to the log.
fn unsynced_below(directory: &Directory, fresh: Inode) -> Option<String> {
    let segments = directory.names().into_iter().filter(|name| SegmentName::parse(name).is_some());
    let files = segments.filter_map(|name| Some((directory.lookup(&name).ok()?, name)));
    let files = files.chain([(fresh, String::new())]);
    let (identities, files): (Vec<_>, Vec<_>) =
        files.filter_map(|file| Some((identity(directory, file.0)?, file))).unzip();
    let chain = Chain::read_back(&identities);
    let lost = chain.links.into_iter().find(|link| {
        let (inode, name) = &files[link.index];
        let end = link.end - link.base + BLOCK as u64;
        *inode != fresh && !(directory.is_name_durable(name, *inode) && directory.file(*inode).is_durable(0, end))
    })?;
    Some(files[lost.index].1.clone())
}

fn identity(directory: &Directory, inode: Inode) -> Option<Identity> {
    Identity::decode(&directory.file(inode).blocks().first()?[..]).ok()
}

#[cfg(test)]
mod tests {
    use peregrine_protocol::entry::{DirectoryId, DirectorySecret};
    use peregrine_protocol::ids::LogPosition;

    use super::*;
    use crate::log::disk::simulated::{Conditions, Machine, SimulatedDisk};
    use crate::log::disk::{Access, Disk, DiskFile, RingHost, RingMemory};
    use crate::log::options::{BootId, RunId};
    use crate::log::ring::{PAGE_LEN, Ring};

    const EPOCH: Epoch = Epoch(6);

    /// A file with one written block.
    async fn file(disk: &SimulatedDisk, name: &str, synced: bool, fill: impl FnOnce(&mut [u8])) {
        let file = disk.create(name, 2 * BLOCK as u64).await.unwrap();
        let mut block = vec![0; 2 * BLOCK];
        fill(&mut block[..BLOCK]);
        file.write_at(block, 0).await.unwrap();
        if synced {
            file.sync().await.unwrap();
        }
    }

    #[test]
    fn positions_stored_once_and_marks_that_lead_or_close_early_are_noticed() {
        let machine = Machine::new(1, 1, Conditions::default());
        let (disk, rings) = (machine.disk(0), machine.rings());
        let directory = DirectoryId(1);
        let page = RingPage {
            directory,
            device: 2,
            inode: 3,
            shard: ShardId(0),
            boot: BootId(4),
            log: RunId(5),
            run: RunId(5),
            epoch: EPOCH,
            size: 8192,
        };
        drop(Ring::set_up(rings.create("ring", PAGE_LEN + 8192).unwrap(), &page, LogPosition(0)));
        let mut memory = rings.open("ring").unwrap().unwrap();
        memory.store_u64(128, 4096);
        machine.advance(0);
        assert_eq!(machine.take_breaches(), [Breach::StoredOnce { shard: 0 }]);
        memory.store_u64(192, 4096);
        machine.advance(0);
        assert_eq!(machine.take_breaches(), []);

        for (durable, closes, breach) in [
            (0, false, None),
            (4096, false, Some(Breach::MarkLeads { shard: 0, stated: 4096, durable: 0 })),
            (0, true, Some(Breach::ClosedEarly { shard: 0 })),
        ] {
            let durable = LogPosition(durable);
            let mark = Mark { directory, shard: ShardId(0), epoch: EPOCH, sequence: 0, durable, closes };
            machine.block_on(file(&disk, &format!("{durable}-{closes}"), true, |block| mark.encode(block)));
            assert_eq!(machine.take_breaches(), Vec::from_iter(breach), "{mark:?}");
        }
    }

    #[test]
    fn a_segment_that_is_cleared_before_it_has_left_durably_is_noticed() {
        let segment = SegmentName { epoch: EPOCH, base: LogPosition(8192) }.to_string();
        for has_left in [false, true] {
            let machine = Machine::new(1, 1, Conditions::default());
            let disk = machine.disk(0);
            machine.block_on(async {
                file(&disk, &segment, true, |_| ()).await;
                disk.sync_directory().await.unwrap();
                disk.rename(&segment, "spare").await.unwrap();
                if has_left {
                    disk.sync_directory().await.unwrap();
                }
                let file = disk.open("spare", Access::Prepare).await.unwrap();
                file.write_at(vec![0; BLOCK], 0).await.unwrap();
            });
            let early = (!has_left).then_some(Breach::ClearedEarly { shard: 0, file: segment.clone() });
            assert_eq!(machine.take_breaches(), Vec::from_iter(early));
        }
    }

    #[test]
    fn a_name_before_the_sync_of_what_it_counts_on_is_noticed() {
        let identity = |epoch, base, previous_end| Identity {
            directory: DirectoryId(1),
            secret: DirectorySecret([2; 16]),
            shard: ShardId(0),
            boot: BootId(4),
            log: RunId(5),
            run: RunId(5),
            base: LogPosition(base),
            epoch: Epoch(epoch),
            size: 2 * BLOCK as u64,
            previous_end: LogPosition(previous_end),
            durable: LogPosition(0),
            loss: None,
            ring: None,
        };
        let (first, second) = (identity(1, 0, 0), identity(2, 8192, 4096));
        let (first_name, second_name) = (first.name().to_string(), second.name().to_string());
        for (content_synced, name_synced) in [(true, true), (true, false), (false, true)] {
            let machine = Machine::new(1, 1, Conditions::default());
            let disk = machine.disk(0);
            machine.block_on(async {
                file(&disk, "spare", content_synced, |block| first.encode(block)).await;
                disk.rename("spare", &first_name).await.unwrap();
                if name_synced {
                    disk.sync_directory().await.unwrap();
                }
            });
            let (shard, file_name) = (0, first_name.clone());
            let unsynced = (!content_synced).then_some(Breach::NamedUnsynced { shard, file: file_name.clone() });
            assert_eq!(machine.take_breaches(), Vec::from_iter(unsynced));
            machine.block_on(async {
                file(&disk, "tmp-segment-0000000002", true, |block| second.encode(block)).await;
                disk.rename("tmp-segment-0000000002", &second_name).await.unwrap();
            });
            let unsound = !(content_synced && name_synced);
            let built_on = unsound.then_some(Breach::BuiltOnUnsynced { shard, file: file_name });
            assert_eq!(machine.take_breaches(), Vec::from_iter(built_on));
        }
    }
}
