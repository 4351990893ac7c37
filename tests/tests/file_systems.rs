//! On which file systems a start warns: the broker serves on each that has direct I/O, and says where nobody has tested it.

// A test that unwraps fails where it should.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use peregrine_tests::broker::{Broker, Settings};
use peregrine_tests::mount::Mount;

/// A message goes in and comes out, over a restart.
fn serves(broker: &mut Broker) {
    broker.start_again();
    broker.command_line().create_topic("t", 1);
    let line = broker.home().join("line");
    fs::write(&line, "one message\n").unwrap();
    broker.command_line().run(&["produce", "t", &line.to_string_lossy()]).succeeded();
    assert!(broker.terminate().success());
    broker.start_again();
    assert_eq!(broker.command_line().consume_all("t"), ["one message"]);
    assert!(broker.terminate().success());
}

/// The log's warnings that speak of the file system of the data directory.
fn warnings(broker: &Broker) -> Vec<String> {
    let log = broker.log();
    let about = |line: &&str| line.contains("WARN") && line.contains(&format!("{} is on a", broker.data().display()));
    log.lines().filter(about).map(str::to_owned).collect()
}

#[test]
fn ext4_and_xfs_are_taken_without_a_word() {
    let mut broker = Settings::default().prepare();
    let kind = kind_of(broker.home());
    if !["ext4", "xfs"].contains(&kind.as_str()) {
        eprintln!("skipped: the target directory is on {kind}");
        return;
    }
    serves(&mut broker);
    assert_eq!(warnings(&broker), Vec::<String>::new());
}

#[test]
fn another_file_system_is_taken_with_a_warning_that_names_its_type() {
    let mut broker = Settings::default().prepare();
    let folder = |name: &str| {
        let folder = broker.home().join(name);
        fs::create_dir(&folder).unwrap();
        folder.to_string_lossy().into_owned()
    };
    let (lower, upper, work) = (folder("lower"), folder("upper"), folder("work"));
    folder("data");
    // As of a container whose data directory is no volume.
    let layers = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let Some(_overlay) = Mount::at(broker.data(), "overlay", &layers) else { return };
    serves(&mut broker);
    let warnings = warnings(&broker);
    assert_eq!(warnings.len(), 2, "one for each start: {warnings:?}");
    assert!(warnings[0].contains("0x794c7630") && warnings[0].contains("ext4 and XFS"), "{warnings:?}");
}

#[test]
fn a_tmpfs_is_taken_with_a_warning_that_nothing_on_it_survives() {
    let mut broker = Settings::default().argument("--keep-free=0").prepare();
    fs::create_dir(broker.data()).unwrap();
    let Some(tmpfs) = Mount::at(broker.data(), "tmpfs", "size=64m") else { return };
    if !has_direct_io(tmpfs.path()) {
        eprintln!("skipped: this kernel's tmpfs has no direct I/O (Linux 6.6 is the first that has)");
        return;
    }
    serves(&mut broker);
    let warnings = warnings(&broker);
    assert_eq!(warnings.len(), 2, "one for each start: {warnings:?}");
    assert!(warnings[0].contains("tmpfs") && warnings[0].contains("survives"), "{warnings:?}");
}

fn has_direct_io(folder: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    let path = folder.join("direct");
    let opened = fs::OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_DIRECT).open(&path);
    let _ = fs::remove_file(&path);
    opened.is_ok()
}

/// As `/proc/mounts` calls it: the kind of the longest mount point above the folder.
fn kind_of(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap();
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let rows = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let above = rows.filter(|row| folder.starts_with(row[1]));
    above.max_by_key(|row| row[1].len()).map(|row| row[2].to_owned()).unwrap()
}
