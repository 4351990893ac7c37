//! What is not on the path of a message: configuration, the checks of a start, the data directory's identity, logs, signals.

pub mod check;
pub mod checks;
pub mod configuration;
pub mod directory;
pub mod kernel;
pub mod logging;
pub mod settings;
pub mod shutdown;
