//! A file system that a test mounts, and that is gone when it is dropped.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(Debug)]
pub struct Mount {
    folder: PathBuf,
}

impl Mount {
    /// Mounts a file system of that kind on an empty folder. `None`, with a line that gives mount's own reason, where this user may
    /// not or this kernel cannot.
    pub fn at(folder: &Path, kind: &str, options: &str) -> Option<Self> {
        let mut command = Command::new("mount");
        command.args(["-t", kind, "-o", options, kind]).arg(folder).stdin(Stdio::null());
        let reason = match command.output() {
            Ok(output) if output.status.success() => return Some(Mount { folder: folder.to_path_buf() }),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        eprintln!("skipped: no {kind} could be mounted: {reason}");
        None
    }

    pub fn path(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
    }
}
