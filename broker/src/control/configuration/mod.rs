//! The configuration: one declared table ([`table`]), three sources.
//!
//! A flag wins over an environment variable, that over the file, that over the default. Unknown flags and keys are refused; an
//! unknown variable that begins with `PEREGRINE_` is only told of, since it may be another program's.

mod command;
mod draft;
mod file;
pub mod quantity;
mod reference;
pub mod table;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use command::{Command, EchoOptions, parse};
pub use draft::Draft;
pub use reference::reference;

use crate::control::logging::LogSettings;
use crate::control::settings::Settings;

/// A whole configuration whose number of shards may still depend on the data directory.
#[derive(Clone, Debug)]
pub struct Configuration {
    pub data: PathBuf,
    pub listen: SocketAddr,
    /// `None`: as many as the data directory has, or a new one is given.
    pub shards: Option<u16>,
    pub log: LogSettings,
    /// The ring directory was chosen, and not just the default: it must be a tmpfs then.
    pub ring_directory_chosen: bool,
    /// Variables that look like ours and are not.
    pub unknown_variables: Vec<String>,
    draft: Draft,
}

impl Configuration {
    /// Where ring files are to lie, as configured.
    pub fn ring_directory(&self) -> Option<&PathBuf> {
        self.draft.ring_directory.as_ref()
    }

    /// The settings for a data directory of `shards` shards; `rings` where their ring files can lie.
    pub fn settle(self, shards: u16, rings: Option<PathBuf>) -> Result<Settings, String> {
        let mut draft = self.draft;
        draft.ring_directory = rings;
        draft.settle(self.data, self.listen, shards)
    }
}

#[cfg(test)]
mod tests;
