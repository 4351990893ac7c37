//! The notes of what earlier starts gave up by `--accept-loss`, read before the log is: a start must know what to pass over
//! when it gets there, and the notes stand behind it.

use peregrine_protocol::entry::{Entry, EntryKind};

use super::scan::open_window;
use super::survey::Survey;
use crate::log::chain::Chain;
use crate::log::damage::{Extent, decode_loss};
use crate::log::disk::Disk;
use crate::log::error::StartError;
use crate::log::options::LogOptions;
use crate::log::window::Expected;

/// The extents that sound notes of the log name. A note that is not whole excuses nothing: what it named is damage again, and
/// so is the note. What a note of an older program names is not here, since no identity points at it.
pub(super) async fn given_up<D: Disk>(
    disk: &D,
    options: &LogOptions,
    survey: &Survey,
    chain: &Chain,
) -> Result<Vec<Extent>, StartError> {
    let mut extents = Vec::new();
    for link in &chain.links {
        let identity = &survey.segments[link.index];
        let Some(position) = identity.loss else { continue };
        let mut window = open_window(disk, options, identity).await?;
        let epoch = identity.epoch;
        let expected = Expected { position, epoch_min: epoch, epoch_max: epoch, limit: link.end };
        let Ok(Entry::Full(header)) = window.entry(&expected).await else { continue };
        if header.kind == EntryKind::Loss {
            let payload = window.payload(header.payload_position(), header.length).await;
            extents.extend(decode_loss(payload).unwrap_or_default());
        }
    }
    Ok(extents)
}
