//! What keeps a broker from starting, provoked for real: each time it ends with a failure and a sentence that says what to change,
//! and it writes nothing to its standard output.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{fs, io};

use peregrine_tests::broker::{Refusal, Settings};
use peregrine_tests::mount::Mount;

/// The refusal says all of these words, and does not look like a crash.
#[track_caller]
fn says(refusal: &Refusal, words: &[&str]) {
    let text = refusal.stderr.to_lowercase();
    for word in words {
        assert!(text.contains(&word.to_lowercase()), "no {word:?} in: {}", refusal.stderr);
    }
    assert!(!text.contains("panicked"), "a refusal, not a panic: {}", refusal.stderr);
    assert!(refusal.status.code().is_some(), "the broker was ended by a signal: {refusal:?}");
}

#[test]
fn the_port_is_in_use() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let refusal = Settings::default().listen(address).prepare().start_refused();
    says(&refusal, &[&address.to_string(), "in use"]);
}

#[test]
fn the_data_directory_is_in_use() {
    let mut broker = Settings::default().start();
    let refusal = broker.twin_refused();
    says(&refusal, &[&broker.data().to_string_lossy(), "in use"]);
    assert!(broker.terminate().success(), "the first broker was disturbed");
}

#[test]
fn the_number_of_shards_differs() {
    let mut broker = Settings::default().shards(2).start();
    assert!(broker.terminate().success());
    broker.change_settings(|settings| settings.shards(3));
    says(&broker.start_refused(), &["2", "3", "shards"]);
    broker.change_settings(|settings| settings.shards(2));
    assert_eq!(broker.start_again().shards, 2);
}

#[test]
fn the_configuration_has_an_unknown_key() {
    let mut broker = Settings::default().prepare();
    let file = broker.home().join("broker.toml");
    fs::write(&file, "ring_sise = \"1MiB\"\n").unwrap();
    broker.set_arguments(&["--config", &file.to_string_lossy()]);
    says(&broker.start_refused(), &["ring_sise", &file.to_string_lossy()]);
}

#[test]
fn the_configuration_file_is_missing() {
    let mut broker = Settings::default().argument("--config=/nowhere/broker.toml").prepare();
    says(&broker.start_refused(), &["/nowhere/broker.toml"]);
}

#[test]
fn a_message_may_be_larger_than_ring_and_segment_take() {
    let mut broker = Settings::default().prepare();
    broker.set_arguments(&["--message-max=4MiB"]);
    says(&broker.start_refused(), &["ring", "message"]);
}

#[test]
fn the_tmpfs_has_no_room_for_the_ring() {
    let folder = tempfile::tempdir().unwrap();
    let Some(tmpfs) = Mount::at(folder.path(), "tmpfs", "size=512k") else { return };
    let mut broker = Settings::default().ring_parent(tmpfs.path()).prepare();
    says(&broker.start_refused(), &[&tmpfs.path().to_string_lossy(), "ring"]);
}

#[test]
fn the_data_directory_has_no_direct_io() {
    let mut broker = Settings::default().prepare();
    fs::create_dir(broker.data()).unwrap();
    // Everything on a ramfs is in the page cache and nowhere else.
    let Some(ramfs) = Mount::at(broker.data(), "ramfs", "mode=0700") else { return };
    says(&broker.start_refused(), &[&ramfs.path().to_string_lossy(), "O_DIRECT", "ext4 or XFS"]);
    assert!(!broker.data().join("shard-0000").exists(), "nothing was built on it");
}

#[test]
fn io_uring_is_forbidden() {
    let mut broker = Settings::default().prepare();
    let refusal = broker.start_refused_as(|command| {
        // SAFETY: between fork and exec the closure makes two system calls on memory of its own, and allocates nothing.
        unsafe { command.pre_exec(forbid_io_uring) };
    });
    says(&refusal, &["io_uring"]);
}

#[test]
fn too_little_memory_may_be_locked() {
    // SAFETY: a plain query.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: only root can become a user without privileges");
        return;
    }
    let mut broker = Settings::default().prepare();
    open_to_everybody(&[broker.home(), broker.ring_directory()]);
    if !everybody_can_run(&peregrine_tests::programs::program("peregrine-broker")) {
        eprintln!("skipped: the target directory cannot be entered by an unprivileged user");
        return;
    }
    let refusal = broker.start_refused_as(|command| {
        // SAFETY: between fork and exec the closure makes one system call on memory of its own, and allocates nothing.
        unsafe { command.pre_exec(|| limit_locked_memory(64 << 10)) };
        command.uid(NOBODY).gid(NOBODY);
    });
    says(&refusal, &["memlock", "512"]);
}

const NOBODY: u32 = 65534;

fn open_to_everybody(folders: &[&Path]) {
    for folder in folders {
        fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
}

fn everybody_can_run(program: &Path) -> bool {
    let mut command = Command::new(program);
    command.arg("--help").uid(NOBODY).gid(NOBODY).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn limit_locked_memory(bytes: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: the call reads one rlimit, which lives across it.
    match unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A seccomp filter as container runtimes install it: `io_uring_setup` fails with EPERM, all else passes.
fn forbid_io_uring() -> io::Result<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut steps = [
        step(LOAD, 0, 0, 0), // the number of the system call is the first field of seccomp_data
        step(JUMP_IF_EQUAL, 0, 1, libc::SYS_io_uring_setup as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the filter program and its steps live until both calls have returned; the kernel copies them.
    let result = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        } else {
            -1
        }
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
