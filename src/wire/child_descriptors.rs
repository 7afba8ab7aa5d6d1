//! Which of pyspawner's own descriptors a child has, and where.
//!
//! Runs on: the main thread, a child.

use std::os::fd::RawFd;

/// A number of the child at which it finds one of the job's standard streams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamCopy {
    pub number: RawFd,
    pub stream: RawFd,
}

/// pyspawner's own descriptors in a child. Numbers, not owners: the clone holds copies of them all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChildDescriptors {
    /// Stands in for the job's standard input.
    pub null: RawFd,
    /// The others are as [`super::fd_set::Role`] says.
    pub control: RawFd,
    pub spec: Option<RawFd>,
    pub root: Option<RawFd>,
}

/// The network namespace of a clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Birth {
    /// Made by the clone itself, if the sandbox has one.
    Own,
    /// Made before the clone, to be kept.
    New,
    /// Made for an earlier clone; a new one if that left a trace in it.
    InSlot,
}
