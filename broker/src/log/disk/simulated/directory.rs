//! One shard's directory: names and the files behind them. A name is durable once a directory sync covers it; a power cut
//! keeps any subset of the changes since, in their order. A file without a name stays while a write in flight holds it.

use std::collections::BTreeMap;
use std::io;

use super::file::{FileContents, Tear};
use super::random::Random;

/// A file's number, never used again, as its name may be.
pub type Inode = u64;

#[derive(Clone, Debug)]
enum Change {
    Make { name: String, inode: Inode },
    Rename { from: String, to: String, inode: Inode },
    Remove { name: String },
}

/// A directory on the simulated device.
#[derive(Debug, Default)]
pub struct Directory {
    files: BTreeMap<Inode, FileContents>,
    names: BTreeMap<String, Inode>,
    durable_names: BTreeMap<String, Inode>,
    /// Changes since the last directory sync, with their serials.
    changes: Vec<(u64, Change)>,
    /// What [`Directory::move_away`] took out of it.
    aside: BTreeMap<String, Inode>,
}

impl Directory {
    pub fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    pub fn lookup(&self, name: &str) -> io::Result<Inode> {
        self.names.get(name).copied().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, name.to_owned()))
    }

    /// The file's present name, for traces; a removed file has none.
    pub fn name_of(&self, inode: Inode) -> &str {
        self.names.iter().find(|(_, held)| **held == inode).map_or("(no name)", |(name, _)| name)
    }

    /// Every file that has blocks, removed ones too.
    pub fn inodes(&self) -> Vec<Inode> {
        self.files.keys().copied().collect()
    }

    pub fn file(&self, inode: Inode) -> &FileContents {
        self.files.get(&inode).expect_file(inode)
    }

    pub fn file_mut(&mut self, inode: Inode) -> &mut FileContents {
        self.files.get_mut(&inode).expect_file(inode)
    }

    pub fn make(&mut self, name: &str, inode: Inode, contents: FileContents, serial: u64) -> io::Result<()> {
        self.must_be_free(name)?;
        self.files.insert(inode, contents);
        self.names.insert(name.to_owned(), inode);
        self.changes.push((serial, Change::Make { name: name.to_owned(), inode }));
        Ok(())
    }

    pub fn rename(&mut self, from: &str, to: &str, serial: u64) -> io::Result<()> {
        let inode = self.lookup(from)?;
        self.must_be_free(to)?;
        self.names.remove(from);
        self.names.insert(to.to_owned(), inode);
        self.changes.push((serial, Change::Rename { from: from.to_owned(), to: to.to_owned(), inode }));
        Ok(())
    }

    pub fn remove(&mut self, name: &str, serial: u64) -> io::Result<Inode> {
        let inode = self.lookup(name)?;
        self.names.remove(name);
        self.changes.push((serial, Change::Remove { name: name.to_owned() }));
        Ok(inode)
    }

    /// Makes durable the changes made at or before `serial`.
    pub fn sync(&mut self, serial: u64) {
        let covered = self.changes.iter().take_while(|(made, _)| *made <= serial).count();
        for (_, change) in self.changes.drain(..covered) {
            apply(&mut self.durable_names, change);
        }
    }

    /// Whether a power cut leaves the file this name.
    pub fn is_name_durable(&self, name: &str, inode: Inode) -> bool {
        self.durable_names.get(name) == Some(&inode)
    }

    /// The name that a power cut leaves the file.
    pub fn durable_name_of(&self, inode: Inode) -> Option<&str> {
        self.durable_names.iter().find(|(_, held)| **held == inode).map(|(name, _)| name.as_str())
    }

    /// Takes every name out of the directory, as somebody does who mounts or moves the wrong thing.
    pub fn move_away(&mut self) {
        self.aside = std::mem::take(&mut self.names);
        self.durable_names.clear();
        self.changes.clear();
    }

    /// The directory is the one that was moved away, whatever was made in its place.
    pub fn bring_back(&mut self) {
        self.names = std::mem::take(&mut self.aside);
        self.durable_names.clone_from(&self.names);
        self.changes.clear();
    }

    pub fn lose_power(&mut self, tear: Tear, random: &mut Random) {
        for (_, change) in std::mem::take(&mut self.changes) {
            if random.below(16) < tear.survival {
                apply(&mut self.durable_names, change);
            }
        }
        self.names.clone_from(&self.durable_names);
        let (names, aside) = (&self.names, &self.aside);
        self.files.retain(|inode, _| names.values().chain(aside.values()).any(|held| held == inode));
        for file in self.files.values_mut() {
            file.lose_power(tear, random);
        }
    }

    fn must_be_free(&self, name: &str) -> io::Result<()> {
        if self.names.contains_key(name) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, name.to_owned()));
        }
        Ok(())
    }
}

fn apply(names: &mut BTreeMap<String, Inode>, change: Change) {
    match change {
        Change::Make { name, inode } => {
            names.insert(name, inode);
        }
        Change::Rename { from, to, inode } => {
            // The change of `from` itself may not have survived; the new name stands either way.
            if names.get(&from) == Some(&inode) {
                names.remove(&from);
            }
            names.insert(to, inode);
        }
        Change::Remove { name } => {
            names.remove(&name);
        }
    }
}

trait ExpectFile<T> {
    fn expect_file(self, inode: Inode) -> T;
}

impl<T> ExpectFile<T> for Option<T> {
    fn expect_file(self, inode: Inode) -> T {
        let Some(file) = self else { panic!("file {inode} is gone while something holds it") };
        file
    }
}
