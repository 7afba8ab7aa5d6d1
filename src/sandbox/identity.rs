//! The child's user and group.
//!
//! Runs on: the main thread, a child.

use crate::layer::{Layer, Layers, SetupError, at};
use crate::sys::identity::{clear_groups, set_gid, set_uid};
use crate::sys::process::prctl;

/// The uid and gid that a child sees as its own.
pub(crate) const INSIDE_ID: u32 = 1000;

/// The id that a child sees as its own: without the `setuid` layer, root of its namespace.
pub(crate) fn inside_id(layers: &Layers) -> u32 {
    if layers.has(Layer::Setuid) {
        INSIDE_ID
    } else {
        0
    }
}

/// Whether groups may be given up here (`user_namespaces(7)`, `/proc/PID/setgroups`).
pub(crate) fn may_set_groups() -> std::io::Result<bool> {
    let word = std::fs::read_to_string("/proc/self/setgroups")?;
    Ok(word.trim() == "allow")
}

/// Gives up all groups, then becomes the sandbox's user, keeping for now the capabilities
/// that the next steps need.
///
/// Before this step the child runs under an id that its user namespace does not map, which
/// owns nothing and makes mounts fail with EOVERFLOW.
///
/// Where the kernel denies setgroups to a host without privilege (`user_namespaces(7)`), the
/// host's groups remain.
pub(crate) fn become_sandbox_user(layers: &Layers, may_set_groups: bool) -> Result<(), SetupError> {
    let layer = Layer::Setuid;
    let id = inside_id(layers);
    // Leaving uid 0 clears the capabilities (capabilities(7), "Effect of user ID changes");
    // it is the capability step that drops them, after the mounts.
    prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
        .map_err(at(layer, "prctl(PR_SET_SECUREBITS)"))?;
    if may_set_groups {
        clear_groups().map_err(at(layer, "setgroups([])"))?;
    }
    set_gid(id).map_err(at(layer, "setresgid"))?;
    set_uid(id).map_err(at(layer, "setresuid"))
}

const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
