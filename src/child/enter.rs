//! The child's way in: the steps between the clone and the job, in their order. It begins with what
//! [`crate::clone`] does before any handler runs: descriptors and shared memory become the child's own.
//!
//! Runs on: a child.
//!
//! The order is the point of this page. Ids come before mounts, since an unmapped user
//! cannot own a tmpfs; mounts before capabilities, which they need; `no_new_privs` before
//! seccomp, which needs it; and the read-back last, so that it sees what the job will see.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use super::read_back;
use crate::layer::{Layer, SetupError, at};
use crate::sandbox::{Sandbox, capabilities, identity, landlock, namespaces, processes, root};
use crate::sys::descriptors::borrow;
use crate::sys::{files, messages};
use crate::wire::child_descriptors::ChildDescriptors;
use crate::wire::child_spec::{ChildNetwork, ChildSpec};
use crate::wire::handshake::{ChildReport, GO};

/// Takes a fresh clone into its sandbox. No code of the job has run when this returns, and
/// none may if it fails.
pub(crate) fn enter(
    sandbox: &Sandbox,
    descriptors: &ChildDescriptors,
    in_cgroup: bool,
) -> Result<(), SetupError> {
    unblock_signals()?;
    processes::leave_terminal()?;
    let spec = match descriptors.spec {
        Some(number) => ChildSpec::take(number)?,
        None => ChildSpec::default(),
    };
    let layers = &spec.layers(&sandbox.layers);
    let limits = match &spec.limits {
        Some(limits) => &sandbox.limits.with(limits.clone()),
        None => &sandbox.limits,
    };
    Control::of(descriptors).wait_for_host()?;
    identity::become_sandbox_user(layers, sandbox.may_set_groups)?;
    let network = spec.network.unwrap_or(sandbox.network());
    if network == ChildNetwork::Loopback {
        namespaces::raise_loopback(layers)?;
    }
    match (descriptors.root, &sandbox.root) {
        (Some(tree), _) => root::enter_own(tree, &spec.covered, layers)?,
        (None, Some(root)) => {
            root::mount_private_places(root, layers, !spec.skip_layers.is_empty())?;
        }
        (None, None) => {}
    }
    namespaces::enter_cgroup_namespace(layers)?;
    namespaces::set_hostname(layers)?;
    limits.apply(in_cgroup)?;
    let landlock = match descriptors.root {
        Some(_) => &landlock::Rules::of_chroot(),
        None => &sandbox.landlock,
    };
    landlock.restrict(layers)?;
    capabilities::drop_all(layers)?;
    processes::refuse_new_privileges(layers)?;
    processes::tie_to_host()?;
    let has_network = network != ChildNetwork::None || !layers.has(Layer::NetworkNamespace);
    sandbox.seccomp.install(layers, has_network)?;
    read_back::check_promises(sandbox, layers, limits, in_cgroup)
}

/// The host blocks the signals it reads from a descriptor; a job starts with none blocked.
fn unblock_signals() -> Result<(), SetupError> {
    // Not SigSet::thread_set_mask: pthread_sigmask(3) returns its errno, which nix takes for
    // success.
    let none = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&none), None)
        .map_err(at(Layer::Descriptors, "sigprocmask"))
}

/// The child's end of the socket to its host, until the job's code runs.
#[derive(Clone, Copy)]
pub(crate) struct Control(RawFd);

impl Control {
    pub(crate) fn of(descriptors: &ChildDescriptors) -> Self {
        Self(descriptors.control)
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: it is open until `close`, after which nothing of pyspawner's uses it.
        unsafe { borrow(self.0) }
    }

    /// Blocks until the host has written the id maps. The host's end is the child's end too. What a clone says before is
    /// heard even if the host throws it away and makes another (a thread ran meanwhile), so it says nothing.
    pub(crate) fn wait_for_host(self) -> Result<(), SetupError> {
        let mut word = [0; GO.len()];
        loop {
            match nix::unistd::read(self.descriptor(), &mut word) {
                Err(Errno::EINTR) => {}
                Ok(_) if word == GO => return Ok(()),
                Ok(_) => return Err(at(Layer::UserNamespace, "the host ended")(Errno::EPIPE)),
                Err(errno) => return Err(at(Layer::UserNamespace, "read(control)")(errno)),
            }
        }
    }

    /// Tells the host how the way in ended. `false`: there is no host any more.
    pub(crate) fn report(self, report: &ChildReport) -> bool {
        let bytes = report.encode();
        files::write_once(self.0, &bytes) == bytes.len() as isize
    }

    /// Tells the host that the job's code runs now, and passes the folder on in which that starts.
    pub(crate) fn report_start_in(self, folder: BorrowedFd<'_>) -> bool {
        let bytes = ChildReport::Started.encode();
        messages::send(self.descriptor(), &bytes, &[folder.as_raw_fd()]).is_ok()
    }

    /// Comes before any of the job's code.
    pub(crate) fn close(self) -> Result<(), Errno> {
        nix::unistd::close(self.0)
    }
}
