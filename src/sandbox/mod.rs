//! The sandbox's layers, one file each: what the main thread prepares once, and what each child applies to itself.
//!
//! Runs on: the main thread, a child.
//!
//! The order in which a child applies them is in [`crate::child::enter`].

pub(crate) mod capabilities;
pub(crate) mod identity;
pub(crate) mod landlock;
pub(crate) mod limits;
pub(crate) mod namespaces;
pub(crate) mod processes;
pub(crate) mod root;
pub(crate) mod seccomp;

use anyhow::Context;

use crate::config::{Network, Profile};
use crate::layer::{Layer, Layers, SetupError};
use crate::wire::child_spec::ChildNetwork;

/// A profile made ready: everything that does not depend on the single job is done.
pub(crate) struct Sandbox {
    pub profile: Profile,
    pub layers: Layers,
    /// `None`: the layer is skipped.
    pub root: Option<root::PreparedRoot>,
    pub seccomp: seccomp::Program,
    pub may_set_groups: bool,
    pub landlock: landlock::Rules,
    pub limits: limits::ResourceLimits,
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
    pub(crate) fn network(&self) -> ChildNetwork {
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
