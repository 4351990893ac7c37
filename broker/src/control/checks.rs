//! What a start checks before anything is built on it: each finding is a sentence that says what to change. Found out here,
//! these are sentences; found out later, they would be panics of the runtime, a SIGBUS, or an error in the middle of the night.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use peregrine_protocol::entry::DirectoryId;
use peregrine_protocol::ids::ShardId;
use peregrine_protocol::limits::BLOCK;

use super::configuration::quantity::show_size;
use super::directory::{HELD_BY_THE_DEAD, RETRY};
use super::kernel::{self, FileSystem};
use crate::limits::CONNECTIONS_PER_EXECUTOR;
use crate::shard::listener;

/// Bytes of locked memory without which glommio makes no executor, whoever asks.
const MEMLOCK_LEAST: u64 = 512 << 10;
/// The page before the ring in its file.
const RING_PAGE: u64 = BLOCK;

/// Why the broker does not start.
#[derive(Debug)]
pub struct Refusal(pub String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kernel offers io_uring to this process.
pub fn io_uring() -> Result<(), Refusal> {
    let Err(error) = kernel::try_io_uring() else { return Ok(()) };
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    Err(Refusal(match (error.raw_os_error(), disabled.trim()) {
        (Some(libc::EPERM), "1" | "2") => format!(
            "io_uring is switched off (kernel.io_uring_disabled = {}); run: sysctl kernel.io_uring_disabled=0",
            disabled.trim()
        ),
        (Some(libc::EPERM), _) => {
            "io_uring is forbidden to this process, most likely by a container's seccomp profile; allow \
             io_uring_setup, io_uring_enter and io_uring_register (Docker: --security-opt seccomp=PROFILE)"
                .to_owned()
        }
        (Some(libc::ENOSYS), _) => "this kernel has no io_uring; Linux 5.11 or later is needed".to_owned(),
        (Some(libc::ENOMEM), _) => memlock_sentence("is used up", kernel::locked_memory_limit().unwrap_or(0)),
        _ => format!("io_uring cannot be used: {error}"),
    }))
}

/// The process may lock as much memory as the runtime's rings need.
pub fn locked_memory() -> Result<(), Refusal> {
    let limit = kernel::locked_memory_limit()
        .map_err(|error| Refusal(format!("cannot learn the limit of locked memory: {error}")))?;
    if limit < MEMLOCK_LEAST { Err(Refusal(memlock_sentence("is too small", limit))) } else { Ok(()) }
}

fn memlock_sentence(what: &str, limit: u64) -> String {
    format!(
        "the limit of locked memory (memlock) {what}: it is {}, and at least 512 KiB are needed; raise it with ulimit -l, \
         LimitMEMLOCK= of the service, or memlock in /etc/security/limits.conf",
        show_size(limit)
    )
}

/// Raises the limit of open files as far as it goes; a warning where that is less than the connections that are allowed.
pub fn descriptors(executors: usize) -> Option<String> {
    let wanted = executors as u64 * CONNECTIONS_PER_EXECUTOR as u64;
    match kernel::raise_descriptor_limit() {
        Ok(limit) if limit >= wanted => None,
        Ok(limit) => Some(format!(
            "this process may open {limit} files, fewer than the {wanted} that all connections it allows would need; raise it with \
             ulimit -n or LimitNOFILE= of the service"
        )),
        Err(error) => Some(format!("the limit of open files cannot be raised: {error}")),
    }
}

/// The data directory's file system does direct, synchronous writes. Leaves nothing behind.
pub fn direct_writes(data: &Path) -> Result<(), Refusal> {
    #[repr(align(4096))]
    struct Aligned([u8; BLOCK as usize]);
    let path = data.join(format!("probe-{}", std::process::id()));
    let block = Box::new(Aligned([0; BLOCK as usize]));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_DIRECT | libc::O_DSYNC);
    let written = options.open(&path).and_then(|mut file| file.write_all(&block.0));
    // The file may not exist; what matters is said below.
    let _ = std::fs::remove_file(&path);
    written.map_err(|error| {
        Refusal(match error.raw_os_error() {
            Some(libc::EINVAL) => format!(
                "the file system of the data directory {} has no direct I/O (O_DIRECT); put it on ext4 or XFS",
                data.display()
            ),
            _ => format!("cannot write to the data directory {}: {error}", data.display()),
        })
    })
}

/// A warning where the data directory is on a file system that Peregrine is not tested on.
pub fn file_system(data: &Path) -> Option<String> {
    match kernel::file_system(data) {
        Ok(FileSystem::Ext4 | FileSystem::Xfs) => None,
        Ok(FileSystem::Tmpfs) => Some(format!(
            "the data directory {} is on a tmpfs: nothing in it survives a restart of the machine",
            data.display()
        )),
        Ok(FileSystem::Other(magic)) => Some(format!(
            "the data directory {} is on a file system of type {magic:#x}; ext4 and XFS are what is tested",
            data.display()
        )),
        Err(error) => Some(format!("cannot learn the file system of the data directory {}: {error}", data.display())),
    }
}

/// Where ring files can lie.
#[derive(Debug, PartialEq, Eq)]
pub enum Rings {
    At(PathBuf),
    /// In anonymous memory, with the reason.
    Anonymous(String),
}

/// Looks at the directory that is configured for ring files. One that was `chosen` must be usable.
pub fn ring_directory(directory: Option<&Path>, chosen: bool) -> Result<Rings, Refusal> {
    let Some(directory) = directory else { return Ok(Rings::Anonymous("ring_dir is none".to_owned())) };
    let shown = directory.display();
    // One spelling: the log notes where its ring lies, and by another name the same file would be opened and locked twice.
    let found = directory.canonicalize().and_then(|path| Ok((kernel::file_system(&path)?, path)));
    let reason = match found {
        Ok((FileSystem::Tmpfs, path)) => return Ok(Rings::At(path)),
        Ok(_) => format!("the ring directory {shown} is not on a tmpfs"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => format!("the ring directory {shown} does not exist"),
        Err(error) => format!("the ring directory {shown} cannot be used: {error}"),
    };
    if chosen {
        Err(Refusal(format!("{reason}; choose a directory on a tmpfs with --ring-dir, or none")))
    } else {
        Ok(Rings::Anonymous(reason))
    }
}

/// The name of a shard's ring file.
pub fn ring_file(directory: &Path, id: DirectoryId, shard: ShardId) -> PathBuf {
    directory.join(format!("{id}-{shard}"))
}

/// The tmpfs has room for the ring files that are still to be made.
pub fn ring_space(directory: &Path, id: DirectoryId, shards: u16, ring_bytes: u64) -> Result<(), Refusal> {
    let missing = (0..shards).filter(|&shard| !ring_file(directory, id, ShardId(shard)).exists()).count() as u64;
    let needed = missing * (ring_bytes + RING_PAGE);
    let free = kernel::free_space(directory).map_err(|error| {
        Refusal(format!("cannot learn the space in the ring directory {}: {error}", directory.display()))
    })?;
    if needed <= free {
        return Ok(());
    }
    Err(Refusal(format!(
        "the ring directory {} has {} bytes free, but {missing} staging rings of {} need {needed}; remove files there, enlarge the \
         tmpfs (mount -o remount,size=...), or lower --ring-size",
        directory.display(),
        free,
        show_size(ring_bytes),
    )))
}

/// The listening socket. An address in use is tried again for a while: it may be that of a broker that was just killed.
pub fn listen(address: SocketAddr) -> Result<TcpListener, Refusal> {
    let until = Instant::now() + HELD_BY_THE_DEAD;
    let mut bound = listener::bind(address);
    while bound.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse) && Instant::now() < until {
        std::thread::sleep(RETRY);
        bound = listener::bind(address);
    }
    bound.map_err(|error| {
        Refusal(match error.kind() {
            io::ErrorKind::AddrInUse => {
                format!("the address {address} is in use by another process; stop that one, or choose another --listen")
            }
            io::ErrorKind::AddrNotAvailable => {
                format!("{address} is no address of this machine; choose another --listen")
            }
            io::ErrorKind::PermissionDenied => {
                format!("this process may not listen on {address}; choose a port above 1023 with --listen")
            }
            _ => format!("cannot listen on {address}: {error}"),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_directory_behind_a_symlink_has_the_same_path_as_without() {
        let (folder, rings) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        let (link, plain) = (folder.path().join("rings"), rings.path().canonicalize().unwrap());
        std::os::unix::fs::symlink(rings.path(), &link).unwrap();
        for spelling in [link, rings.path().join("."), plain.clone()] {
            assert_eq!(ring_directory(Some(&spelling), true).unwrap(), Rings::At(plain.clone()));
        }
    }

    #[test]
    fn a_tmpfs_is_told_from_a_disk() {
        let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        assert!(
            matches!(ring_directory(Some(disk.path()), false), Ok(Rings::Anonymous(reason)) if reason.contains("tmpfs"))
        );
        let refused = ring_directory(Some(disk.path()), true).unwrap_err().to_string();
        assert!(refused.contains(&disk.path().display().to_string()) && refused.contains("--ring-dir"), "{refused}");
        assert!(matches!(ring_directory(None, true), Ok(Rings::Anonymous(_))));
        let missing = disk.path().join("missing");
        assert!(ring_directory(Some(&missing), true).unwrap_err().0.contains("does not exist"));
        if Path::new("/dev/shm").is_dir() {
            assert_eq!(ring_directory(Some(Path::new("/dev/shm")), true).unwrap(), Rings::At("/dev/shm".into()));
        }
    }

    #[test]
    fn rings_that_exist_need_no_space() {
        let folder = tempfile::tempdir().unwrap();
        let id = DirectoryId(1);
        let refused = ring_space(folder.path(), id, 2, 1 << 60).unwrap_err().to_string();
        assert!(refused.contains("2 staging rings"), "{refused}");
        for shard in 0..2 {
            std::fs::write(ring_file(folder.path(), id, ShardId(shard)), "").unwrap();
        }
        assert!(ring_space(folder.path(), id, 2, 1 << 60).is_ok());
    }

    #[test]
    fn a_probe_leaves_nothing_behind() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        // The file system under the checkout may have no direct I/O; either way nothing stays.
        let _ = direct_writes(folder.path());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_port_in_use_is_named() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap();
        let refused = listen(address).unwrap_err().to_string();
        assert!(refused.contains(&address.to_string()) && refused.contains("in use"), "{refused}");
    }
}
