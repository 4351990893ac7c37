//! What a batch holds: records, one per message, each at a multiple of 8, each with a CRC of its own.
//!
//! ```text
//! record:   0            4            8           10           12
//!          ┌────────────┬────────────┬───────────┬────────────┬───────────┬─────┬───────────┬─────────────┐
//!          │ length u32 │ CRC32 u32  │ attributes│ sections   │ section 1 │ ... │ section n │ zeros to 8  │
//!          │            │            │ u16       │ n u16      │           │     │           │             │
//!          └────────────┴────────────┴───────────┴────────────┴───────────┴─────┴───────────┴─────────────┘
//!           └── length covers header and sections, not the zeros ──────────────────────────┘
//!                        └ of all that follows, up to length ──────────────────────────────┘
//! section:  number u16 · zero u16 · length u32 · bytes
//! ```
//!
//! A batch travels and is stored untouched, so readers take records apart in place ([`Batch`]) and only producers put them
//! together ([`RecordDraft`]). Sections with numbers that a program does not know are kept and delivered.

mod batch;
mod draft;
mod outline;
mod properties;
mod section;

pub use batch::{Batch, Record, Records};
pub use draft::RecordDraft;
pub use outline::{RecordOutline, SectionOutline};
pub use properties::{Properties, push_property};
pub use section::{Section, SectionNumber, Sections};

use crate::limits::{RECORDS_MAX, SECTIONS_MAX};

/// Why a batch's bytes are not records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    #[error("a record or section reaches beyond its batch or record")]
    Length,
    #[error("the zeros behind a record are not zero")]
    Filling,
    #[error("a record's checksum is wrong")]
    Checksum,
    #[error("a record's unknown attributes {0:#06x}")]
    Attributes(u16),
    #[error("a record has {0} sections, at most {SECTIONS_MAX} are allowed")]
    SectionCount(u16),
    #[error("a section's zero field is not zero")]
    Reserved,
    #[error("a section stands twice, or not in the order of its number")]
    SectionOrder,
    #[error("section {0} has a length that its kind does not allow")]
    SectionLength(u16),
    #[error("a property's name or value reaches beyond its section, or is not UTF-8")]
    Property,
    #[error("the batch says {said} records and holds {held} (1 to {RECORDS_MAX} are allowed)")]
    Count { said: u32, held: u32 },
}

#[cfg(test)]
mod tests;
