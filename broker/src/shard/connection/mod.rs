//! A connection: a reader task and a writer task around one socket.
pub mod receive;
pub mod socket;
