//! What passes between the processes and threads of one host: plain data, and how it is encoded.
//!
//! Runs on: any process.

pub(crate) mod activity;
pub(crate) mod assignment;
pub(crate) mod child_descriptors;
pub(crate) mod child_spec;
pub(crate) mod clone_channel;
pub(crate) mod fd_set;
pub(crate) mod handshake;
pub(crate) mod host_descriptors;
pub(crate) mod payload;
pub(crate) mod record;
pub(crate) mod result_channel;
