//! Which namespaces a child is born into.

use super::at;
use super::layer::{Layer, Layers, SetupError};

const FLAGS: &[(Layer, libc::c_int)] = &[
    (Layer::UserNamespace, libc::CLONE_NEWUSER),
    (Layer::PidNamespace, libc::CLONE_NEWPID),
    (Layer::Root, libc::CLONE_NEWNS),
    (Layer::NetworkNamespace, libc::CLONE_NEWNET),
    (Layer::IpcNamespace, libc::CLONE_NEWIPC),
    (Layer::UtsNamespace, libc::CLONE_NEWUTS),
    (Layer::CgroupNamespace, libc::CLONE_NEWCGROUP),
];

/// The `CLONE_NEW*` flags for these layers (`namespaces(7)`).
pub fn clone_flags(layers: &Layers) -> u64 {
    FLAGS
        .iter()
        .filter(|(layer, _)| layers.has(*layer))
        .fold(0, |flags, (_, flag)| flags | *flag as u64)
}

/// Gives the child a host name that tells nothing about the host (`sethostname(2)`).
pub fn set_hostname(layers: &Layers) -> Result<(), SetupError> {
    if !layers.has(Layer::UtsNamespace) {
        return Ok(());
    }
    nix::unistd::sethostname("sandbox").map_err(at(Layer::UtsNamespace, "sethostname"))
}
