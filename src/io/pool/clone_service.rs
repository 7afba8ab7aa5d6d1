//! Has clones made by the main thread, by way of [`crate::wire::clone_channel`].
//!
//! Runs on: the I/O thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::sys::files::{Interest, watch};
use crate::sys::messages::Socket;
use crate::sys::process;
use crate::wire::child_descriptors::Birth;
use crate::wire::clone_channel::{
    AT_ONCE, CloneTicket, Cloned, Failure, FromMain, IoEnd, Label, Prepared, Purpose, Refusal,
    ToMain,
};
use crate::wire::fd_set::FdSet;

/// How often a child without a descriptor is asked whether it has ended.
const LOOK: Duration = Duration::from_millis(100);

/// Who waits for a reply, and its place among those under way, which is free when the reply has come,
/// whether or not anybody still waits for it.
struct Waiter {
    reply: oneshot::Sender<Result<ClonedChild, Refusal>>,
    _place: OwnedSemaphorePermit,
}

/// A child that waits for the host's word.
pub(crate) struct ClonedChild {
    pub pid: libc::pid_t,
    pub pidfd: AsyncFd<OwnedFd>,
    /// What was made for it, if that was asked for and is possible here.
    pub new_network: Option<OwnedFd>,
}

/// The I/O thread's side, on its runtime.
#[derive(Clone)]
pub(crate) struct CloneService {
    requests: Sender<ToMain>,
    waiting: Rc<RefCell<HashMap<u64, Waiter>>>,
    next: Rc<Cell<u64>>,
    room: Arc<Semaphore>,
    descriptors: Rc<Socket>,
}

impl CloneService {
    /// Starts to pass replies on; the receiver tells when the main thread is ready.
    pub(crate) fn start(
        end: IoEnd,
    ) -> std::io::Result<(Self, oneshot::Receiver<Result<Prepared, Failure>>)> {
        let IoEnd {
            requests,
            replies,
            wake,
            descriptors,
            others,
        } = end;
        let mut descriptors = Socket::new(descriptors)?;
        descriptors.stop_watching(); // nothing ever comes
        let service = Self {
            requests,
            waiting: Rc::default(),
            next: Rc::default(),
            room: Arc::new(Semaphore::new(AT_ONCE)),
            descriptors: Rc::new(descriptors),
        };
        let (ready, is_ready) = oneshot::channel();
        let mut ready = Some(ready);
        let waiting = service.waiting.clone();
        let wake = watch(wake, Interest::READABLE)?;
        tokio::task::spawn_local(async move {
            while let Ok(mut awake) = wake.readable().await {
                // Reset first: what is sent from now on wakes again.
                wake.get_ref().read().ok();
                awake.clear_ready();
                for message in replies.try_iter() {
                    match message {
                        FromMain::Ready(result) => {
                            for copy in others {
                                // SAFETY: the main thread has its own table by now, and nobody else
                                // closes these here.
                                drop(unsafe { OwnedFd::from_raw_fd(copy) });
                            }
                            drop(ready.take().map(|ready| ready.send(result)));
                        }
                        FromMain::Cloned(reply) => {
                            let waiter = waiting.borrow_mut().remove(&reply.number);
                            pass_on(reply.result, waiter.expect("a reply to a request"));
                        }
                    }
                }
            }
        });
        Ok((service, is_ready))
    }

    /// Has one clone made. The child has copies of the descriptors; the caller closes its own.
    pub(crate) async fn clone(
        &self,
        descriptors: FdSet<BorrowedFd<'_>>,
        birth: Birth,
        purpose: Purpose,
    ) -> Result<ClonedChild, Refusal> {
        let place = self.room.clone().acquire_owned().await;
        let place = place.expect("it is never closed");
        // Before the request, by which the main thread knows that they are there.
        let number = self
            .send_descriptors(&descriptors)
            .await
            .map_err(|error| format!("sendmsg(descriptors to the main thread): {error}"))?;
        let (sender, reply) = oneshot::channel();
        let ticket = CloneTicket {
            number,
            birth,
            purpose,
        };
        self.requests
            .try_send(ToMain::Clone(ticket))
            .map_err(|error| format!("the main thread takes no more clones: {error}"))?;
        let waiter = Waiter {
            reply: sender,
            _place: place,
        };
        self.waiting.borrow_mut().insert(number, waiter);
        reply
            .await
            .map_err(|_| Refusal::from("the main thread has ended"))?
    }

    /// Sends them under a new number, the next in the socket as in the channel: nothing comes between
    /// this and the request.
    async fn send_descriptors(&self, descriptors: &FdSet<BorrowedFd<'_>>) -> std::io::Result<u64> {
        let (roles, numbers) = (descriptors.roles(), descriptors.numbers());
        loop {
            let number = self.next.get();
            let label = Label { number, roles }.encode();
            match self.descriptors.send_now(&label, &numbers) {
                Ok(()) => {
                    self.next.set(number + 1);
                    return Ok(number);
                }
                Err(errno) => self.descriptors.room_after(errno).await?,
            }
        }
    }
}

/// Gives a child to whoever asked for it. Without anybody, or with nothing to hold it by, it is ended.
fn pass_on(cloned: Result<Cloned, Refusal>, waiter: Waiter) {
    let Cloned {
        pid,
        has_new_network,
    } = match cloned {
        Ok(cloned) => cloned,
        Err(error) => {
            waiter.reply.send(Err(error)).ok();
            return;
        }
    };
    let pidfd = match follow(pid) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            tokio::task::spawn_local(async move {
                // What the child has may be another's only when it is gone.
                end_without_descriptor(pid).await;
                waiter.reply.send(Err(error)).ok();
            });
            return;
        }
    };
    let child = ClonedChild {
        pid,
        pidfd,
        // If that fails, it is not kept, and ends with the child.
        new_network: has_new_network.then(|| open_network(pid)).flatten(),
    };
    if waiter.reply.send(Ok(child)).is_err() {
        tokio::task::spawn_local(end_without_descriptor(pid));
    }
}

/// Something by which this thread is told of a child's end. There may be no descriptor left, or no memory, or no watch: of
/// these a user has a number (`epoll(7)`, max_user_watches), which that user's jobs may have taken.
fn follow(pid: libc::pid_t) -> Result<AsyncFd<OwnedFd>, Refusal> {
    let pidfd = process::open_pidfd(pid).map_err(|errno| format!("pidfd_open: {errno}"))?;
    watch(pidfd, Interest::READABLE).map_err(|error| format!("epoll_ctl(pidfd): {error}").into())
}

fn open_network(pid: libc::pid_t) -> Option<OwnedFd> {
    let file = std::fs::File::open(format!("/proc/{pid}/ns/net"));
    file.ok().map(OwnedFd::from)
}

/// Kills and reaps a child by its id, which is its own until then.
async fn end_without_descriptor(pid: libc::pid_t) {
    let pid = Pid::from_raw(pid);
    kill(pid, Signal::SIGKILL).ok();
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
    while waitpid(pid, Some(flags)) == Ok(WaitStatus::StillAlive) {
        tokio::time::sleep(LOOK).await;
    }
}
