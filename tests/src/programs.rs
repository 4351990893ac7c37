//! Where the built programs and the folders for test data lie, and how a child process is waited for with a bound.

use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// How often a condition is looked at again; a test waits for conditions, never for time.
pub const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The path of a program of this workspace, built with the same profile as the running test.
///
/// # Panics
/// With what to run, if it is not built.
pub fn program(name: &str) -> PathBuf {
    let path = profile_folder().join(name);
    assert!(
        path.is_file(),
        "{} is not built: run `cargo build --workspace --bins` first (scripts/test does)",
        path.display()
    );
    path
}

/// A folder on a real disk for data directories; the system's temporary directory may be a tmpfs, which knows no direct I/O.
pub fn disk_folder() -> PathBuf {
    let folder = profile_folder().parent().expect("target/PROFILE has a parent").join("tmp");
    std::fs::create_dir_all(&folder).expect("the target directory can be written");
    folder
}

/// `target/debug`, from `target/debug/deps/the-running-test`.
fn profile_folder() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let deps = test.parent().expect("target/PROFILE/deps");
    let folder = if deps.ends_with("deps") { deps.parent().expect("target/PROFILE") } else { deps };
    folder.to_path_buf()
}

/// Looks at `condition` until it holds, at most for `limit`; false if it never did.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The child's exit status, or `None` if it still runs after `limit`.
pub fn wait_for_exit(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let mut status = None;
    wait_until(limit, || {
        status = child.try_wait().expect("a child of ours can be waited for");
        status.is_some()
    });
    status
}
