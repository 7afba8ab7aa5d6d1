//! The last step before a child reports: what was promised is read back from the kernel.
//!
//! Runs on: a child.
//!
//! A step that silently did nothing (a wrapper's bug, a kernel's, a reordering in this
//! code) ends here, not in a job with more rights than its profile says.

use nix::unistd::{getgroups, getresgid, getresuid};

use crate::layer::{Layer, Layers, SetupError};
use crate::sandbox::limits::ResourceLimits;
use crate::sandbox::{Sandbox, capabilities, identity, seccomp};
use crate::sys::process::prctl;
use crate::sys::scheduling;

/// Refuses with the name of the broken promise if the child's state is not as promised.
pub(crate) fn check_promises(
    sandbox: &Sandbox,
    layers: &Layers,
    limits: &ResourceLimits,
    in_cgroup: bool,
) -> Result<(), SetupError> {
    let broken = |layer, promise: &str| Err(SetupError::found(layer, promise));

    let id = identity::inside_id(layers);
    let uids = getresuid().map(|ids| [ids.real, ids.effective, ids.saved].map(|id| id.as_raw()));
    if uids != Ok([id; 3]) {
        return broken(Layer::Setuid, "the user ids are not the sandbox's");
    }
    let gids = getresgid().map(|ids| [ids.real, ids.effective, ids.saved].map(|id| id.as_raw()));
    if gids != Ok([id; 3]) {
        return broken(Layer::Setuid, "the group ids are not the sandbox's");
    }
    if sandbox.may_set_groups && !getgroups().is_ok_and(|groups| groups.is_empty()) {
        return broken(Layer::Setuid, "supplementary groups are left");
    }
    if let Some(limit) = limits.broken_promise(in_cgroup) {
        return broken(Layer::Limits, limit);
    }
    if scheduling::is_ordinary() != Ok(true) {
        return broken(Layer::Limits, "the process is more urgent than others");
    }
    if layers.has(Layer::PidNamespace) && nix::unistd::getpid().as_raw() != 1 {
        return broken(Layer::PidNamespace, "the process is not PID 1");
    }
    if let Some(promise) = capabilities::broken_promise(layers) {
        return broken(Layer::DropCapabilities, promise);
    }
    if layers.has(Layer::NoNewPrivs) && prctl(libc::PR_GET_NO_NEW_PRIVS, 0) != Ok(1) {
        return broken(Layer::NoNewPrivs, "no_new_privs is not set");
    }
    if layers.has(Layer::Seccomp) && !seccomp::is_in_force() {
        return broken(Layer::Seccomp, "no filter is in force");
    }
    Ok(())
}
