//! Headers that are FlatBuffers tables, and headers that are structs: reading with bounds, writing into the caller's buffer.

use flatbuffers::{FlatBufferBuilder, Follow, Verifiable, VerifierOptions, WIPOffset};

use super::DecodeError;
use crate::frame::{self, Kind, Sender};
use crate::ids::Correlation;
use crate::limits::{FRAME_HEADER_MAX, PAGE_ITEMS_MAX};

/// A page of rows and the tables around it; texts shared between rows could make a small header look large, hence the bound
/// on the apparent size.
const VERIFIER: VerifierOptions = VerifierOptions {
    max_depth: 4,
    max_tables: PAGE_ITEMS_MAX as usize + 4,
    max_apparent_size: 2 * FRAME_HEADER_MAX as usize,
    ignore_missing_null_terminator: false,
};

/// Verifies the table at the root of `header`.
pub(super) fn read<'a, T>(header: &'a [u8]) -> Result<T::Inner, DecodeError>
where
    T: Follow<'a> + Verifiable + 'a,
{
    flatbuffers::root_with_opts::<T>(&VERIFIER, header).map_err(|_| DecodeError::Header)
}

/// A header that is one struct of `N` bytes.
pub(super) fn read_struct<const N: usize>(header: &[u8]) -> Result<[u8; N], DecodeError> {
    header.try_into().map_err(|_| DecodeError::Header)
}

/// The header of a frame that has none.
pub(super) fn nothing(header: &[u8]) -> Result<(), DecodeError> {
    if header.is_empty() { Ok(()) } else { Err(DecodeError::Header) }
}

/// Where a table's frame goes, and as what.
pub(super) struct Envelope<'a> {
    pub kind: Kind,
    pub sender: Sender,
    pub correlation: Correlation,
    pub body: &'a [u8],
}

impl Envelope<'_> {
    pub(super) fn request(kind: Kind, correlation: Correlation) -> Self {
        Self { kind, sender: Sender::Client, correlation, body: &[] }
    }

    pub(super) fn answer(kind: Kind, correlation: Correlation) -> Self {
        Self { kind, sender: Sender::Broker, correlation, body: &[] }
    }

    /// Builds the header and appends the frame. Tables are not on a message's path: their builder allocates.
    pub(super) fn write<'b, T>(
        self,
        out: &mut Vec<u8>,
        build: impl FnOnce(&mut FlatBufferBuilder<'b>) -> WIPOffset<T>,
    ) {
        let mut builder = FlatBufferBuilder::new();
        let root = build(&mut builder);
        builder.finish_minimal(root);
        frame::encode(self.kind, self.sender, self.correlation, builder.finished_data(), self.body, out);
    }
}

/// Refuses a text that is longer than its bound.
pub(super) fn bounded<'a>(text: Option<&'a str>, max: usize, field: &'static str) -> Result<&'a str, DecodeError> {
    match text.unwrap_or_default() {
        text if text.len() <= max => Ok(text),
        _ => Err(DecodeError::Field(field)),
    }
}

/// The number of items that a listing's request asks for, where a page has at most `max`; 0 asks for a full page.
pub(super) fn page_limit(limit: u32, max: u32) -> Result<u32, DecodeError> {
    match limit {
        0 => Ok(max),
        limit if limit <= max => Ok(limit),
        _ => Err(DecodeError::Field("limit")),
    }
}
