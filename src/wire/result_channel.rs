//! The descriptor on which a child tells its host a result, progress and the name of a blocked call.
//!
//! Runs on: a child.
//!
//! Its number lies above those that preloaded objects and the job's own first files have, and is known to
//! this process alone: signal handlers read it, so it is an atomic number.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering};

/// The lowest number it may have. A table of descriptors has 64 places before it must grow.
pub(crate) const LOWEST: RawFd = 56;

static CHANNEL: AtomicI32 = AtomicI32::new(-1);

/// From here on this is the channel, or nobody asks for a result.
pub(crate) fn set(channel: Option<RawFd>) {
    CHANNEL.store(channel.unwrap_or(-1), Ordering::Relaxed);
}

/// The channel's number, if a result is asked for.
pub(crate) fn number() -> Option<RawFd> {
    let number = CHANNEL.load(Ordering::Relaxed);
    (number >= 0).then_some(number)
}
