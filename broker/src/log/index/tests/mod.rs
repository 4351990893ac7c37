//! Indexes of segments that were put together entry by entry, so that a plain list knows what must be found.

mod building;
mod damaged;
mod device;
mod file;
mod lookups;
pub mod segment;
