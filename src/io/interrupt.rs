//! Signals that ask the host to end, read from a descriptor.
//!
//! Runs on: the I/O thread.

use std::cell::Cell;
use std::rc::Rc;

use nix::errno::Errno;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::sync::watch;

use crate::stop_signals;
use crate::sys::files::{Interest, watch};

/// Whether the host was asked to end, and by which signal.
#[derive(Clone)]
pub(crate) struct Interrupt {
    signal: watch::Sender<Option<i32>>,
    drain: watch::Sender<Option<i32>>,
    /// Whether the first signal asks to drain.
    drains: Rc<Cell<bool>>,
}

impl Interrupt {
    /// Starts to listen, on the current runtime.
    pub(crate) fn listen() -> std::io::Result<Self> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let source = watch(
            SignalFd::with_flags(&stop_signals::heeded(), flags)?,
            Interest::READABLE,
        )?;
        let interrupt = Self {
            signal: watch::Sender::new(None),
            drain: watch::Sender::new(None),
            drains: Rc::default(),
        };
        let listener = interrupt.clone();
        tokio::task::spawn_local(async move {
            loop {
                let Ok(mut ready) = source.readable().await else {
                    return;
                };
                match source.get_ref().read_signal() {
                    Ok(Some(info)) => {
                        log::debug!("signal {}", info.ssi_signo);
                        listener.take(info.ssi_signo as i32);
                    }
                    Ok(None) | Err(Errno::EAGAIN) => ready.clear_ready(),
                    Err(errno) => log::error!("read(signalfd): {errno}"),
                }
            }
        });
        Ok(interrupt)
    }

    /// From now on the first signal asks to drain, and the second to end.
    pub(crate) fn drain_first(&self) {
        self.drains.set(true);
    }

    /// Returns once the host was asked to drain, by this signal.
    pub(crate) async fn drain_asked(&self) -> i32 {
        some(&self.drain).await
    }

    /// Ends the host as this signal does.
    pub(crate) fn raise(&self, signal: i32) {
        self.signal.send_replace(Some(signal));
    }

    fn take(&self, signal: i32) {
        match self.drains.replace(false) {
            true => self.drain.send_replace(Some(signal)),
            false => self.signal.send_replace(Some(signal)),
        };
    }

    /// Returns once a signal has come: its number.
    pub(crate) async fn received(&self) -> i32 {
        some(&self.signal).await
    }
}

async fn some(signal: &watch::Sender<Option<i32>>) -> i32 {
    match signal.subscribe().wait_for(Option::is_some).await {
        Ok(number) => number.expect("waited for"),
        Err(_) => std::future::pending().await,
    }
}
