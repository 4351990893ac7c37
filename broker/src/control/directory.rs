//! The data directory: its lock and its identity.
//!
//! ```text
//! DIR/lock        held (flock) by the one broker that uses the directory
//! DIR/identity    who the directory is: format, id, secret, number of shards, checksum; written once, mode 0600
//! DIR/...         the shards' own
//! ```
//!
//! The identity is written under another name, synced, renamed and the directory synced, before anything else is put there: a
//! crash leaves a directory with or without an identity, never with half of one. A directory that holds anything else but no
//! identity is not ours, or has lost it: it is refused, since a new identity would make its logs unreadable.

use std::fmt::Write as _;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use peregrine_protocol::checksum::crc32;
use peregrine_protocol::entry::{DirectoryId, DirectorySecret};

use super::settings::Identity;

const LOCK: &str = "lock";
const IDENTITY: &str = "identity";
const IDENTITY_NEW: &str = "identity.new";
/// What a directory may hold that has no identity yet: ours, and what mkfs leaves.
const BEFORE_IDENTITY: [&str; 3] = [LOCK, IDENTITY_NEW, "lost+found"];
/// The version of the data directory's layout.
const FORMAT: u32 = 1;
/// io_uring keeps a dead process's files and sockets open for a moment, so that the lock and the address of a killed broker
/// outlive it a little: so long, and looked at again so often.
pub(super) const HELD_BY_THE_DEAD: Duration = Duration::from_secs(2);
pub(super) const RETRY: Duration = Duration::from_millis(20);

/// A data directory that this process holds.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
    /// The id of this run.
    run: u64,
}

impl DataDirectory {
    /// Makes the directory where it is missing, and locks it.
    pub fn lock(path: &Path) -> Result<Self, DirectoryError> {
        Self::lock_with(path, sync_directory)
    }

    /// Locks a directory that was made before.
    pub fn lock_existing(path: &Path) -> Result<Self, DirectoryError> {
        if path.join(IDENTITY).is_file() { Self::lock(path) } else { Err(DirectoryError::None(path.to_owned())) }
    }

    /// The same as [`Self::lock`], with what makes the names in a directory durable.
    fn lock_with(path: &Path, mut sync: impl FnMut(&Path) -> io::Result<()>) -> Result<Self, DirectoryError> {
        let io = |doing| move |source| DirectoryError::Io { path: path.to_owned(), doing, source };
        if !path.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io("make"))?;
        }
        for parent in parents_to_sync(path).map_err(io("find"))? {
            match sync(&parent) {
                // A directory that we may not even open is none that we made.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                synced => synced.map_err(io("sync the parents of"))?,
            }
        }
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600).open(path.join(LOCK));
        let lock = lock.map_err(io("open the lock of"))?;
        let until = Instant::now() + HELD_BY_THE_DEAD;
        loop {
            match lock.try_lock() {
                Ok(()) => {
                    let run = u64::from_le_bytes(random().map_err(io("draw the id of a run on"))?);
                    return Ok(Self { path: path.to_owned(), _lock: lock, run });
                }
                Err(TryLockError::Error(source)) => return Err(io("lock")(source)),
                Err(TryLockError::WouldBlock) if Instant::now() >= until => {
                    return Err(DirectoryError::InUse(path.to_owned()));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(RETRY),
            }
        }
    }

    /// Who the directory is that exists already.
    pub fn existing_identity(&self) -> Result<Identity, DirectoryError> {
        let stored = self.read_identity()?.ok_or_else(|| DirectoryError::None(self.path.clone()))?;
        self.about(&stored)
    }

    /// Who the directory is. A new one gets an identity with `shards`, or `default_shards` where that is `None`; an existing one
    /// must have as many as `shards` says.
    pub fn identity(&self, shards: Option<u16>, default_shards: u16) -> Result<Identity, DirectoryError> {
        let stored = match self.read_identity()? {
            Some(stored) => stored,
            None => self.make_identity(shards.unwrap_or(default_shards))?,
        };
        if let Some(asked) = shards.filter(|&asked| asked != stored.shards) {
            return Err(DirectoryError::Shards { path: self.path.clone(), stored: stored.shards, asked });
        }
        self.about(&stored)
    }

    fn about(&self, stored: &Stored) -> Result<Identity, DirectoryError> {
        let about = std::fs::metadata(&self.path).map_err(|error| self.io("look at", error))?;
        Ok(Identity {
            id: stored.id,
            secret: stored.secret,
            shards: stored.shards,
            device: about.dev(),
            inode: about.ino(),
            boot: boot_id().map_err(|error| self.io("learn the boot id of the machine for", error))?,
            run: self.run,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn read_identity(&self) -> Result<Option<Stored>, DirectoryError> {
        match std::fs::read_to_string(self.path.join(IDENTITY)) {
            Ok(text) => match Stored::parse(&text) {
                Ok(stored) => Ok(Some(stored)),
                Err(reason) => Err(DirectoryError::Identity { path: self.path.clone(), reason }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.io("read the identity of", error)),
        }
    }

    fn make_identity(&self, shards: u16) -> Result<Stored, DirectoryError> {
        let io = |error| self.io("write the identity of", error);
        for entry in std::fs::read_dir(&self.path).map_err(|error| self.io("list", error))? {
            let name = entry.map_err(|error| self.io("list", error))?.file_name();
            if !BEFORE_IDENTITY.iter().any(|known| name == *known) {
                let found = name.to_string_lossy().into_owned();
                return Err(DirectoryError::Foreign { path: self.path.clone(), found });
            }
        }
        let (id, secret) = (random().map_err(io)?, random().map_err(io)?);
        assert!(id != [0; 16] && secret != [0; 16], "16 random bytes are not all zero");
        let stored = Stored { id: DirectoryId(u128::from_le_bytes(id)), secret: DirectorySecret(secret), shards };
        let new = self.path.join(IDENTITY_NEW);
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(io)?;
        file.write_all(stored.text().as_bytes()).map_err(io)?;
        file.sync_all().map_err(io)?;
        std::fs::rename(&new, self.path.join(IDENTITY)).map_err(io)?;
        sync_directory(&self.path).map_err(io)?;
        Ok(stored)
    }

    fn io(&self, doing: &'static str, source: io::Error) -> DirectoryError {
        DirectoryError::Io { path: self.path.clone(), doing, source }
    }
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error("the data directory {} is in use by another process; stop that one, or choose another --data", .0.display())]
    InUse(PathBuf),
    #[error(
        "the data directory {} was made for {stored} shards and cannot be used with {asked} shards; start with --shards {stored}, or \
         choose another --data",
        .path.display()
    )]
    Shards { path: PathBuf, stored: u16, asked: u16 },
    #[error(
        "the directory {} is not a data directory: it has no identity, but holds \"{found}\"; choose an empty one, or bring back \
         its identity file",
        .path.display()
    )]
    Foreign { path: PathBuf, found: String },
    #[error("there is no data directory {}", .0.display())]
    None(PathBuf),
    #[error("the identity of the data directory {} cannot be used: {reason}; bring the file back from a copy", .path.display())]
    Identity { path: PathBuf, reason: String },
    #[error("cannot {doing} the data directory {}: {source}", .path.display())]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
}

/// What the identity file holds:
///
/// ```text
/// format 1
/// id 00112233445566778899aabbccddeeff
/// secret 00112233445566778899aabbccddeeff
/// shards 2
/// checksum 01234567                          CRC32 of the lines above
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stored {
    id: DirectoryId,
    secret: DirectorySecret,
    shards: u16,
}

impl Stored {
    fn text(&self) -> String {
        let secret = u128::from_be_bytes(self.secret.0);
        let mut text = format!("format {FORMAT}\nid {}\nsecret {secret:032x}\nshards {}\n", self.id, self.shards);
        let checksum = crc32(text.as_bytes());
        let _ = writeln!(text, "checksum {checksum:08x}");
        text
    }

    fn parse(text: &str) -> Result<Self, String> {
        let checked = text.rfind("checksum ").unwrap_or(0);
        let (lines, checksum) = text.split_at(checked);
        if checksum != format!("checksum {:08x}\n", crc32(lines.as_bytes())) {
            return Err("its checksum is wrong".to_owned());
        }
        let field = |name: &str| {
            let mut fields = lines.lines().filter_map(|line| line.split_once(' '));
            fields.find(|(of, _)| *of == name).map(|(_, value)| value).ok_or(format!("it has no {name}"))
        };
        let format = field("format")?;
        if format != FORMAT.to_string() {
            return Err(format!("its format is {format}, this program knows {FORMAT}"));
        }
        let hex = |name| {
            field(name).and_then(|text| u128::from_str_radix(text, 16).map_err(|_| format!("its {name} is wrong")))
        };
        let shards =
            field("shards")?.parse().ok().filter(|&shards| shards > 0).ok_or("its number of shards is wrong")?;
        Ok(Self { id: DirectoryId(hex("id")?), secret: DirectorySecret(hex("secret")?.to_be_bytes()), shards })
    }
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The boot of the machine, as `8ea…-…` with dashes in /proc.
fn boot_id() -> io::Result<u128> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.replace('-', "");
    u128::from_str_radix(text.trim(), 16).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Directories whose names of the data directory and its parents may not be durable. The start that made them may have been
/// killed before it synced them, and nobody knows which it made: so they are all synced until there is an identity, which is
/// written later.
fn parents_to_sync(data: &Path) -> io::Result<Vec<PathBuf>> {
    if data.join(IDENTITY).exists() {
        return Ok(Vec::new());
    }
    Ok(data.canonicalize()?.ancestors().skip(1).map(Path::to_owned).collect())
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locked(folder: &tempfile::TempDir) -> DataDirectory {
        DataDirectory::lock(&folder.path().join("deep/data")).unwrap()
    }

    #[test]
    fn an_identity_is_made_once_and_keeps_its_shards() {
        let folder = tempfile::tempdir().unwrap();
        let directory = locked(&folder);
        let made = directory.identity(None, 3).unwrap();
        assert_eq!(made.shards, 3);
        assert_eq!(directory.identity(Some(3), 1).unwrap(), made);
        assert_eq!(directory.identity(None, 1).unwrap(), made);
        drop(directory);
        let again = locked(&folder).identity(None, 1).unwrap();
        assert_eq!(Identity { run: made.run, ..again }, made);
        assert_ne!(again.run, made.run, "each run has an id of its own");
        let directory = locked(&folder);
        let refused = directory.identity(Some(2), 1).unwrap_err().to_string();
        assert!(refused.contains("3 shards") && refused.contains("2 shards"), "{refused}");
        let mode = std::fs::metadata(directory.path().join(IDENTITY)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600, "the secret is nobody else's");
    }

    #[test]
    fn a_start_killed_between_making_the_directory_and_syncing_its_parents_leaves_that_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().canonicalize().unwrap().join("deep/data");
        std::fs::create_dir_all(&made).unwrap();
        let parents = parents_to_sync(&made).unwrap();
        assert_eq!(
            parents[..2],
            [folder.path().canonicalize().unwrap().join("deep"), folder.path().canonicalize().unwrap()]
        );
        let directory = locked(&folder);
        directory.identity(None, 1).unwrap();
        assert!(parents_to_sync(&made).unwrap().is_empty(), "an identity comes after the sync");
    }

    #[test]
    fn every_start_syncs_the_parents_until_there_is_an_identity() {
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().canonicalize().unwrap().join("deep/data");
        let start = || {
            let mut synced = Vec::new();
            let sync = |parent: &Path| {
                assert!(made.is_dir() && parent.is_dir(), "what is synced has its names already");
                synced.push(parent.to_owned());
                Ok(())
            };
            let directory = DataDirectory::lock_with(&made, sync).unwrap();
            (directory, synced)
        };
        let all: Vec<_> = made.ancestors().skip(1).map(Path::to_owned).collect();
        for _ in 0..3 {
            assert_eq!(start().1, all, "killed before its identity, a start leaves all of it to the next");
        }
        start().0.identity(None, 1).unwrap();
        assert_eq!(start().1, Vec::<PathBuf>::new());
    }

    #[test]
    fn a_parent_that_cannot_be_synced_ends_the_start_unless_it_is_somebody_else_s() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let failing = |kind: io::ErrorKind| DataDirectory::lock_with(&path, |_| Err(kind.into())).map(drop);
        let refused = failing(io::ErrorKind::Other).unwrap_err().to_string();
        assert!(refused.contains("sync the parents of"), "{refused}");
        failing(io::ErrorKind::PermissionDenied).unwrap();
        assert!(sync_directory(&path).is_ok() && sync_directory(&path.join("missing")).is_err());
    }

    #[test]
    fn a_second_broker_is_kept_out_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let directory = locked(&folder);
        let refused = DataDirectory::lock(directory.path()).unwrap_err();
        assert!(matches!(refused, DirectoryError::InUse(_)), "{refused}");
        let path = directory.path().to_owned();
        let waiting = std::thread::spawn(move || DataDirectory::lock(&path).map(|_| ()));
        drop(directory);
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn a_foreign_directory_gets_no_identity() {
        let folder = tempfile::tempdir().unwrap();
        let directory = locked(&folder);
        std::fs::write(directory.path().join("precious"), "").unwrap();
        let refused = directory.identity(None, 1).unwrap_err();
        assert!(matches!(&refused, DirectoryError::Foreign { found, .. } if found == "precious"), "{refused}");
        assert!(!directory.path().join(IDENTITY).exists());
    }

    #[test]
    fn a_crash_before_the_rename_leaves_a_directory_without_identity() {
        let folder = tempfile::tempdir().unwrap();
        let directory = locked(&folder);
        std::fs::write(directory.path().join(IDENTITY_NEW), "form").unwrap();
        assert_eq!(directory.identity(None, 2).unwrap().shards, 2);
    }

    #[test]
    fn every_flipped_bit_of_an_identity_is_seen() {
        let stored = Stored { id: DirectoryId(7), secret: DirectorySecret([9; 16]), shards: 2 };
        let text = stored.text();
        assert_eq!(Stored::parse(&text), Ok(stored));
        assert_eq!(
            text,
            "format 1\nid 00000000000000000000000000000007\nsecret 09090909090909090909090909090909\nshards 2\nchecksum 3071dece\n"
        );
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone().into_bytes();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(flipped) = String::from_utf8(flipped) {
                assert!(Stored::parse(&flipped).is_err(), "{flipped}");
            }
        }
        for end in 0..text.len() {
            assert!(Stored::parse(&text[..end]).is_err());
        }
    }
}
