//! What one child is to get otherwise than its profile says.
//!
//! Runs on: the I/O thread, a child.
//!
//! It reaches the child in a sealed memory file, and the host's main thread never reads it: names
//! and paths of one job must not be found in the memory that others inherit.

use std::ffi::OsString;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::config::Limits;
use crate::layer::{Layer, Layers, SetupError, at};
use crate::sys::files;

/// See the module's text. What is absent is as the profile says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ChildSpec {
    /// Layers that are left out, besides the profile's. For tests.
    pub skip_layers: Vec<Layer>,
    pub limits: Option<Limits>,
    pub network: Option<ChildNetwork>,
    /// Of a root of its own, the kernel's file systems in it.
    pub covered: Vec<Covered>,
}

/// A mount that a child covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Covered {
    /// From the root. Any bytes can be a name, and so it is written as bytes.
    pub path: OsString,
    /// What must be found there.
    pub device: u64,
}

/// What a child itself must know of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ChildNetwork {
    None,
    /// Its loopback interface is to be up.
    Loopback,
    /// Interfaces that the host makes.
    Interfaces,
}

impl ChildSpec {
    /// Puts it into a memory file.
    pub(crate) fn seal(&self) -> std::io::Result<OwnedFd> {
        let json = serde_json::to_vec(self).expect("a spec is valid JSON");
        files::sealed_memfd("pyspawner-child-spec", &[&json])
    }

    /// Reads it in the child, and closes it.
    pub(crate) fn take(number: RawFd) -> Result<Self, SetupError> {
        // SAFETY: the child has just put it there, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        let json = files::read_to_end(fd)
            .map_err(|error| SetupError::from_io(Layer::Descriptors, "read(child spec)", &error))?;
        serde_json::from_slice(&json)
            .map_err(|_| at(Layer::Descriptors, "decoding the child spec")(Errno::EBADMSG))
    }

    pub(crate) fn layers(&self, of_profile: &Layers) -> Layers {
        of_profile.without(&self.skip_layers)
    }
}
