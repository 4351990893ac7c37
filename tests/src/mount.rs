//! A file system that a test mounts, and that is gone when it is dropped.

use std::fs::File;
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
        command.args(["-t", kind, "-o", options, kind]).arg(folder);
        Self::by(command, folder, kind)
    }

    /// Makes an ext4 of so many bytes in a file, all of them for whoever comes, and mounts it on an empty folder; `None` as above.
    pub fn image(folder: &Path, image: &Path, bytes: u64) -> Option<Self> {
        let kind = "loop device";
        File::create(image).and_then(|file| file.set_len(bytes)).expect("a file can be made beside the data directory");
        let mut command = Command::new("mkfs.ext4");
        run(command.args(["-q", "-m", "0"]).arg(image)).map_err(|reason| skipped(kind, &reason)).ok()?;
        let mut command = Command::new("mount");
        command.args(["-o", "loop"]).arg(image).arg(folder);
        Self::by(command, folder, kind)
    }

    fn by(mut command: Command, folder: &Path, kind: &str) -> Option<Self> {
        run(&mut command).map_err(|reason| skipped(kind, &reason)).ok()?;
        Some(Mount { folder: folder.to_path_buf() })
    }

    pub fn path(&self) -> &Path {
        &self.folder
    }
}

/// The command's own reason, where it fails.
fn run(command: &mut Command) -> Result<(), String> {
    match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn skipped(kind: &str, reason: &str) {
    eprintln!("skipped: no {kind} could be mounted: {reason}");
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
    }
}
