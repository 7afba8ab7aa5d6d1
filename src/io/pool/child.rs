//! A child as the host holds it: on its way, waiting for a job, or at work.
//!
//! Runs on: the I/O thread.

use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use tokio::io::unix::AsyncFd;

use crate::io::cgroup::JobCgroup;
use crate::io::network::Connection;
use crate::io::network::slots::Slot;
use crate::sys::messages::Socket;
use crate::sys::process::{self, Reaped};
use crate::wire::handshake::ChildReport;

pub(crate) struct Child {
    pub pid: libc::pid_t,
    pub(super) pidfd: AsyncFd<OwnedFd>,
    pub(super) control: Socket,
    pub(super) cgroup: Option<JobCgroup>,
    pub(super) connection: Option<Connection>,
    /// The network namespace that another may get after it.
    pub(super) slot: Option<Slot>,
    pub(super) host_id: u32,
    /// Resident memory at the clone: the part of the warm image that the child began with.
    pub(super) resident_at_start: u64,
    /// See [`crate::io::pool::outcome::JobReport`].
    pub(super) unenforced: Vec<&'static str>,
}

/// A child that is given up ends at once. For one that was reaped this does nothing.
impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Child {
    pub(crate) fn kill(&self) {
        // Whoever waits for its end is told that it does not come.
        if let Err(errno) = process::signal(self.pidfd.get_ref().as_fd(), libc::SIGKILL) {
            log::error!("pidfd_send_signal({}, SIGKILL): {errno}", self.pid);
        }
    }

    /// Waits for its end and reaps it.
    pub(crate) async fn reap(&self) -> Reaped {
        reap(&self.pidfd).await
    }

    /// Whether it has not ended yet.
    pub(crate) fn lives(&self) -> bool {
        let mut poll = [PollFd::new(self.pidfd.get_ref().as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut poll, PollTimeout::ZERO) == Ok(0)
    }

    /// Whether it has ended. The task is woken when it does.
    pub(crate) fn poll_ended(&self, context: &mut Context<'_>) -> Poll<()> {
        self.pidfd.poll_read_ready(context).map(drop)
    }

    /// Gives it a job, which it takes once it is in its sandbox.
    ///
    /// # Errors
    /// EPIPE, ECONNRESET if it has ended.
    pub(crate) fn assign(&self, assignment: &[u8], descriptors: &[RawFd]) -> nix::Result<()> {
        self.control.send_now(assignment, descriptors)
    }

    /// From here on nobody is woken when it reports something. What it has is heard without waiting.
    pub(crate) fn stop_listening(&mut self) {
        self.control.stop_watching();
    }

    pub(crate) fn is_listened_to(&self) -> bool {
        self.control.is_watched()
    }

    /// The next that it reports; `None` if it ends without a word, or with none that is known.
    pub(crate) async fn hear(&self) -> std::io::Result<Option<ChildReport>> {
        poll_fn(|context| self.poll_hear(context)).await
    }

    /// The same, with the descriptor that came along.
    pub(crate) async fn hear_with_descriptor(
        &self,
    ) -> std::io::Result<Option<(ChildReport, Option<OwnedFd>)>> {
        let message = poll_fn(|context| self.control.poll_receive(context)).await?;
        Ok(message.and_then(|message| {
            let report = ChildReport::decode(&message.bytes)?;
            Some((report, message.descriptors.into_iter().next()))
        }))
    }

    /// The same, for a task that listens to several.
    pub(crate) fn poll_hear(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<Option<ChildReport>>> {
        let message = ready!(self.control.poll_receive(context))?;
        Poll::Ready(Ok(
            message.and_then(|message| ChildReport::decode(&message.bytes))
        ))
    }
}

/// Waits for the end of the child behind a pidfd and reaps it.
pub(super) async fn reap(pidfd: &AsyncFd<OwnedFd>) -> Reaped {
    loop {
        let mut ready = pidfd.readable().await.expect("the runtime runs");
        match process::reap(pidfd.get_ref().as_fd()) {
            Ok(Some(reaped)) => return reaped,
            Ok(None) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            // Its end is certain, since the descriptor tells of it.
            Err(errno) => {
                log::error!(
                    "waitid of a child that has ended: {errno}; hint: does a preloaded module have SIGCHLD ignored, or wait for any child?"
                );
                return Reaped::LOST;
            }
        }
    }
}
