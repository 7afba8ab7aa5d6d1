//! How the I/O thread has clones made by the main thread.
//!
//! Requests and replies go through two channels whose buffers belong to the main thread.
//! A request holds numbers only: it is in memory that every child inherits.
//!
//! Each thread has a table of descriptors of its own, so that a clone, which copies the main thread's,
//! costs no more with a thousand children than with none, and no child ever has what the I/O thread
//! holds. What a child is to get goes through a socket between the two.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::sync::{Semaphore, oneshot};

use crate::clone::network_namespace::Birth;
use crate::sandbox::enter::ChildDescriptors;
use crate::sys::files::{Interest, watch};
use crate::sys::{messages, process};

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

/// What a child is to get of the I/O thread's descriptors.
pub struct Wanted<'a> {
    pub control: BorrowedFd<'a>,
    /// As [`ChildDescriptors`] has them.
    pub order: Option<BorrowedFd<'a>>,
    pub root: Option<BorrowedFd<'a>>,
    /// The folder of its control group.
    pub cgroup: Option<BorrowedFd<'a>>,
    pub network: Birth<BorrowedFd<'a>>,
}

impl Wanted<'_> {
    /// In the order in which [`MainEnd::take`] expects them.
    fn numbers(&self) -> Vec<RawFd> {
        let network = match self.network {
            Birth::In(namespace) => Some(namespace),
            Birth::Own | Birth::New => None,
        };
        let others = [self.order, self.root, self.cgroup, network];
        std::iter::once(self.control)
            .chain(others.into_iter().flatten())
            .map(|descriptor| descriptor.as_raw_fd())
            .collect()
    }
}

/// One clone, please. What is sent along: the control socket, and each that is said to be.
#[derive(Clone, Copy)]
pub struct CloneRequest {
    number: u64,
    has_order: bool,
    has_root: bool,
    has_cgroup: bool,
    network: Birth<()>,
    pub purpose: Purpose,
}

/// The same with the descriptors, as the main thread has them.
pub struct CloneOrder {
    pub descriptors: ChildDescriptors,
    pub cgroup: Option<RawFd>,
    pub network: Birth<RawFd>,
    pub purpose: Purpose,
    /// They are open until the clone has copies.
    _owned: Vec<OwnedFd>,
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
    result: Result<Cloned, String>,
}

/// A child of this process, which nobody else reaps.
pub struct Cloned {
    pub pid: libc::pid_t,
    /// Whether its network namespace was made for it, to be kept.
    pub has_new_network: bool,
}

/// How many requests may be under way: what the channels hold, and the socket between the threads (a
/// message takes a kilobyte or so of `net.core.wmem_default`, which is 208 KiB).
const AT_ONCE: usize = 64;

/// How often a child without a descriptor is asked whether it has ended.
const LOOK: Duration = Duration::from_millis(100);

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
    descriptors: OwnedFd,
    null: OwnedFd,
}

impl MainEnd {
    /// Gives the calling thread, and all children, a table of descriptors of its own. Comes once, when
    /// the I/O thread has started.
    ///
    /// # Safety
    /// No owner of another descriptor than this end's may be on this thread.
    pub unsafe fn own_descriptors(&self) -> Result<(), Errno> {
        let mut kept = self.numbers();
        // SAFETY: as this function.
        unsafe { process::own_descriptors(&mut kept) }
    }

    fn numbers(&self) -> [RawFd; 3] {
        [
            self.wake.as_fd().as_raw_fd(),
            self.descriptors.as_raw_fd(),
            self.null.as_raw_fd(),
        ]
    }

    /// Takes what was sent along with a request. The error is for the reply.
    pub fn take(&self, request: CloneRequest) -> Result<CloneOrder, String> {
        let received = messages::receive_up_to(1, self.descriptors.as_fd(), 0);
        let message = received.map_err(|error| format!("recvmsg(descriptors): {error}"))?;
        let owned = message.map_or_else(Vec::new, |message| message.descriptors);
        let mut numbers = owned.iter().map(AsRawFd::as_raw_fd);
        let mut next = |is_there: bool| match is_there {
            true => numbers.next().map(Some).ok_or("a descriptor is missing"),
            false => Ok(None),
        };
        let control = next(true)?.expect("it is there");
        let (order, root) = (next(request.has_order)?, next(request.has_root)?);
        let cgroup = next(request.has_cgroup)?;
        let network = match request.network {
            Birth::Own => Birth::Own,
            Birth::New => Birth::New,
            Birth::In(()) => Birth::In(next(true)?.expect("it is there")),
        };
        Ok(CloneOrder {
            descriptors: ChildDescriptors {
                null: self.null.as_raw_fd(),
                control,
                order,
                root,
            },
            cgroup,
            network,
            purpose: request.purpose,
            _owned: owned,
        })
    }

    pub fn ready(&self, result: Result<Prepared, Failure>) {
        self.send(FromMain::Ready(result));
    }

    pub fn reply(&self, request: CloneRequest, result: Result<Cloned, String>) {
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
    descriptors: OwnedFd,
    /// The other end's descriptors, which this thread has copies of.
    others: [RawFd; 3],
}

/// Creates both ends, on the main thread: the buffers are its memory.
pub fn channels() -> std::io::Result<(MainEnd, IoEnd)> {
    // One more for the I/O thread's greeting, and for the main thread's.
    let (to_main, requests) = crossbeam_channel::bounded(AT_ONCE + 1);
    let (from_main, replies) = crossbeam_channel::bounded(AT_ONCE + 1);
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let wake = EventFd::from_flags(flags)?;
    let shared = nix::unistd::dup(&wake)?;
    let (mains, ios) = messages::pair()?;
    let main = MainEnd {
        requests,
        replies: from_main,
        // SAFETY: a fresh duplicate of an eventfd.
        wake: unsafe { EventFd::from_owned_fd(shared) },
        descriptors: mains,
        null: open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?,
    };
    let io = IoEnd {
        requests: to_main,
        replies,
        wake,
        descriptors: ios,
        others: main.numbers(),
    };
    Ok((main, io))
}

/// The I/O thread's side, on its runtime.
#[derive(Clone)]
pub struct CloneService {
    requests: Sender<ToMain>,
    waiting: Rc<RefCell<HashMap<u64, Waiter>>>,
    next: Rc<Cell<u64>>,
    room: Rc<Semaphore>,
    descriptors: Rc<OwnedFd>,
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
            descriptors: Rc::new(end.descriptors),
        };
        let others = end.others;
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
                            for copy in others {
                                // SAFETY: the main thread has its own table by now, and nobody else
                                // closes these here.
                                drop(unsafe { OwnedFd::from_raw_fd(copy) });
                            }
                            drop(ready.take().map(|ready| ready.send(result)));
                        }
                        FromMain::Cloned(reply) => {
                            let waiter = waiting.borrow_mut().remove(&reply.number);
                            let waiter = waiter.expect("a reply to a request");
                            let child = reply.result.and_then(open_child);
                            // A waiter that gave up drops the child's pidfd; jobs never do.
                            waiter.send(child).ok();
                        }
                    }
                }
            }
        });
        Ok((service, is_ready))
    }

    /// Has one clone made. The child has copies of what is wanted; the caller closes its own.
    pub async fn clone(&self, wanted: Wanted<'_>, purpose: Purpose) -> Result<ClonedChild, String> {
        let _room = self.room.acquire().await.expect("it is never closed");
        let number = self.next.get();
        self.next.set(number + 1);
        let request = CloneRequest {
            number,
            has_order: wanted.order.is_some(),
            has_root: wanted.root.is_some(),
            has_cgroup: wanted.cgroup.is_some(),
            network: match wanted.network {
                Birth::Own => Birth::Own,
                Birth::New => Birth::New,
                Birth::In(_) => Birth::In(()),
            },
            purpose,
        };
        // Before the request, by which the main thread knows that it is there.
        messages::send(self.descriptors.as_fd(), b"d", &wanted.numbers())
            .map_err(|errno| format!("sendmsg(descriptors to the main thread): {errno}"))?;
        let (sender, reply) = oneshot::channel();
        self.waiting.borrow_mut().insert(number, sender);
        self.requests
            .try_send(ToMain::Clone(request))
            .map_err(|error| format!("the main thread takes no more clones: {error}"))?;
        reply
            .await
            .map_err(|_| "the main thread has ended".to_owned())?
    }
}

/// Opens what a child is held by. One that cannot be held ends by itself, since its control socket is
/// closed, or already has nothing to do.
fn open_child(cloned: Cloned) -> Result<ClonedChild, String> {
    let Cloned {
        pid,
        has_new_network,
    } = cloned;
    let pidfd = process::open_pidfd(pid).map_err(|errno| {
        tokio::task::spawn_local(reap_without_descriptor(pid));
        format!("pidfd_open: {errno}")
    })?;
    // If that fails, it is not kept, and ends with the child.
    let new_network = has_new_network
        .then(|| std::fs::File::open(format!("/proc/{pid}/ns/net")).ok())
        .flatten();
    Ok(ClonedChild {
        pid,
        pidfd,
        new_network: new_network.map(OwnedFd::from),
    })
}

async fn reap_without_descriptor(pid: libc::pid_t) {
    while waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive) {
        tokio::time::sleep(LOOK).await;
    }
}
