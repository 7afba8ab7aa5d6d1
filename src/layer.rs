//! The layers by name, and the error that says which one could not be applied.
//!
//! Runs on: any process.

use std::borrow::Cow;

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SetupError {
    pub layer: Layer,
    /// The system call that failed, with its operand; or what a check of our own has found.
    pub step: String,
    /// The kernel's answer, if it was a call.
    #[serde(with = "errno_by_number")]
    pub errno: Option<Errno>,
    /// What is likely wrong, where the step knows better than [`likely_cause`].
    hint: Option<Cow<'static, str>>,
}

impl std::error::Error for SetupError {}

impl std::fmt::Display for SetupError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.layer.name(), self.step)?;
        if let Some(errno) = self.errno {
            write!(f, ": {errno}")?;
        }
        match self.hint() {
            "" => Ok(()),
            hint => write!(f, "; hint: {hint}"),
        }
    }
}

impl SetupError {
    /// A call that failed.
    pub(crate) fn new(layer: Layer, step: impl Into<String>, errno: Errno) -> Self {
        Self {
            layer,
            step: step.into(),
            errno: Some(errno),
            hint: None,
        }
    }

    /// For a step that failed with an error of the standard library.
    pub(crate) fn from_io(layer: Layer, step: impl Into<String>, error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) => Self::new(layer, step, Errno::from_raw(number)),
            None => Self::found(layer, format!("{}: {error}", step.into())),
        }
    }

    /// What a check of our own has found.
    pub(crate) fn found(layer: Layer, what: impl Into<String>) -> Self {
        Self {
            layer,
            step: what.into(),
            errno: None,
            hint: None,
        }
    }

    /// Gives what a check has found an errno all the same: clients tell a few refusals apart by it (`docs/sandbox.md`).
    pub(crate) fn known_as(self, errno: Errno) -> Self {
        Self {
            errno: Some(errno),
            ..self
        }
    }

    /// Says what is likely wrong with this step.
    pub(crate) fn hinting(self, hint: &'static str) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// The same if the kernel's answer was this.
    pub(crate) fn hinting_if(self, errno: Errno, hint: &'static str) -> Self {
        match self.errno == Some(errno) {
            true => self.hinting(hint),
            false => self,
        }
    }

    /// The same with a step of at most so many bytes.
    pub(crate) fn fitting(&self, longest: usize) -> Self {
        let mut error = self.clone();
        error.step.truncate(error.step.floor_char_boundary(longest));
        error
    }

    /// What is likely wrong on the user's machine; may be empty.
    pub(crate) fn hint(&self) -> &str {
        match (&self.hint, self.errno) {
            (Some(hint), _) => hint,
            (None, Some(errno)) => likely_cause(self.layer, errno),
            (None, None) => "",
        }
    }
}

/// What an answer of the kernel's most likely means, whichever of a layer's steps it was.
fn likely_cause(layer: Layer, errno: Errno) -> &'static str {
    match (layer, errno) {
        (Layer::Root, Errno::EPERM) => {
            "mounting needs CAP_SYS_ADMIN (in Docker: --cap-add SYS_ADMIN \
             --security-opt apparmor=unconfined --security-opt seccomp=unconfined)"
        }
        (Layer::Root, Errno::ENOENT) => {
            "the root must contain this folder for something to be mounted on it"
        }
        (Layer::Root, Errno::EACCES | Errno::ENOTDIR) => {
            "every folder above it must be open to others (chmod o+x)"
        }
        (Layer::Root, Errno::ELOOP) => LINKS_HINT,
        (Layer::UserNamespace, Errno::EPERM) => {
            "writing the id maps needs CAP_SETUID and CAP_SETGID in the host"
        }
        (Layer::UserNamespace, Errno::EINVAL) => {
            "the host's own user namespace does not map the children's ids"
        }
        (Layer::NetworkNamespace, Errno::ENOSPC) => {
            "a limit on namespaces is reached, see /proc/sys/user/max_net_namespaces"
        }
        // ENOTSUPP (524), which no program is meant to see: no room to compile the filter in (`bpf_jit_charge_modmem`).
        (Layer::Seccomp, Errno::UnknownErrno) => {
            "this machine's compiled packet filters have no room left: who attaches so many? else raise \
             net.core.bpf_jit_limit"
        }
        (Layer::Seccomp, Errno::EINVAL) => "this kernel lacks CONFIG_SECCOMP_FILTER",
        (Layer::Landlock, Errno::ENOSYS | Errno::EOPNOTSUPP) => LANDLOCK_HINT,
        (Layer::Network, Errno::EPERM) => {
            "it needs CAP_NET_ADMIN over the machine's network, which an ordinary user \
             does not have (in Docker: --cap-add NET_ADMIN)"
        }
        (Layer::Network, Errno::EROFS | Errno::EACCES) => {
            "turn forwarding on before pyspawner starts (in Docker: --sysctl \
             net.ipv4.ip_forward=1 --sysctl net.ipv6.conf.all.forwarding=1), or do without \
             IPv6 (ipv6 = \"none\")"
        }
        (Layer::Network, Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT) => {
            "this kernel lacks veth, nf_tables with NAT and fib, or IPv6 (ipv6 = \"none\")"
        }
        _ => "",
    }
}

/// Of a link on the way to a folder that is opened.
pub(crate) const LINKS_HINT: &str = "links are followed only in folders that belong to root or to the host's user and that \
                                     others cannot write: name the folder that it leads to";

/// Of a kernel without Landlock.
pub(crate) const LANDLOCK_HINT: &str = "this kernel is older than 5.13 or was started without Landlock (lsm=); to do without \
                                        it: skip_layers = [\"landlock\"]";

/// An errno crosses the control socket as its number.
mod errno_by_number {
    use nix::errno::Errno;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        errno: &Option<Errno>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        errno.map(|errno| errno as i32).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Errno>, D::Error> {
        let number = Option::<i32>::deserialize(d)?;
        Ok(number.map(Errno::from_raw))
    }
}

/// Attaches layer and step to an errno.
pub(crate) fn at(layer: Layer, step: &'static str) -> impl Fn(Errno) -> SetupError {
    move |errno| SetupError::new(layer, step, errno)
}
