//! What ties entries to one data directory and one shard: the directory's identity and the seal made from its secret.

use std::fmt;

use crate::checksum::{Crc32, crc32};
use crate::ids::ShardId;

/// Names a data directory for ever; drawn at random when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DirectoryId(pub u128);

impl fmt::Display for DirectoryId {
    /// 32 hexadecimal digits, as in the names of ring files.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Known to the broker alone, so that no client can write a payload that looks like an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DirectorySecret(pub [u8; 16]);

impl fmt::Debug for DirectorySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DirectorySecret(..)")
    }
}

/// The initial state of the CRC of every header of one shard: CRC32 of secret and shard.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EntrySeal(u32);

impl EntrySeal {
    pub fn new(secret: &DirectorySecret, shard: ShardId) -> Self {
        let mut crc = Crc32::after(crc32(&secret.0));
        crc.update(&shard.0.to_le_bytes());
        Self(crc.finish())
    }

    /// The CRC of anything else that belongs to this directory and shard alone. `purpose` tells one kind of such blocks from
    /// another, and all of them from entries.
    pub fn checksum(self, purpose: u64, bytes: &[u8]) -> u32 {
        let mut crc = Crc32::after(self.0);
        crc.update(&purpose.to_le_bytes());
        crc.update(bytes);
        crc.finish()
    }

    /// The CRC of a header whose own CRC field, four bytes at `crc_at`, counts as zero.
    pub(super) fn crc(self, header: &[u8], crc_at: usize) -> u32 {
        let mut crc = Crc32::after(self.0);
        crc.update(&header[..crc_at]);
        crc.update(&[0; 4]);
        crc.update(&header[crc_at + 4..]);
        crc.finish()
    }
}

impl fmt::Debug for EntrySeal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EntrySeal(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_holds_for_its_directory_shard_and_purpose_alone() {
        let (secret, other) = (DirectorySecret([7; 16]), DirectorySecret([8; 16]));
        let checksum = |secret, shard, purpose| EntrySeal::new(secret, ShardId(shard)).checksum(purpose, b"bytes");
        let ours = checksum(&secret, 3, 1);
        assert_eq!(ours, checksum(&secret, 3, 1));
        assert!(![checksum(&other, 3, 1), checksum(&secret, 4, 1), checksum(&secret, 3, 2)].contains(&ours));
    }
}
