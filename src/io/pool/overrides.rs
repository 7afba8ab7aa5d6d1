//! What a job has otherwise than its profile says.
//!
//! Runs on: the I/O thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use crate::config::Limits;
use crate::io::network::JobNetwork;
use crate::layer::{Layer, SetupError};
use crate::sandbox::root::{Folder, OwnRoot};
use crate::wire::child_spec::{ChildNetwork, ChildSpec};

/// See the module's text. Two jobs of which this is the same have the same sandbox.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Overrides {
    pub limits: Option<Limits>,
    /// Layers that are left out, besides the profile's.
    pub skip_layers: Vec<Layer>,
    /// The folder that is the job's root, as it is when its child is made.
    pub chroot: Option<PathBuf>,
    pub network: Option<JobNetwork>,
}

/// The same for one child, to which it is sent.
#[derive(Default)]
pub(crate) struct PreparedOverrides {
    spec: Option<OwnedFd>,
    root: Option<OwnedFd>,
    /// What its chroot is.
    pub folder: Option<Folder>,
}

impl Overrides {
    /// Whether a child can be made so before there is a job for it. Of interfaces with names of the
    /// caller's there can be but one pair.
    pub(crate) fn can_be_ready(&self) -> bool {
        !matches!(self.network, Some(JobNetwork::Veth(_)))
    }

    /// Takes the chroot, and writes down what the child reads.
    ///
    /// # Errors
    /// If the chroot cannot be had, with the call that failed.
    pub(crate) fn prepare(&self) -> Result<PreparedOverrides, SetupError> {
        let root = self.chroot.as_deref().map(OwnRoot::take).transpose()?;
        let network = self.network.as_ref().map(|own| match own {
            JobNetwork::None => ChildNetwork::None,
            JobNetwork::Loopback => ChildNetwork::Loopback,
            JobNetwork::Veth(_) | JobNetwork::Egress => ChildNetwork::Interfaces,
        });
        let is_profiles = self.limits.is_none() && self.skip_layers.is_empty() && network.is_none();
        if root.is_none() && is_profiles {
            return Ok(PreparedOverrides::default());
        }
        let (root, folder, covered) = match root {
            Some(root) => (Some(root.tree), Some(root.folder), root.covered),
            None => (None, None, Vec::new()),
        };
        let spec = ChildSpec {
            skip_layers: self.skip_layers.clone(),
            limits: self.limits.clone(),
            network,
            covered,
        };
        let spec = spec.seal().map_err(|error| {
            SetupError::from_io(Layer::Descriptors, "memfd_create(child spec)", &error)
        })?;
        Ok(PreparedOverrides {
            spec: Some(spec),
            root,
            folder,
        })
    }
}

impl PreparedOverrides {
    /// A [`ChildSpec`].
    pub(crate) fn spec(&self) -> Option<BorrowedFd<'_>> {
        self.spec.as_ref().map(AsFd::as_fd)
    }

    /// A detached tree.
    pub(crate) fn root(&self) -> Option<BorrowedFd<'_>> {
        self.root.as_ref().map(AsFd::as_fd)
    }
}
