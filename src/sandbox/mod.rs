//! The sandbox: what is prepared once in the host, what the host does for each child, and
//! the page of steps that each child goes through before any of the job's code runs.

pub(crate) mod assignment;
pub(crate) mod capabilities;
pub(crate) mod cgroup;
pub(crate) mod enter;
pub(crate) mod from_host;
pub(crate) mod handshake;
pub(crate) mod hidden;
pub(crate) mod identity;
pub(crate) mod import_roots;
pub(crate) mod landlock;
pub(crate) mod layer;
pub(crate) mod limits;
pub(crate) mod namespaces;
pub(crate) mod order;
pub(crate) mod processes;
pub(crate) mod read_back;
pub(crate) mod root;
pub(crate) mod seccomp;

use anyhow::Context;
use nix::errno::Errno;

use crate::config::{Network, Profile};
pub(crate) use layer::{Layer, Layers, SetupError};
use order::ChildNetwork;

/// A profile made ready: everything that does not depend on the single job is done.
pub(crate) struct Sandbox {
    pub profile: Profile,
    pub layers: Layers,
    /// `None`: the layer is skipped.
    root: Option<root::PreparedRoot>,
    seccomp: seccomp::Program,
    may_set_groups: bool,
    landlock: landlock::Rules,
    limits: limits::ResourceLimits,
}

impl Sandbox {
    /// Compiles the system call policy and prepares the children's root file system, in a
    /// mount namespace of the calling thread. From here on the calling thread sees what its
    /// children will see; other threads keep the host's view.
    ///
    /// `needed` are the folders and files that a child's interpreter must be able to reach.
    pub(crate) fn prepare(
        profile: &Profile,
        needed: &[std::path::PathBuf],
    ) -> anyhow::Result<Self> {
        let layers = profile.layers();
        let seccomp = seccomp::Program::compile()?;
        let may_set_groups = identity::may_set_groups().context("/proc/self/setgroups")?;
        if !may_set_groups && !nix::unistd::getgroups()?.is_empty() {
            log::warn!(
                "children keep the supplementary groups of the user who started pyspawner, since \
                 no group ids are mapped"
            );
        }
        let limits = limits::ResourceLimits::prepare(&profile.limits, &layers)?;
        if layers.has(Layer::Landlock)
            && let Some(missing) = landlock::missing_here()
        {
            log::info!("{missing}");
        }
        // Before the thread leaves the host's tree, in which a bind's source is looked at.
        let landlock = landlock::Rules::new(profile);
        let root = match layers.has(Layer::Root) {
            true => Some(root::PreparedRoot::prepare(profile, needed)?),
            false => None,
        };
        Ok(Self {
            profile: profile.clone(),
            layers,
            root,
            may_set_groups,
            landlock,
            limits,
            seccomp,
        })
    }

    /// The names that are hidden from children, as the host knows them.
    pub(crate) fn hidden_names(&self) -> Vec<std::path::PathBuf> {
        let root = self.root.as_ref();
        root.map_or_else(Vec::new, root::PreparedRoot::hidden_names)
    }

    /// The folder that each child has for itself.
    pub(crate) fn home(&self) -> Option<&std::path::Path> {
        self.root.as_ref().and_then(root::PreparedRoot::home)
    }

    /// Where children import modules from besides, since they do not start there.
    pub(crate) fn import_directory(&self) -> Option<&std::path::Path> {
        self.root
            .as_ref()
            .and_then(root::PreparedRoot::import_directory)
    }

    /// What the host must look after before each clone.
    pub(crate) fn renew(&mut self) -> Result<(), SetupError> {
        self.root.as_mut().map_or(Ok(()), root::PreparedRoot::renew)
    }

    /// The network of each child, unless its order says otherwise.
    fn network(&self) -> ChildNetwork {
        match self.profile.network {
            Network::None => ChildNetwork::None,
            Network::Loopback => ChildNetwork::Loopback,
            Network::Egress(_) => ChildNetwork::Interfaces,
        }
    }

    /// The `CLONE_NEW*` flags of this sandbox, but for that of a network namespace if the child is
    /// born into one that is there.
    pub(crate) fn clone_flags(&self, has_network_namespace: bool) -> u64 {
        let flags = namespaces::clone_flags(&self.layers);
        match has_network_namespace {
            true => flags & !(libc::CLONE_NEWNET as u64),
            false => flags,
        }
    }
}

/// Attaches layer and step to an errno.
fn at(layer: Layer, step: &'static str) -> impl Fn(Errno) -> SetupError {
    move |errno| SetupError::new(layer, step, errno)
}
