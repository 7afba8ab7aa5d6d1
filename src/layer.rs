//! The layers by name, and the error that says which one could not be applied.
//!
//! Runs on: any process.

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// One restriction. The names are those of the configuration's `skip_layers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Layer {
    /// Descriptors and standard streams.
    Descriptors,
    UserNamespace,
    PidNamespace,
    NetworkNamespace,
    /// The way out of the network namespace, where there is one.
    Network,
    IpcNamespace,
    UtsNamespace,
    CgroupNamespace,
    /// The mount namespace: private root, `/proc`, `/tmp`, `/dev`.
    Root,
    /// A user and group id of its own, no supplementary groups.
    Setuid,
    /// Control groups and resource limits.
    Limits,
    Landlock,
    DropCapabilities,
    NoNewPrivs,
    Seccomp,
}

impl Layer {
    /// The layers that a profile may skip: all but those that cost nothing to anybody.
    pub(crate) const SKIPPABLE: &[Layer] = &[
        Layer::UserNamespace,
        Layer::PidNamespace,
        Layer::NetworkNamespace,
        Layer::IpcNamespace,
        Layer::UtsNamespace,
        Layer::CgroupNamespace,
        Layer::Root,
        Layer::Setuid,
        Layer::Landlock,
        Layer::DropCapabilities,
        Layer::NoNewPrivs,
        Layer::Seccomp,
    ];

    /// The layer's name as written in the configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Layer::Descriptors => "descriptors",
            Layer::UserNamespace => "user_namespace",
            Layer::PidNamespace => "pid_namespace",
            Layer::NetworkNamespace => "network_namespace",
            Layer::Network => "network",
            Layer::IpcNamespace => "ipc_namespace",
            Layer::UtsNamespace => "uts_namespace",
            Layer::CgroupNamespace => "cgroup_namespace",
            Layer::Root => "root",
            Layer::Setuid => "setuid",
            Layer::Limits => "limits",
            Layer::Landlock => "landlock",
            Layer::DropCapabilities => "drop_capabilities",
            Layer::NoNewPrivs => "no_new_privs",
            Layer::Seccomp => "seccomp",
        }
    }
}

/// The layers that are in force: all, but for those that the configuration names.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    skipped: Vec<Layer>,
}

impl Layers {
    pub(crate) fn all_but(skipped: &[Layer]) -> Self {
        Self {
            skipped: skipped.to_vec(),
        }
    }

    /// These without some more.
    pub(crate) fn without(&self, skipped: &[Layer]) -> Self {
        Self {
            skipped: [&self.skipped, skipped].concat(),
        }
    }

    pub(crate) fn has(&self, layer: Layer) -> bool {
        !self.skipped.contains(&layer)
    }

    pub(crate) fn skipped(&self) -> impl Iterator<Item = &'static str> {
        self.skipped.iter().map(|layer| layer.name())
    }
}

/// A layer that was asked for and could not be applied. No code of the job has run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {step}: {errno}{}", layer.name(), self.hint())]
pub(crate) struct SetupError {
    pub layer: Layer,
    /// The system call or the check that failed, with its operand.
    pub step: String,
    pub errno: Errno,
}

impl SetupError {
    pub(crate) fn new(layer: Layer, step: impl Into<String>, errno: Errno) -> Self {
        Self {
            layer,
            step: step.into(),
            errno,
        }
    }

    /// For a step that failed with an error of the standard library.
    pub(crate) fn from_io(layer: Layer, step: impl Into<String>, error: &std::io::Error) -> Self {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
        Self::new(layer, step, errno)
    }

    /// What is likely wrong on the user's machine, as the end of a sentence; may be empty.
    pub(crate) fn hint(&self) -> &'static str {
        match (self.layer, self.errno) {
            (Layer::Root, Errno::EPERM) if self.step.contains("/proc") => {
                "; hint: this container hides parts of its own /proc, so the kernel refuses a new \
                 one (in Docker: --security-opt systempaths=unconfined); or set proc = \"none\""
            }
            (Layer::Root, Errno::EPERM) => {
                "; hint: mounting needs CAP_SYS_ADMIN (in Docker: --cap-add SYS_ADMIN \
                 --security-opt apparmor=unconfined --security-opt seccomp=unconfined)"
            }
            (Layer::Root, Errno::EINVAL) if self.step.contains("pivot_root") => {
                "; hint: the root file system is the kernel's initial one, which cannot be \
                 pivoted away from"
            }
            (Layer::Root, Errno::ENOENT) if self.step.starts_with("open ") => {
                "; hint: children are given a folder that is there, by its absolute path"
            }
            (Layer::Root, Errno::ENOENT) => {
                "; hint: the root must contain this folder for something to be mounted on it"
            }
            (Layer::Root, Errno::EACCES | Errno::ENOTDIR) => {
                "; hint: every folder above it must be open to others (chmod o+x)"
            }
            (Layer::Root, Errno::ELOOP) => {
                "; hint: links are followed only in folders that belong to root or to the host's \
                 user and that others cannot write: name the folder that it leads to"
            }
            (Layer::UserNamespace, Errno::EPERM) => {
                "; hint: writing the id maps needs CAP_SETUID and CAP_SETGID in the host"
            }
            (Layer::UserNamespace, Errno::EINVAL) => {
                "; hint: the host's own user namespace does not map the children's ids"
            }
            (Layer::Root, Errno::EROFS) if self.step.starts_with("create") => {
                "; hint: a bind's target must exist in the host's tree, be below /tmp, or be in an \
                 empty root (root = { empty = true })"
            }
            (Layer::NetworkNamespace, Errno::ENOSPC) => {
                "; hint: a limit on namespaces is reached, see /proc/sys/user/max_net_namespaces"
            }
            // ENOTSUPP (524), which no program is meant to see: no room to compile the filter in (`bpf_jit_charge_modmem`).
            (Layer::Seccomp, Errno::UnknownErrno) => {
                "; hint: this machine's compiled packet filters have no room left: who attaches so many? else raise \
                 net.core.bpf_jit_limit"
            }
            (Layer::Landlock, Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                "; hint: this kernel is older than 5.13 or was started without Landlock (lsm=); to \
                 do without it: skip_layers = [\"landlock\"]"
            }
            (Layer::Network, Errno::EPERM) => {
                "; hint: it needs CAP_NET_ADMIN over the machine's network, which an ordinary user \
                 does not have (in Docker: --cap-add NET_ADMIN)"
            }
            (Layer::Network, Errno::ENOENT) if self.step == "the program nft" => {
                "; hint: install nftables (Debian: apt-get install nftables)"
            }
            (Layer::Network, Errno::EBUSY) => {
                "; hint: children that live at the same time, of whatever host, need interfaces \
                 (kernel_veth_name) and addresses of their own"
            }
            (Layer::Network, Errno::EEXIST) if self.step.starts_with("interface") => {
                "; hint: choose another kernel_veth_name, or delete that interface (ip link delete) \
                 if nothing needs it"
            }
            (Layer::Network, Errno::EROFS | Errno::EACCES) => {
                "; hint: turn forwarding on before pyspawner starts (in Docker: --sysctl \
                 net.ipv4.ip_forward=1 --sysctl net.ipv6.conf.all.forwarding=1), or do without \
                 IPv6 (ipv6 = \"none\")"
            }
            (Layer::Network, Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT) => {
                "; hint: this kernel lacks veth, nf_tables with NAT and fib, or IPv6 (ipv6 = \
                 \"none\")"
            }
            (Layer::Seccomp, Errno::EINVAL) => "; hint: this kernel lacks CONFIG_SECCOMP_FILTER",
            _ => "",
        }
    }
}

/// Attaches layer and step to an errno.
pub(crate) fn at(layer: Layer, step: &'static str) -> impl Fn(Errno) -> SetupError {
    move |errno| SetupError::new(layer, step, errno)
}
