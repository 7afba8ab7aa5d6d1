//! How the I/O thread has clones made by the main thread.
//!
//! Runs on: the main thread, the I/O thread.
//!
//! Requests and replies go through two channels whose buffers belong to the main thread.
//! A request holds numbers only: it is in memory that every child inherits.
//!
//! Each thread has a table of descriptors of its own, so that a clone, which copies the main thread's,
//! costs no more with a thousand children than with none, and no child ever has what the I/O thread
//! holds. What a child is to get goes through a socket between the two.

use std::cmp::Ordering;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::Mode;

use super::activity;
use super::child_descriptors::{Birth, ChildDescriptors};
use super::fd_set::{FdSet, Role, Roles, WrongCount};
use crate::failure::FAILED;
use crate::layer::SetupError;
use crate::sys::{messages, process};

/// From the I/O thread to the main thread.
pub(crate) enum ToMain {
    /// The I/O thread runs, under this thread id.
    IoThread(libc::pid_t),
    Clone(CloneTicket),
}

/// What a child is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A job that waits for it.
    Job,
    /// A job to come: it has time to prepare itself for that.
    Spare,
    /// To check, in its sandbox, that it can reach what its interpreter will need.
    Probe,
    /// To call the warm-up once more, as a job would.
    Rehearsal,
    /// To measure what the way into the sandbox costs: it says one byte there and ends.
    Floor,
    /// To measure what the system call costs: it ends at once, with nothing of its way in.
    BareClone,
}

/// What goes with the descriptors of one request.
pub(crate) struct Label {
    pub number: u64,
    pub roles: Roles,
}

impl Label {
    const LENGTH: usize = size_of::<u64>() + Roles::LENGTH;

    pub(crate) fn encode(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        let (number, roles) = bytes.split_at_mut(size_of::<u64>());
        number.copy_from_slice(&self.number.to_le_bytes());
        roles.copy_from_slice(&self.roles.encode());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (number, roles) = bytes.split_first_chunk()?;
        Some(Self {
            number: u64::from_le_bytes(*number),
            roles: Roles::decode(roles.try_into().ok()?),
        })
    }
}

/// One clone, please. The descriptors come by the socket, under the same number.
#[derive(Clone, Copy)]
pub(crate) struct CloneTicket {
    pub number: u64,
    pub birth: Birth,
    pub purpose: Purpose,
}

/// The same with the descriptors, as the main thread has them.
pub(crate) struct CloneRequest {
    pub birth: Birth,
    pub purpose: Purpose,
    /// The child's.
    pub own: ChildDescriptors,
    /// They are open until the clone has copies.
    sent: FdSet<OwnedFd>,
}

impl CloneRequest {
    /// The folder of the child's control group.
    pub(crate) fn cgroup(&self) -> Option<RawFd> {
        self.sent.number(Role::Cgroup)
    }

    /// The network namespace of [`Birth::InSlot`].
    pub(crate) fn slot(&self) -> Option<RawFd> {
        self.sent.number(Role::Network)
    }

    /// The numbers that are open for this clone alone.
    pub(crate) fn numbers(&self) -> Vec<RawFd> {
        self.sent.numbers()
    }
}

/// From the main thread to the I/O thread.
pub(crate) enum FromMain {
    /// The interpreter is warm and the sandbox prepared; or why not.
    Ready(Result<Prepared, Failure>),
    Cloned(CloneReply),
}

/// What the main thread tells of the sandbox that it has prepared.
pub(crate) struct Prepared {
    /// Names that must be out of children's sight.
    pub hidden_names: Vec<std::path::PathBuf>,
    /// The warm-up, if it is to be rehearsed.
    pub warm_up: Option<WarmUp>,
}

/// What the host's own call of the warm-up was like.
pub(crate) struct WarmUp {
    pub took: Duration,
    /// Threads that it, or an import, left running, in words.
    pub threads: Vec<String>,
}

/// How long the warm-up may take in a clone: so many times as long as in the host, which had to import and compile what
/// is there by then, but not less than this, since the machine may be busy.
const REHEARSAL_FACTOR: u32 = 10;
const LEAST_FOR_REHEARSAL: Duration = Duration::from_secs(10);

/// The limit for a warm-up that took so long in the host.
pub(crate) fn limit_of_rehearsal(took: Duration) -> Duration {
    LEAST_FOR_REHEARSAL.max(took * REHEARSAL_FACTOR)
}

/// Why the main thread cannot make clones.
pub(crate) struct Failure {
    /// `preload` for what the operator's modules did, else `setup`.
    pub kind: &'static str,
    pub detail: String,
}

/// Why there is no child for a job.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// A layer of its sandbox cannot be applied.
    #[error(transparent)]
    Layer(#[from] SetupError),
    /// Anything else, in words for people.
    #[error("{0}")]
    Other(String),
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self::Other(text)
    }
}

impl From<&str> for Refusal {
    fn from(text: &str) -> Self {
        Self::Other(text.to_owned())
    }
}

pub(crate) struct CloneReply {
    pub number: u64,
    pub result: Result<Cloned, Refusal>,
}

/// A child of this process, which nobody else reaps.
pub(crate) struct Cloned {
    pub pid: libc::pid_t,
    /// Whether its network namespace was made for it, to be kept.
    pub has_new_network: bool,
}

/// How many requests may be under way: what the channels hold.
pub(crate) const AT_ONCE: usize = 64;

/// The main thread's ends.
pub(crate) struct MainEnd {
    pub requests: Receiver<ToMain>,
    replies: Sender<FromMain>,
    /// An eventfd: the I/O thread waits in epoll, where it cannot see a channel.
    wake: EventFd,
    descriptors: OwnedFd,
    null: OwnedFd,
    /// See [`crate::wire::activity`].
    init: OwnedFd,
}

impl MainEnd {
    /// Gives the calling thread, and all children, a table of descriptors of its own. Comes once, when
    /// the I/O thread has started.
    ///
    /// # Safety
    /// No owner of another descriptor than this end's may be on this thread.
    pub(crate) unsafe fn own_descriptors(&self) -> Result<(), Errno> {
        // SAFETY: as this function.
        unsafe { process::own_descriptors(&self.numbers()) }
    }

    fn numbers(&self) -> [RawFd; 4] {
        [
            self.wake.as_fd().as_raw_fd(),
            self.descriptors.as_raw_fd(),
            self.null.as_raw_fd(),
            self.init.as_raw_fd(),
        ]
    }

    /// Takes what was sent along with a request, and nothing else. The error is for the reply.
    pub(crate) fn take(&self, ticket: CloneTicket) -> Result<CloneRequest, Refusal> {
        let sent = loop {
            let (number, sent) = self.receive()?;
            match number.cmp(&ticket.number) {
                // Of a request that was never made: nobody waits for it.
                Ordering::Less => {}
                Ordering::Equal => break sent.map_err(|error| error.to_string())?,
                Ordering::Greater => return Err("its descriptors were not sent".into()),
            }
        };
        if (ticket.birth == Birth::InSlot) != sent.get(Role::Network).is_some() {
            return Err("it has another network namespace than was sent".into());
        }
        let control = sent.number(Role::Control);
        Ok(CloneRequest {
            birth: ticket.birth,
            purpose: ticket.purpose,
            own: ChildDescriptors {
                null: self.null.as_raw_fd(),
                control: control.ok_or("its control socket was not sent")?,
                spec: sent.number(Role::Spec),
                root: sent.number(Role::Root),
            },
            sent,
        })
    }

    /// The next descriptors, with their request's number.
    fn receive(&self) -> Result<(u64, Result<FdSet<OwnedFd>, WrongCount>), Refusal> {
        let received =
            messages::receive_up_to(Label::LENGTH, self.descriptors.as_fd(), libc::MSG_DONTWAIT);
        let message = received.map_err(|error| format!("recvmsg(descriptors): {error}"))?;
        let message = message.ok_or("the socket for descriptors is closed")?;
        let label = Label::decode(&message.bytes).ok_or("descriptors without their label")?;
        Ok((
            label.number,
            FdSet::received(label.roles, message.descriptors),
        ))
    }

    /// Tells the init in front of the host what this thread is about to do.
    pub(crate) fn tell_init(&self, activity: &str) {
        activity::tell(self.init.as_fd(), activity);
    }

    pub(crate) fn ready(&self, result: Result<Prepared, Failure>) {
        self.send(FromMain::Ready(result));
    }

    pub(crate) fn reply(&self, request: CloneTicket, result: Result<Cloned, Refusal>) {
        self.send(FromMain::Cloned(CloneReply {
            number: request.number,
            result,
        }));
    }

    fn send(&self, message: FromMain) {
        // Without an I/O thread there is nobody to tell: it ends the process when it ends.
        if self.replies.send(message).is_ok() {
            // It is not full: it has 64 bits.
            if let Err(errno) = self.wake.write(1) {
                cut_off(&format!("write(eventfd): {errno}"));
            }
        }
    }

    /// Ends the host if this end's descriptors are not its own any more: modules of the operator's run on this thread, and one may
    /// close what it has not opened. `before` is what [`MainEnd::identities`] has told.
    pub(crate) fn check(&self, before: &[String]) {
        let now = self.identities();
        if let Some((before, now)) = before.iter().zip(&now).find(|(before, now)| before != now) {
            cut_off(&format!("{before} has become {now}"));
        }
    }

    /// What each of this end's descriptors is.
    pub(crate) fn identities(&self) -> Vec<String> {
        self.numbers().map(identity).to_vec()
    }
}

/// What a descriptor of this thread's leads to; of those without an inode of their own the kernel's number
/// (`proc_pid_fdinfo(5)`).
fn identity(number: RawFd) -> String {
    let path = format!("/proc/thread-self/fd/{number}");
    let Ok(target) = std::fs::read_link(path) else {
        return "no open descriptor".to_owned();
    };
    let info = std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{number}"));
    let info = info.unwrap_or_default();
    let own = info.lines().find(|line| line.starts_with("eventfd-id"));
    format!("{}{}", target.display(), own.unwrap_or_default())
}

/// The main thread cannot tell the I/O thread anything any more.
fn cut_off(how: &str) -> ! {
    log::error!(
        "a preloaded module has closed a descriptor that is not its own ({how}); hint: a module that closes all descriptors, \
         as daemons do, cannot be preloaded"
    );
    process::exit_now(FAILED.into())
}

/// The I/O thread's ends, before its runtime exists.
pub(crate) struct IoEnd {
    pub requests: Sender<ToMain>,
    pub replies: Receiver<FromMain>,
    pub wake: EventFd,
    pub descriptors: OwnedFd,
    /// The other end's descriptors, which this thread has copies of.
    pub others: [RawFd; 4],
}

/// Creates both ends, on the main thread: the buffers are its memory. `init` is the main thread's way to tell its init what it does.
pub(crate) fn channels(init: OwnedFd) -> std::io::Result<(MainEnd, IoEnd)> {
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
        init,
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn send(io: &IoEnd, number: u64, roles: &[Role], descriptors: &[RawFd]) {
        let roles = Roles::of(roles);
        let label = Label { number, roles }.encode();
        messages::send(io.descriptors.as_fd(), &label, descriptors).expect("there is room");
    }

    fn ticket(number: u64) -> CloneTicket {
        CloneTicket {
            number,
            birth: Birth::Own,
            purpose: Purpose::Job,
        }
    }

    fn inode(descriptor: RawFd) -> u64 {
        let path = format!("/proc/self/fd/{descriptor}");
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).expect("it is open"))
    }

    fn new_channels() -> (MainEnd, IoEnd) {
        let init = tempfile::tempfile().expect("a file");
        channels(init.into()).expect("channels")
    }

    #[test]
    fn a_request_gets_its_own_descriptors_alone() {
        let (main, io) = new_channels();
        let [old, control, spec] = std::array::from_fn(|_| tempfile::tempfile().expect("a file"));
        send(&io, 6, &[Role::Control], &[old.as_raw_fd()]);
        let both = [control.as_raw_fd(), spec.as_raw_fd()];
        send(&io, 7, &[Role::Spec, Role::Control], &both);
        let taken = main.take(ticket(7)).expect("it was sent");
        assert_eq!(inode(taken.own.control), inode(control.as_raw_fd()));
        let own_spec = taken.own.spec.expect("it was sent");
        assert_eq!(inode(own_spec), inode(spec.as_raw_fd()));
        assert_eq!(
            (taken.own.root, taken.cgroup(), taken.slot()),
            (None, None, None)
        );
    }

    #[test]
    fn a_request_without_its_own_descriptors_gets_none() {
        use Role::{Control, Network, Spec};
        let (main, io) = new_channels();
        let file = tempfile::tempfile().expect("a file");
        let cases: [(u64, &[Role], usize, &str); 5] = [
            (9, &[Control], 1, "not sent"),                   // a later one's
            (8, &[Spec], 1, "control socket"),                // no control socket
            (8, &[Control, Spec], 1, "1 of 2"),               // fewer than were meant
            (8, &[Control], 2, "2 of 1"),                     // more
            (8, &[Control, Network], 2, "network namespace"), // one that it does not want
        ];
        for (number, roles, count, words) in cases {
            send(&io, number, roles, &vec![file.as_raw_fd(); count]);
            let error = main.take(ticket(8)).err().expect("it is refused");
            let error = error.to_string();
            assert!(error.contains(words), "{error}");
        }
        let error = main.take(ticket(8)).err().expect("it is refused");
        let error = error.to_string();
        assert!(
            error.contains("EAGAIN") || error.contains("unavailable"),
            "{error}"
        );
    }
}
