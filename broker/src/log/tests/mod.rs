//! The log as a whole, on the simulated machine: what each kind of stop leaves, step by step. Random histories are the
//! simulator's business; here are the cases that have a name.

mod bench;
mod damage;
mod device;
mod loss;
mod running;
mod starting;
