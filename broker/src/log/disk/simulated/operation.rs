//! What a future of the disk has asked of the device, and what came of it.

use std::rc::Rc;

use super::directory::Inode;
use super::failures::Failure;
use super::file::Block;

/// An operation as the device sees it.
#[derive(Debug)]
pub enum Request {
    List,
    Open { name: String },
    Make { name: String, size: u64 },
    Rename { from: String, to: String },
    Remove { name: String },
    SyncDirectory { serial: u64 },
    Read { inode: Inode, offset: u64, len: usize },
    Extend { inode: Inode, size: u64 },
    Write { inode: Inode, first: usize, blocks: Vec<Rc<Block>>, durable: bool },
    Sync { inode: Inode, serial: u64 },
    Pause { nanoseconds: u64 },
}

impl Request {
    /// For traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Open { .. } => "open",
            Self::Make { .. } => "make",
            Self::Rename { .. } => "rename",
            Self::Remove { .. } => "remove",
            Self::SyncDirectory { .. } => "sync directory",
            Self::Read { .. } => "read",
            Self::Extend { .. } => "extend",
            Self::Write { .. } => "write",
            Self::Sync { .. } => "sync",
            Self::Pause { .. } => "pause",
        }
    }

    pub fn is_write(&self) -> bool {
        matches!(self, Self::Write { .. })
    }
}

#[derive(Debug)]
pub enum Answer {
    Done,
    Names(Vec<String>),
    File { inode: Inode, size: u64 },
    Bytes(Vec<u8>),
}

/// An operation between submission and completion.
#[derive(Debug)]
pub struct Pending {
    pub shard: usize,
    pub request: Request,
    /// How it will fail, decided when it was submitted.
    pub failure: Option<Failure>,
    /// Its process is gone: what is left of it may land, and nobody hears of it.
    pub orphan: bool,
}
