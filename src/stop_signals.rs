//! The signals that ask a host to end.
//!
//! Runs on: the main thread, the I/O thread.

use std::sync::OnceLock;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};

use crate::sys::process;

const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Blocks the signals for the calling thread and those it starts. Comes first in the
/// process, so that no thread of a preloaded module receives them instead.
pub(crate) fn block_signals() -> nix::Result<()> {
    // Not SigSet::thread_block: see src/child/enter.rs.
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&heeded()), None)
}

/// Blocks all signals for the calling thread: a handler of a preloaded module's must not run on it, nor a default
/// action that such a module restored end the process (SIGPIPE).
pub(crate) fn block_all_signals() -> nix::Result<()> {
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None)
}

/// Those that the host was not started to ignore (`nohup`). Asked once, before Python sets
/// handlers of its own.
pub(crate) fn heeded() -> SigSet {
    static HEEDED: OnceLock<SigSet> = OnceLock::new();
    *HEEDED.get_or_init(|| {
        SIGNALS
            .into_iter()
            .filter(|signal| process::is_ignored(*signal as i32) != Ok(true))
            .collect()
    })
}
