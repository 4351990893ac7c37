//! Checkpoints: what was saved in slices while the engine went on is, with the log from the checkpoint's begin, what was there.

mod format;
mod history;
mod losses;
mod slices;
mod world;

use super::*;

/// Saves in slices of `budget` bytes, with `between` called after each; the sections, and where the log is read back from.
fn save(bench: &mut Bench, budget: usize, mut between: impl FnMut(&mut Bench)) -> (Vec<Vec<u8>>, LogPosition) {
    let mut save = bench.engine.begin_checkpoint();
    let mut sections = Vec::new();
    loop {
        let mut section = Vec::new();
        let is_done = bench.engine.save_slice(&mut save, &mut section, budget);
        sections.push(section);
        if is_done {
            return (sections, save.begin());
        }
        between(bench);
    }
}

/// An engine with these sections of a checkpoint.
fn put_back(options: EngineOptions, catalogue: Option<CatalogueSnapshot>, sections: &[Vec<u8>]) -> Engine {
    let mut engine = Engine::new(options);
    if let Some(catalogue) = catalogue {
        engine.install_catalogue(catalogue);
    }
    for section in sections {
        engine.restore(section).expect("what was saved can be put back");
    }
    engine
}

/// An engine from a checkpoint and the entries of `log` from its begin on, still in its start.
fn restore(
    options: EngineOptions,
    catalogue: Option<CatalogueSnapshot>,
    sections: &[Vec<u8>],
    log: &[(EntryHeader, Vec<u8>)],
) -> Engine {
    let mut engine = put_back(options, catalogue, sections);
    engine.restore_end().expect("all of it is there");
    let begin = engine.applied();
    for (header, payload) in log.iter().filter(|(header, _)| header.position >= begin) {
        engine.apply(header, payload).expect("the log can be read back behind a checkpoint");
    }
    engine
}
