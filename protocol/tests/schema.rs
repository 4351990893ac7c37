//! `schema_is_fresh`: the committed code is what flatc makes of the committed schema.
//!
//! Needs a flatc of exactly our flatbuffers crate's version; `scripts/generate-protocol` installs the one from PyPI under
//! `.run-scripts-setup-first` where it is missing. Without it the test fails and says so: a schema that nobody compares is one
//! that drifts.

use std::path::Path;
use std::process::Command;

#[test]
fn schema_is_fresh() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let script = workspace.join("scripts/generate-protocol");
    let made = Command::new(&script).arg(scratch.path()).output().expect("scripts/generate-protocol can be run");
    assert!(
        made.status.success(),
        "the schema could not be generated anew; run scripts/setup, then scripts/generate-protocol: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    let read = |folder: &Path| {
        let file = folder.join("peregrine_generated.rs");
        std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    };
    let (fresh, committed) = (read(scratch.path()), read(&workspace.join("protocol/src/generated")));
    assert!(
        fresh == committed,
        "protocol/src/generated is stale; run scripts/generate-protocol and commit what it made"
    );
}
