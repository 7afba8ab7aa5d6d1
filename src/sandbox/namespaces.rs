//! Which namespaces a child is born into, and the one that it enters later.
//!
//! Runs on: the main thread, a child.

use crate::layer::{Layer, Layers, SetupError, at};
use crate::sys::interfaces;
use crate::sys::process::unshare;

const FLAGS: &[(Layer, libc::c_int)] = &[
    (Layer::UserNamespace, libc::CLONE_NEWUSER),
    (Layer::PidNamespace, libc::CLONE_NEWPID),
    (Layer::Root, libc::CLONE_NEWNS),
    (Layer::NetworkNamespace, libc::CLONE_NEWNET),
    (Layer::IpcNamespace, libc::CLONE_NEWIPC),
    (Layer::UtsNamespace, libc::CLONE_NEWUTS),
];

/// The `CLONE_NEW*` flags for these layers (`namespaces(7)`).
pub(crate) fn clone_flags(layers: &Layers) -> u64 {
    FLAGS
        .iter()
        .filter(|(layer, _)| layers.has(*layer))
        .fold(0, |flags, (_, flag)| flags | *flag as u64)
}

/// Enters a cgroup namespace whose root is the child's own group (`cgroup_namespaces(7)`). One made
/// by the clone would have the host's group as its root.
pub(crate) fn enter_cgroup_namespace(layers: &Layers) -> Result<(), SetupError> {
    if !layers.has(Layer::CgroupNamespace) {
        return Ok(());
    }
    unshare(libc::CLONE_NEWCGROUP).map_err(at(Layer::CgroupNamespace, "unshare(CLONE_NEWCGROUP)"))
}

/// Raises the loopback interface, to which the kernel then gives 127.0.0.1 and ::1. It leads to the
/// sockets of its network namespace alone, which the clone has made for this child: one that another
/// child had would show what that has sent.
pub(crate) fn raise_loopback(layers: &Layers) -> Result<(), SetupError> {
    let layer = Layer::NetworkNamespace;
    if !layers.has(layer) {
        // The interface would be the machine's own.
        let step = "a loopback interface while the layer network_namespace is skipped";
        return Err(SetupError::found(layer, step));
    }
    interfaces::raise(c"lo").map_err(at(layer, "ioctl(SIOCSIFFLAGS, lo)"))
}

/// Gives the child a host name that tells nothing about the host (`sethostname(2)`).
pub(crate) fn set_hostname(layers: &Layers) -> Result<(), SetupError> {
    if !layers.has(Layer::UtsNamespace) {
        return Ok(());
    }
    nix::unistd::sethostname("sandbox").map_err(at(Layer::UtsNamespace, "sethostname"))
}
