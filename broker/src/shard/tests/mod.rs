//! Shards that serve sockets, in this process.

mod catalogue;
mod damage;
mod groups;
mod mesh;
mod mesh_credit;
mod reading;
mod room;
pub(crate) mod serving;
mod storing;

use tempfile::TempDir;

fn directories() -> (TempDir, TempDir) {
    (tempfile::tempdir().expect("a directory"), tempfile::tempdir_in("/dev/shm").expect("a tmpfs"))
}
