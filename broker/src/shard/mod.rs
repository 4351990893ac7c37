//! The glommio side of the broker: executors, the listening socket, connections, the router and the mesh between shards.
pub mod connection;
pub mod echo;
pub mod event;
pub mod executor;
pub mod listener;
