//! Network namespaces that several children have, one after the other.
//!
//! Runs on: the I/O thread.
//!
//! To make and to end one is the dearest part of a job. So a child without network may get one
//! that another child had, under two conditions: every process of that child is gone, since its PID 1
//! was reaped, and the namespace is as it was when it was new ([`crate::clone::namespace_fingerprint`]). The thread that clones
//! looks at that when the next child is born, and makes a new one if anything has changed.
//!
//! Not every job may: see [`Slots::place`].

use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::JobNetwork;
use crate::config::Profile;
use crate::layer::{Layer, Layers, SetupError};
use crate::sys::files::FileId;
use crate::wire::child_descriptors::Birth;

/// How many are kept.
const MOST_FREE: usize = 64;

/// A network namespace, while a child is in it or between two.
pub(crate) struct Slot(OwnedFd);

/// The network namespace of a child that is not yet made.
pub(crate) enum Place {
    /// One for this child alone, which ends with it.
    Own,
    /// One that may be another's later.
    NewSlot,
    Slot(Slot),
}

impl Place {
    /// The same for the main thread.
    pub(crate) fn birth(&self) -> Birth {
        match self {
            Self::Own => Birth::Own,
            Self::NewSlot => Birth::New,
            Self::Slot(_) => Birth::InSlot,
        }
    }

    /// The namespace of [`Birth::InSlot`].
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Own | Self::NewSlot => None,
            Self::Slot(slot) => Some(slot.0.as_fd()),
        }
    }

    /// The slot of the child, now that it is made; `new` is what the main thread made for it.
    pub(crate) fn taken(self, new: Option<OwnedFd>) -> Option<Slot> {
        match (self, new) {
            (_, Some(new)) => Some(Slot(new)),
            (Self::Slot(slot), None) => Some(slot),
            (Self::Own | Self::NewSlot, None) => None,
        }
    }
}

/// The free slots of a host.
pub(crate) struct Slots {
    free: RefCell<Vec<Slot>>,
    /// Whether the profile permits any.
    are_used: bool,
}

impl Slots {
    pub(crate) fn new(profile: &Profile, children_have_own_ids: bool) -> Self {
        let is_landlock = |layer| layer == Layer::Landlock.name();
        let is_whole = profile.layers().skipped().all(is_landlock);
        Self {
            free: RefCell::default(),
            are_used: is_whole && children_have_own_ids && !profile.has_common_places(),
        }
    }

    /// Where a child is to be born. By slot are jobs
    ///
    /// - without network, since only of a namespace in which nothing is sent can be shown that it is as
    ///   new;
    /// - with every layer in force, but perhaps Landlock: they keep the job from sockets of other
    ///   kinds, from capabilities, and its processes from outliving it;
    /// - with a host uid that is not the host's own, to which the namespace's settings belong
    ///   (`net_ctl_permissions`);
    /// - that have no place in common where one could hand another an open file of `/proc/net`, which
    ///   would go on showing the namespace while the next job is in it.
    pub(crate) fn place(&self, network: &JobNetwork, is_profiles_sandbox: bool) -> Place {
        if !self.are_used || !is_profiles_sandbox || *network != JobNetwork::None {
            return Place::Own;
        }
        let free = self.free.borrow_mut().pop();
        free.map_or(Place::NewSlot, Place::Slot)
    }

    /// Takes back the slot of a child that was reaped.
    pub(crate) fn give_back(&self, slot: Slot) {
        let mut free = self.free.borrow_mut();
        if free.len() < MOST_FREE {
            free.push(slot);
        }
    }
}

/// Refuses a child that is not where it was to be born: in its slot, or else at least
/// not in the host's own network namespace. It cannot go elsewhere afterwards.
pub(crate) fn check_place(
    pid: libc::pid_t,
    slot: Option<&Slot>,
    layers: &Layers,
) -> Result<(), SetupError> {
    if !layers.has(Layer::NetworkNamespace) {
        return Ok(());
    }
    let childs = identity(&format!("/proc/{pid}/ns/net"))?;
    // Not "self": that has the descriptors of the main thread.
    let of_slot = |slot: &Slot| identity(&format!("/proc/thread-self/fd/{}", slot.0.as_raw_fd()));
    let is_slots = slot
        .map(of_slot)
        .transpose()?
        .is_none_or(|slots| slots == childs);
    if is_slots && childs != identity("/proc/thread-self/ns/net")? {
        Ok(())
    } else {
        let promise = "the child is not in the network namespace that it was to have";
        Err(SetupError::found(Layer::NetworkNamespace, promise))
    }
}

fn identity(path: &str) -> Result<FileId, SetupError> {
    FileId::at(path)
        .map_err(|e| SetupError::from_io(Layer::NetworkNamespace, format!("stat {path}"), &e))
}
