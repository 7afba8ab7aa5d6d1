//! The kernel's word on whether anything was mounted or unmounted.
//!
//! Runs on: any process.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::unix::AsyncFd;

use super::files::{Interest, watch};

/// Follows the mounts of the calling thread's mount namespace (`proc_pid_mounts(5)`).
pub(crate) struct MountWatch {
    /// The kernel tells each open file once, so who waits has another than who asks.
    waits: AsyncFd<File>,
    asks: File,
    changes: Cell<u64>,
}

impl MountWatch {
    pub(crate) fn start() -> std::io::Result<Self> {
        let open = || File::open("/proc/thread-self/mountinfo");
        Ok(Self {
            waits: watch(open()?, Interest::PRIORITY)?,
            asks: open()?,
            changes: Cell::new(0),
        })
    }

    /// Another number than the last time, if anything has changed since then.
    pub(crate) fn changes(&self) -> u64 {
        let mut ask = [PollFd::new(self.asks.as_fd(), PollFlags::POLLPRI)];
        // What an interrupted look may have missed counts as a change.
        if poll(&mut ask, PollTimeout::ZERO) != Ok(0) {
            self.changes.set(self.changes.get() + 1);
        }
        self.changes.get()
    }

    /// Waits for the next change.
    pub(crate) async fn changed(&self) -> std::io::Result<()> {
        self.waits.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}
