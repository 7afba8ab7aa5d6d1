//! Signals that ask the host to end, read from a descriptor.
//!
//! Runs on: the I/O thread.

use nix::errno::Errno;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::sync::watch;

use crate::stop_signals;
use crate::sys::files::{Interest, watch};

/// Whether the host was asked to end, and by which signal.
#[derive(Clone)]
pub(crate) struct Interrupt {
    signal: watch::Receiver<Option<i32>>,
}

impl Interrupt {
    /// Starts to listen, on the current runtime.
    pub(crate) fn listen() -> std::io::Result<Self> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let source = watch(
            SignalFd::with_flags(&stop_signals::heeded(), flags)?,
            Interest::READABLE,
        )?;
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
