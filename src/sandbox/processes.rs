//! What the kernel does with the child as a process: session, privileges, and its end when
//! the host ends.
//!
//! Runs on: a child.

use nix::errno::Errno;
use nix::unistd::setsid;

use crate::layer::{Layer, Layers, SetupError, at};
use crate::sys::process::prctl;

/// A session of its own: without a controlling terminal, TIOCSTI cannot type into the
/// host's (CVE-2005-4890 and its many successors).
pub(crate) fn leave_terminal() -> Result<(), SetupError> {
    setsid().map(drop).map_err(at(Layer::Descriptors, "setsid"))
}

/// Takes a name that `ps` shows, cut at 15 bytes (`PR_SET_NAME(2const)`).
pub(crate) fn take_name(name: Option<&str>) -> Result<(), SetupError> {
    let Some(name) = name else {
        return Ok(());
    };
    let failed = at(Layer::Descriptors, "prctl(PR_SET_NAME)");
    let name = std::ffi::CString::new(name).map_err(|_| failed(Errno::EINVAL))?;
    nix::sys::prctl::set_name(&name).map_err(failed)
}

/// `no_new_privs`: from here on no executable gives privilege (`PR_SET_NO_NEW_PRIVS(2const)`).
pub(crate) fn refuse_new_privileges(layers: &Layers) -> Result<(), SetupError> {
    if !layers.has(Layer::NoNewPrivs) {
        return Ok(());
    }
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
        .map(drop)
        .map_err(at(Layer::NoNewPrivs, "prctl(PR_SET_NO_NEW_PRIVS)"))
}

/// Dies with the host, and can read its own `/proc/self` again.
///
/// Both are undone by a change of credentials (`PR_SET_PDEATHSIG(2const)`,
/// `PR_SET_DUMPABLE(2const)`), so this comes after the last one. Being dumpable opens
/// nothing: no other process has this child's host uid, and ptrace(2) is refused inside.
pub(crate) fn tie_to_host() -> Result<(), SetupError> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)
        .map_err(at(Layer::Descriptors, "prctl(PR_SET_PDEATHSIG)"))?;
    prctl(libc::PR_SET_DUMPABLE, 1)
        .map(drop)
        .map_err(at(Layer::Setuid, "prctl(PR_SET_DUMPABLE)"))
}
