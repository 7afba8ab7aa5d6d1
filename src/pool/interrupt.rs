//! Signals that ask the host to end, read from a descriptor.

use crate::sys::files::{Interest, watch};
use crate::sys::process;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::sync::watch;

const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Blocks the signals for the calling thread and those it starts. Comes first in the
/// process, so that no thread of a preloaded module receives them instead.
pub(crate) fn block_signals() -> nix::Result<()> {
    // Not SigSet::thread_block: see src/sandbox/enter.rs.
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals()), None)
}

/// Blocks all signals for the calling thread: a handler of a preloaded module's must not run on it, nor a default
/// action that such a module restored end the process (SIGPIPE).
pub(crate) fn block_all_signals() -> nix::Result<()> {
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None)
}

/// Those that the host was not started to ignore (`nohup`). Asked once, before Python sets
/// handlers of its own.
fn signals() -> SigSet {
    static HEEDED: OnceLock<SigSet> = OnceLock::new();
    *HEEDED.get_or_init(|| {
        SIGNALS
            .into_iter()
            .filter(|signal| process::is_ignored(*signal as i32) != Ok(true))
            .collect()
    })
}

/// Whether the host was asked to end, and by which signal.
#[derive(Clone)]
pub(crate) struct Interrupt {
    signal: watch::Receiver<Option<i32>>,
}

impl Interrupt {
    /// Starts to listen, on the current runtime.
    pub(crate) fn listen() -> std::io::Result<Self> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let source = watch(SignalFd::with_flags(&signals(), flags)?, Interest::READABLE)?;
        let (sender, signal) = watch::channel(None);
        tokio::task::spawn_local(async move {
            loop {
                let Ok(mut ready) = source.readable().await else {
                    return;
                };
                match source.get_ref().read_signal() {
                    Ok(Some(info)) => {
                        log::debug!("signal {}", info.ssi_signo);
                        sender.send_replace(Some(info.ssi_signo as i32));
                    }
                    Ok(None) | Err(Errno::EAGAIN) => ready.clear_ready(),
                    Err(errno) => log::error!("read(signalfd): {errno}"),
                }
            }
        });
        Ok(Self { signal })
    }

    /// Returns once a signal has come: its number.
    pub(crate) async fn received(&self) -> i32 {
        let mut signal = self.signal.clone();
        match signal.wait_for(Option::is_some).await {
            Ok(number) => number.expect("waited for"),
            Err(_) => std::future::pending().await,
        }
    }
}
