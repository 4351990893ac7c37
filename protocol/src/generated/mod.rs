//! What `flatc` makes of `schema/peregrine.fbs`. Never edited by hand: `scripts/generate-protocol` writes it, and the test
//! `schema_is_fresh` compares. Exempt from the lints, from rustfmt and from the tidy test.

#[allow(warnings, clippy::all, clippy::pedantic, clippy::undocumented_unsafe_blocks, clippy::unwrap_used)]
#[rustfmt::skip]
mod peregrine_generated;

pub(crate) use peregrine_generated::*;
