//! The client library of Peregrine.

pub mod error;
pub mod idempotence;
pub mod message;
pub mod session;

pub use error::{Error, Refusal, Result};
pub use message::{Delivery, Message};
