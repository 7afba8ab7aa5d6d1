//! How the I/O thread has clones made by the main thread.
//!
//! Requests and replies go through two channels whose buffers belong to the main thread.
//! A request holds numbers only: it is in memory that every child inherits.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::{OwnedFd, RawFd};
use std::rc::Rc;

use crate::sys::files::{Interest, watch};
use crossbeam_channel::{Receiver, Sender};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::{Semaphore, oneshot};

use crate::clone::network_namespace::Birth;
use crate::sandbox::enter::ChildDescriptors;

/// From the I/O thread to the main thread.
pub enum ToMain {
    /// The I/O thread runs, under this thread id.
    IoThread(libc::pid_t),
    Clone(CloneRequest),
}

/// What a child is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A job that waits for it.
    Job,
    /// A job to come: it has time to prepare itself for that.
    Spare,
    /// To check, in its sandbox, that it can reach what its interpreter will need.
    Probe,
    /// To measure what the way into the sandbox costs: it says one byte there and ends.
    Floor,
    /// To measure what the system call costs: it ends at once, with nothing of its way in.
    BareClone,
}

/// One clone, please.
#[derive(Clone, Copy)]
pub struct CloneRequest {
    number: u64,
    pub descriptors: ChildDescriptors,
    /// The folder of the child's control group.
    pub cgroup: Option<RawFd>,
    pub purpose: Purpose,
    pub network: Birth,
}

/// From the main thread to the I/O thread.
pub enum FromMain {
    /// The interpreter is warm and the sandbox prepared; or why not.
    Ready(Result<Prepared, Failure>),
    Cloned(CloneReply),
}

/// What the main thread tells of the sandbox that it has prepared.
pub struct Prepared {
    /// Names that must be out of children's sight.
    pub hidden_names: Vec<std::path::PathBuf>,
}

/// Why the main thread cannot make clones.
pub struct Failure {
    /// `preload` for what the operator's modules did, else `setup`.
    pub kind: &'static str,
    pub detail: String,
}

pub struct CloneReply {
    number: u64,
    result: Result<ClonedChild, String>,
}

/// How many requests may be under way: what the channels hold.
const AT_ONCE: usize = 1024;

type Waiter = oneshot::Sender<Result<ClonedChild, String>>;

/// A child that waits for the host's word.
pub struct ClonedChild {
    pub pid: libc::pid_t,
    pub pidfd: OwnedFd,
    /// What was made for it, if that was asked for and is possible here.
    pub new_network: Option<OwnedFd>,
}

/// The main thread's ends.
pub struct MainEnd {
    pub requests: Receiver<ToMain>,
    replies: Sender<FromMain>,
    /// An eventfd: the I/O thread waits in epoll, where it cannot see a channel.
    wake: EventFd,
}

impl MainEnd {
    pub fn ready(&self, result: Result<Prepared, Failure>) {
        self.send(FromMain::Ready(result));
    }

    pub fn reply(&self, request: CloneRequest, result: Result<ClonedChild, String>) {
        self.send(FromMain::Cloned(CloneReply {
            number: request.number,
            result,
        }));
    }

    fn send(&self, message: FromMain) {
        // Without an I/O thread there is nobody to tell: it ends the process when it ends.
        if self.replies.send(message).is_ok() {
            self.wake
                .write(1)
                .expect("an eventfd of 64 bits is not full");
        }
    }
}

/// The I/O thread's ends, before its runtime exists.
pub struct IoEnd {
    pub requests: Sender<ToMain>,
    replies: Receiver<FromMain>,
    wake: EventFd,
}

/// Creates both ends, on the main thread: the buffers are its memory.
pub fn channels() -> nix::Result<(MainEnd, IoEnd)> {
    // One more for the I/O thread's greeting, and for the main thread's.
    let (to_main, requests) = crossbeam_channel::bounded(AT_ONCE + 1);
    let (from_main, replies) = crossbeam_channel::bounded(AT_ONCE + 1);
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let wake = EventFd::from_flags(flags)?;
    let shared = nix::unistd::dup(&wake)?;
    Ok((
        MainEnd {
            requests,
            replies: from_main,
            // SAFETY: a fresh duplicate of an eventfd.
            wake: unsafe { EventFd::from_owned_fd(shared) },
        },
        IoEnd {
            requests: to_main,
            replies,
            wake,
        },
    ))
}

/// The I/O thread's side, on its runtime.
#[derive(Clone)]
pub struct CloneService {
    requests: Sender<ToMain>,
    waiting: Rc<RefCell<HashMap<u64, Waiter>>>,
    next: Rc<Cell<u64>>,
    room: Rc<Semaphore>,
}

impl CloneService {
    /// Starts to pass replies on; the receiver tells when the main thread is ready.
    pub fn start(
        end: IoEnd,
    ) -> std::io::Result<(Self, oneshot::Receiver<Result<Prepared, Failure>>)> {
        let service = Self {
            requests: end.requests,
            waiting: Rc::default(),
            next: Rc::default(),
            room: Rc::new(Semaphore::new(AT_ONCE)),
        };
        let (ready, is_ready) = oneshot::channel();
        let mut ready = Some(ready);
        let waiting = service.waiting.clone();
        let replies = end.replies;
        let wake = watch(end.wake, Interest::READABLE)?;
        tokio::task::spawn_local(async move {
            while let Ok(mut awake) = wake.readable().await {
                // Reset first: what is sent from now on wakes again.
                wake.get_ref().read().ok();
                awake.clear_ready();
                for message in replies.try_iter() {
                    match message {
                        FromMain::Ready(result) => {
                            drop(ready.take().map(|ready| ready.send(result)));
                        }
                        FromMain::Cloned(reply) => {
                            let waiter = waiting.borrow_mut().remove(&reply.number);
                            let waiter = waiter.expect("a reply to a request");
                            // A waiter that gave up drops the child's pidfd; jobs never do.
                            waiter.send(reply.result).ok();
                        }
                    }
                }
            }
        });
        Ok((service, is_ready))
    }

    /// Has one clone made. The child has copies of `descriptors`; the caller closes its own.
    pub async fn clone(
        &self,
        descriptors: ChildDescriptors,
        cgroup: Option<RawFd>,
        purpose: Purpose,
        network: Birth,
    ) -> Result<ClonedChild, String> {
        let _room = self.room.acquire().await.expect("it is never closed");
        let number = self.next.get();
        self.next.set(number + 1);
        let (sender, reply) = oneshot::channel();
        self.waiting.borrow_mut().insert(number, sender);
        let request = CloneRequest {
            number,
            descriptors,
            cgroup,
            purpose,
            network,
        };
        self.requests
            .try_send(ToMain::Clone(request))
            .map_err(|error| format!("the main thread takes no more clones: {error}"))?;
        reply
            .await
            .map_err(|_| "the main thread has ended".to_owned())?
    }
}
