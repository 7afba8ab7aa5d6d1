//! Network namespaces that clones are born into, made and entered by the thread that clones.
//!
//! Runs on: the main thread.
//!
//! Such a namespace belongs to the user namespace of the host, not to that of a child, so that no
//! child has a capability over it, not even before it drops its own. Which child is born where, and
//! when a namespace is used again, is decided elsewhere: [`crate::io::network::slots`].

use std::cell::RefMut;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::namespace_fingerprint;
use super::scratch::Scratch;
use crate::failure::FAILED;
use crate::layer::{Layer, SetupError};
use crate::sys::{interfaces, process};

/// Too little for packets of IP: the kernel's least are 68 bytes for IPv4, 1,280 for IPv6.
const TOO_LITTLE_FOR_IP: libc::c_int = 67;

/// The way back: the network namespace of the thread that clones.
pub(crate) struct Home {
    namespace: OwnedFd,
    /// The thread's folder in `/proc`, whose path is gone once the root has been changed.
    thread: OwnedFd,
    /// The traces in a new namespace.
    none: Vec<u8>,
    scratch: Scratch,
}

impl Home {
    /// Of the calling thread, which is the only one that may use it.
    ///
    /// # Errors
    /// If the thread could not come back: EPERM, where the namespace does not belong to its user
    /// namespace, as for an ordinary user. Or if the kernel lacks what shows that a namespace is
    /// as new.
    pub(crate) fn find() -> Result<Self, SetupError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let thread = nix::fcntl::open("/proc/thread-self", flags, Mode::empty());
        let thread = thread.map_err(at("open /proc/thread-self"))?;
        let namespace = open_namespace(&thread);
        let scratch = Scratch::new(namespace_fingerprint::ROOM);
        let mut home = Self {
            namespace: namespace.map_err(at("open /proc/thread-self/ns/net"))?,
            thread,
            none: Vec::new(),
            scratch: scratch.map_err(at("mmap(scratch)"))?,
        };
        enter(home.namespace.as_raw_fd()).map_err(at("setns(own network namespace)"))?;
        let new = home.make_namespace()?;
        let traces = home.traces_in(new.as_raw_fd());
        let none = traces
            .map_err(at("read a network namespace's traces"))?
            .to_vec();
        home.none = none;
        Ok(home)
    }

    /// Makes a network namespace in which no interface speaks IP. The thread is back when this
    /// returns.
    pub(crate) fn make_namespace(&self) -> Result<OwnedFd, SetupError> {
        process::unshare(libc::CLONE_NEWNET).map_err(at("unshare(CLONE_NEWNET)"))?;
        let made = self.prepare_here();
        self.come_back();
        made
    }

    /// What is done in a new namespace before anybody else sees it.
    ///
    /// The loopback interface, even while it is down, takes part in multicast groups, and reports them
    /// up to a second after a job has left them; and packets for 0.0.0.0 find a way to it. With so small a
    /// size the kernel takes IPv4 from it (`inetdev_event`, NETDEV_CHANGEMTU) and reports nothing over
    /// IPv6 (`add_grec`).
    fn prepare_here(&self) -> Result<OwnedFd, SetupError> {
        interfaces::set_mtu(c"lo", TOO_LITTLE_FOR_IP).map_err(at("ioctl(SIOCSIFMTU, lo)"))?;
        open_namespace(&self.thread).map_err(at("open /proc/thread-self/ns/net"))
    }

    /// Whether a namespace is as it was when it was new. What cannot be read does not show that.
    pub(crate) fn is_as_new(&self, namespace: RawFd) -> bool {
        self.traces_in(namespace)
            .is_ok_and(|found| *found == *self.none)
    }

    fn traces_in(&self, namespace: RawFd) -> nix::Result<RefMut<'_, [u8]>> {
        enter(namespace)?;
        let mut room = self.scratch.borrow();
        let length = namespace_fingerprint::read(self.thread.as_fd(), &mut room);
        self.come_back();
        let length = length?;
        Ok(RefMut::map(room, |room| &mut room[..length]))
    }

    /// Enters another network namespace, to come back at once.
    pub(crate) fn leave_for(&self, namespace: RawFd) -> Result<(), SetupError> {
        enter(namespace).map_err(at("setns(a slot's)"))
    }

    /// Comes back. If that fails, the host ends: whatever it did next would be done in a job's network
    /// namespace, and the next job's sockets could meet the host's.
    pub(crate) fn come_back(&self) {
        if let Err(errno) = enter(self.namespace.as_raw_fd()) {
            log::error!("network_namespace: setns(the host's own): {errno}; the host ends");
            process::exit_now(FAILED.into());
        }
    }
}

fn enter(namespace: RawFd) -> nix::Result<()> {
    process::setns(namespace, libc::CLONE_NEWNET)
}

fn open_namespace(thread: &OwnedFd) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    openat(thread, "ns/net", flags, Mode::empty())
}

fn at(step: &'static str) -> impl Fn(Errno) -> SetupError {
    move |errno| SetupError::new(Layer::NetworkNamespace, step, errno)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    fn here() -> u64 {
        let found = std::fs::metadata("/proc/thread-self/ns/net");
        found.expect("it is there").ino()
    }

    #[test]
    fn a_thread_goes_and_comes_back() {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let home = Home::find().expect("root may");
        let own = here();
        let new = home.make_namespace().expect("root may");
        assert_eq!(here(), own);
        home.leave_for(new.as_raw_fd()).expect("root may");
        assert_ne!(here(), own);
        home.come_back();
        assert_eq!(here(), own);
    }

    #[test]
    fn traces_show_one_namespace_and_change_with_it() {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let home = Home::find().expect("root may");
        let new = home.make_namespace().expect("root may");
        let new = new.as_raw_fd();
        let before = home.traces_in(new).expect("reads").to_vec();
        assert!(before.starts_with(b"sockets: used 0"));
        assert!(home.is_as_new(new));
        let ask = || std::net::UdpSocket::bind("127.0.0.1:0").and_then(|s| s.connect("10.0.0.1:9"));
        ask().ok();
        assert!(home.is_as_new(new), "asked elsewhere");
        home.leave_for(new).expect("root may");
        let asked = ask();
        home.come_back();
        assert!(asked.is_err());
        assert!(!home.is_as_new(new), "asked there");
    }

    #[test]
    fn a_thread_that_cannot_come_back_ends_the_host() {
        let nowhere = || {
            std::fs::File::open("/dev/null")
                .expect("it is there")
                .into()
        };
        // SAFETY: the child makes system calls and a log line only.
        match unsafe { fork() }.expect("forks") {
            ForkResult::Child => {
                let home = Home {
                    namespace: nowhere(),
                    thread: nowhere(),
                    none: Vec::new(),
                    scratch: Scratch::new(1).expect("one page"),
                };
                home.come_back();
                process::exit_now(0)
            }
            ForkResult::Parent { child } => {
                let ended = waitpid(child, None).expect("our own child");
                assert_eq!(ended, WaitStatus::Exited(child, FAILED.into()));
            }
        }
    }
}
