//! The lock that keeps the host's I/O thread out of process-wide state during a clone.
//!
//! Runs on: the main thread, the I/O thread.
//!
//! The main thread holds it while it clones. The I/O thread takes it, briefly, around the
//! few things it does that touch what a child also uses: freeing memory of the process's
//! common heap, and calls into the C library that lock. Everything else on the I/O thread
//! works on memory that clones do not receive ([`crate::clone::private_memory`]), on system calls
//! and on its own descriptors.

use std::sync::{Mutex, MutexGuard, PoisonError};

static CLONE_LOCK: Mutex<()> = Mutex::new(());

/// Holds the lock until dropped. It guards no data, so a panic elsewhere cannot have
/// left any in a bad state.
///
/// The child of a clone inherits the lock as held by its own thread, which drops it.
pub(crate) fn hold() -> MutexGuard<'static, ()> {
    CLONE_LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}
