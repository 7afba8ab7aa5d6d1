//! Where children are made, up to the point where they only need a job, and forgotten.
//!
//! Runs on: the I/O thread.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use super::child::Child;
use super::clone_service::{CloneService, ClonedChild};
use super::outcome::{JobReport, Outcome};
use super::overdue::{Overdue, PATIENCE_AFTER_KILL};
use super::overrides::{Overrides, PreparedOverrides};
use crate::config::{Limits, Profile};
use crate::io::cgroup::{Cgroups, JobCgroup, prefer_as_victim};
use crate::io::id_maps::{HostIds, write_id_maps};
use crate::io::network::slots::{Place, Slot, Slots, check_place};
use crate::io::network::{JobNetwork, Networks};
use crate::layer::{Layer, Layers, SetupError};
use crate::sys::memory;
use crate::sys::messages::{self, Socket};
use crate::wire::clone_channel::{Purpose, Refusal};
use crate::wire::fd_set::{FdSet, Role};
use crate::wire::handshake::{ChildReport, GO};

/// Makes children of one profile.
pub(super) struct ChildFactory {
    clones: CloneService,
    profile: Rc<Profile>,
    layers: Layers,
    cgroups: Option<Rc<Cgroups>>,
    networks: Rc<Networks>,
    slots: Slots,
    ids: RefCell<HostIds>,
    null: OwnedFd,
    overdue: Overdue,
    /// Whether it was said that clients' limits are not in force.
    has_warned: Cell<bool>,
}

impl From<Refusal> for JobReport {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Layer(error) => Self::refused(error),
            Refusal::Other(text) => Self::not_run(Outcome::SetupFailed, text),
        }
    }
}

impl ChildFactory {
    pub(super) fn new(
        clones: CloneService,
        profile: Rc<Profile>,
        cgroups: Option<Rc<Cgroups>>,
        networks: Rc<Networks>,
    ) -> anyhow::Result<Self> {
        let ids = HostIds::choose()?;
        Ok(Self {
            clones,
            layers: profile.layers(),
            slots: Slots::new(&profile, ids.are_own()),
            profile,
            cgroups,
            networks,
            ids: RefCell::new(ids),
            null: File::options()
                .read(true)
                .write(true)
                .open("/dev/null")?
                .into(),
            overdue: Overdue::default(),
            has_warned: Cell::default(),
        })
    }

    /// Makes a child that goes into its sandbox, and there does what it is for.
    pub(super) async fn make(
        &self,
        overrides: &Overrides,
        purpose: Purpose,
    ) -> Result<Child, Refusal> {
        self.make_prepared(overrides, overrides.prepare()?, purpose)
            .await
    }

    /// The same with what [`Overrides::prepare`] has taken.
    pub(super) async fn make_prepared(
        &self,
        overrides: &Overrides,
        prepared: PreparedOverrides,
        purpose: Purpose,
    ) -> Result<Child, Refusal> {
        if let Some(reason) = self.overdue.refusal() {
            return Err(reason.into());
        }
        let host_id = self
            .ids
            .borrow_mut()
            .take()
            .ok_or_else(|| "every host uid of the children is in use".to_owned())?;
        let made = self.make_with(overrides, prepared, purpose, host_id).await;
        if made.is_err() {
            self.ids.borrow_mut().give_back(host_id);
        }
        made
    }

    /// The host's id for user 0 of a child whose client leaves out the filter for calls. For it,
    /// `setuid(0)` is refused as to any ordinary user; the others die of the call.
    fn root_id(&self, overrides: &Overrides) -> Option<u32> {
        let is_unfiltered = overrides.skip_layers.contains(&Layer::Seccomp);
        is_unfiltered.then(|| self.ids.borrow().nobodys()).flatten()
    }

    async fn make_with(
        &self,
        overrides: &Overrides,
        prepared: PreparedOverrides,
        purpose: Purpose,
        host_id: u32,
    ) -> Result<Child, Refusal> {
        let (control, childs_end) =
            messages::pair().map_err(|error| format!("socketpair: {error}"))?;
        let control = Socket::new(control).map_err(|error| format!("control socket: {error}"))?;
        let cgroup =
            self.create_cgroup(overrides.limits.as_ref().unwrap_or(&self.profile.limits))?;
        let place = self.place(overrides);
        let descriptors = FdSet::default()
            .with(Role::Control, childs_end.as_fd())
            .with(Role::Spec, prepared.spec())
            .with(Role::Root, prepared.root())
            .with(Role::Cgroup, cgroup.as_ref().map(JobCgroup::descriptor))
            .with(Role::Network, place.descriptor());
        let cloned = self.clones.clone(descriptors, place.birth(), purpose).await;
        drop((childs_end, prepared));
        match cloned {
            Ok(cloned) => {
                let released = self
                    .release(cloned, place, cgroup, host_id, overrides, control)
                    .await;
                released.map_err(Refusal::from)
            }
            Err(refusal) => {
                remove(cgroup).await;
                Err(refusal)
            }
        }
    }

    /// Makes a child that ends at once; its slot is given back once it was reaped.
    pub(super) async fn make_bare(&self) -> Result<(ClonedChild, Option<Slot>), Refusal> {
        let place = self.place(&Overrides::default());
        let descriptors = FdSet::default()
            .with(Role::Control, self.null.as_fd())
            .with(Role::Network, place.descriptor());
        let cloned = self
            .clones
            .clone(descriptors, place.birth(), Purpose::BareClone);
        let mut cloned = cloned.await?;
        let slot = place.taken(cloned.new_network.take());
        Ok((cloned, slot))
    }

    pub(super) fn give_back(&self, slot: Option<Slot>) {
        if let Some(slot) = slot {
            self.slots.give_back(slot);
        }
    }

    fn create_cgroup(&self, limits: &Limits) -> Result<Option<JobCgroup>, SetupError> {
        let cgroups = self.cgroups.as_ref();
        cgroups.map(|cgroups| cgroups.create(limits)).transpose()
    }

    /// Does the host's half of the set-up and lets the child go on.
    async fn release(
        &self,
        cloned: ClonedChild,
        place: Place,
        cgroup: Option<JobCgroup>,
        host_id: u32,
        overrides: &Overrides,
        control: Socket,
    ) -> Result<Child, SetupError> {
        let ClonedChild { pid, pidfd, .. } = cloned;
        // Unread, it counts as 0, which makes a peak larger, never smaller.
        let resident_at_start = memory::resident(pid).unwrap_or(0);
        let mut child = Child {
            pid,
            pidfd,
            control,
            cgroup,
            connection: None,
            slot: place.taken(cloned.new_network),
            host_id,
            resident_at_start,
            unenforced: self.unenforced(overrides),
        };
        let layers = self.layers.without(&overrides.skip_layers);
        let prepared = prefer_as_victim(pid)
            .and_then(|()| write_id_maps(pid, host_id, self.root_id(overrides), &layers))
            .and_then(|()| check_place(pid, child.slot.as_ref(), &layers));
        let connected = match prepared {
            Ok(()) => {
                self.networks
                    .connect(pid, &self.network_of(overrides))
                    .await
            }
            Err(error) => Err(error),
        };
        match connected {
            Ok(connection) => {
                child.connection = connection;
                // A child that has already ended cannot read it; its end says why.
                child.control.send_now(GO, &[]).ok();
                Ok(child)
            }
            Err(error) => {
                child.kill();
                child.reap().await;
                remove(child.cgroup.take()).await;
                // A child that had ended by itself, for whatever it says, is none to prepare.
                Err(match child.hear().await {
                    Ok(Some(ChildReport::SetupFailed(first))) => first,
                    _ => error,
                })
            }
        }
    }

    /// The limits of a child that are not in force, or not as they are meant: they need control groups.
    fn unenforced(&self, overrides: &Overrides) -> Vec<&'static str> {
        if self.cgroups.is_some() {
            return Vec::new();
        }
        let limits = overrides.limits.as_ref().unwrap_or(&self.profile.limits);
        let wanted = [
            ("cpu", limits.cpu.is_some()),
            ("memory", limits.memory.is_some()),
        ];
        let unenforced = wanted.into_iter().filter(|(_, is_set)| *is_set);
        let unenforced: Vec<_> = unenforced.map(|(name, _)| name).collect();
        // Of the profile's it was said at the start.
        let is_news = overrides.limits.is_some() && !unenforced.is_empty();
        if is_news && !self.has_warned.replace(true) {
            log::warn!(
                "a client limits {}, and there are no control groups (-v says why): cpu is not limited then, and memory for each \
                 process alone; hint: cgroups = \"required\" refuses to start without them",
                unenforced.join(" and ")
            );
        }
        unenforced
    }

    fn network_of(&self, overrides: &Overrides) -> JobNetwork {
        let network = overrides.network.clone();
        network.unwrap_or_else(|| JobNetwork::from(&self.profile.network))
    }

    /// The network namespace of a child to come.
    fn place(&self, overrides: &Overrides) -> Place {
        let is_profiles = overrides.chroot.is_none() && overrides.skip_layers.is_empty();
        self.slots.place(&self.network_of(overrides), is_profiles)
    }

    /// Gives back what a reaped child had.
    pub(super) async fn forget(&self, mut child: Child) {
        self.ids.borrow_mut().give_back(child.host_id);
        self.give_back(child.slot.take());
        if let Some(connection) = child.connection.take() {
            self.networks.disconnect(connection).await;
        }
        remove(child.cgroup.take()).await;
    }

    /// Ends a child that got no job.
    pub(super) async fn discard(self: Rc<Self>, child: Child) {
        child.kill();
        match tokio::time::timeout(PATIENCE_AFTER_KILL, child.reap()).await {
            Ok(_) => self.forget(child).await,
            Err(_) => drop(tokio::task::spawn_local(self.reap_in_the_end(child))),
        }
    }

    /// For a child that does not end though it was killed: its uid stays its own until it has.
    pub(super) async fn reap_in_the_end(self: Rc<Self>, child: Child) {
        self.overdue.reap(&child).await;
        self.forget(child).await;
    }
}

async fn remove(cgroup: Option<JobCgroup>) {
    if let Some(cgroup) = cgroup {
        cgroup.remove().await;
    }
}
