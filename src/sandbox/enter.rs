//! The child's way in: the steps between the clone and the job, in their order.
//!
//! The order is the point of this page. Ids come before mounts, since an unmapped user
//! cannot own a tmpfs; mounts before capabilities, which they need; `no_new_privs` before
//! seccomp, which needs it; and the read-back last, so that it sees what the job will see.

use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use super::handshake::{ChildReport, GO};
use super::layer::{Layer, SetupError};
use super::order::Order;
use super::{
    Sandbox, at, capabilities, identity, landlock, namespaces, processes, read_back, root,
};
use crate::record::RESULT_FD;
use crate::sys::{files, process};

/// The exit status of a child that did not get as far as its job. Its report says why.
pub const NEVER_STARTED: i32 = 125;

/// The control socket, until the job's code runs.
pub const CONTROL_FD: RawFd = 5;
/// What this child is to get otherwise than its profile says, until that is read.
const ORDER_FD: RawFd = 6;
/// A root of the child's own, until it is entered.
const ROOT_FD: RawFd = 7;
const LAST_FD: RawFd = ROOT_FD;

/// The host's descriptors that become the child's. Numbers, not owners: the clone holds
/// copies of them all.
#[derive(Clone, Copy, Debug)]
pub struct ChildDescriptors {
    /// Stands in for what the job will have.
    pub null: RawFd,
    pub control: RawFd,
    pub order: Option<RawFd>,
    /// A detached tree, as `open_tree(2)` gives it.
    pub root: Option<RawFd>,
}

/// Takes a fresh clone into its sandbox. No code of the job has run when this returns, and
/// none may if it fails.
pub fn enter(
    sandbox: &Sandbox,
    descriptors: &ChildDescriptors,
    in_cgroup: bool,
) -> Result<(), SetupError> {
    take_descriptors(descriptors);
    unblock_signals()?;
    processes::leave_terminal()?;
    let order = match descriptors.order {
        Some(_) => Order::take(ORDER_FD)?,
        None => Order::default(),
    };
    let layers = &order.layers(&sandbox.layers);
    let limits = match &order.limits {
        Some(limits) => &sandbox.limits.with(limits.clone()),
        None => &sandbox.limits,
    };
    wait_for_host()?;
    identity::become_sandbox_user(layers, sandbox.may_set_groups)?;
    if order.loopback.unwrap_or(sandbox.has_loopback()) {
        namespaces::raise_loopback(layers)?;
    }
    match (descriptors.root, &sandbox.root) {
        (Some(_), _) => root::enter_own(ROOT_FD, &order.covered, layers)?,
        (None, Some(root)) => root::mount_private_places(root)?,
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
    sandbox.seccomp.install(layers)?;
    read_back::check_promises(sandbox, layers, limits, in_cgroup)
}

/// Moves the child's descriptors to their fixed numbers and closes all others. If that fails,
/// reports and ends: the control socket is not at its fixed number then.
fn take_descriptors(descriptors: &ChildDescriptors) {
    let fail = |control, error| -> ! {
        report_to(control, &ChildReport::SetupFailed(error));
        process::exit_now(NEVER_STARTED)
    };
    // Out of the way of the fixed numbers, and open until all is done.
    let control = files::duplicate_above(descriptors.control, 2 * LAST_FD)
        .map_err(at(Layer::Descriptors, "fcntl(F_DUPFD)"))
        .unwrap_or_else(|error| fail(descriptors.control, error));
    if let Err(error) = move_descriptors(descriptors) {
        fail(control, error);
    }
}

fn move_descriptors(descriptors: &ChildDescriptors) -> Result<(), SetupError> {
    let wanted = [
        (Some(descriptors.null), 0),
        // What `after_clone` hooks print.
        (Some(libc::STDERR_FILENO), 1),
        (Some(libc::STDERR_FILENO), 2),
        // Taken, so that nothing else comes to have this number.
        (Some(descriptors.null), RESULT_FD),
        (None, RESULT_FD + 1),
        (Some(descriptors.control), CONTROL_FD),
        (descriptors.order, ORDER_FD),
        (descriptors.root, ROOT_FD),
    ];
    // Out of the way first: a source may have the number of another's target.
    let mut moved = [None; LAST_FD as usize + 1];
    for (slot, (source, _)) in moved.iter_mut().zip(wanted) {
        if let Some(source) = source {
            let copy = files::duplicate_above(source, 2 * LAST_FD);
            *slot = Some(copy.map_err(at(Layer::Descriptors, "fcntl(F_DUPFD)"))?);
        }
    }
    for (copy, (_, number)) in moved.into_iter().zip(wanted) {
        match copy {
            Some(copy) => files::duplicate_onto(copy, number, number >= CONTROL_FD),
            None => {
                // Nothing may be left where the job expects no descriptor.
                nix::unistd::close(number).or_else(|errno| match errno {
                    Errno::EBADF => Ok(()),
                    other => Err(other),
                })
            }
        }
        .map_err(at(Layer::Descriptors, "dup2"))?;
    }
    files::close_from(LAST_FD + 1).map_err(at(Layer::Descriptors, "close_range"))
}

/// The host blocks the signals it reads from a descriptor; a job starts with none blocked.
fn unblock_signals() -> Result<(), SetupError> {
    // Not SigSet::thread_set_mask: pthread_sigmask(3) returns its errno, which nix takes for
    // success.
    let none = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&none), None)
        .map_err(at(Layer::Descriptors, "sigprocmask"))
}

/// Blocks until the host has written the id maps. The host's end is the child's end too.
fn wait_for_host() -> Result<(), SetupError> {
    let mut word = [0; GO.len()];
    loop {
        // SAFETY: the buffer is valid for its length.
        let read = unsafe { libc::read(CONTROL_FD, word.as_mut_ptr().cast(), word.len()) };
        match Errno::result(read) {
            Err(Errno::EINTR) => {}
            Ok(_) if word == GO => return Ok(()),
            Ok(_) => return Err(at(Layer::UserNamespace, "the host ended")(Errno::EPIPE)),
            Err(errno) => return Err(at(Layer::UserNamespace, "read(control)")(errno)),
        }
    }
}

/// Tells the host how the way in ended. `false`: there is no host any more.
pub fn report(report: &ChildReport) -> bool {
    report_to(CONTROL_FD, report)
}

fn report_to(control: RawFd, report: &ChildReport) -> bool {
    let bytes = report.encode();
    let written = files::write_once(control, &bytes);
    written == bytes.len() as isize
}

/// Closes the descriptors that the job must not have. Comes before any of its code.
pub fn close_private_descriptors() -> Result<(), Errno> {
    nix::unistd::close(CONTROL_FD)
}
