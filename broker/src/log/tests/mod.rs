//! The log as a whole, on the simulated machine: what each kind of stop leaves, step by step. Random histories are the
//! simulator's business; here are the cases that have a name.

mod bench;
mod checkpoint;
mod damage;
mod damaged_segments;
pub(super) mod device;
mod full;
mod indexing;
mod loss;
mod recycling;
mod retiring;
mod running;
mod scrubbing;
mod starting;
