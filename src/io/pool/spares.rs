//! Children that are ready before there is a job for them.
//!
//! Runs on: the I/O thread.
//!
//! A spare has one complete sandbox, and only a job that is to have the same gets it. It is used once.
//! How many are kept, and for which sandboxes, follows the need: [`crate::io::pool::spare_demand`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::child::Child;
use super::child_factory::ChildFactory;
use super::hidden_path_watch::{Found, HiddenPathWatch};
use super::overrides::Overrides;
use super::spare_demand::{Demand, PATIENCE};
use crate::sandbox::root::Folder;
use crate::sys::mount_watch::MountWatch;
use crate::wire::clone_channel::{Purpose, Refusal};
use crate::wire::handshake::ChildReport;

/// A spare is replaced at this age, so that nothing that changes slowly is very old in a job.
const OLDEST: Duration = Duration::from_secs(10 * 60);
/// Nothing is cloned so soon after a job has begun: its start is still to be told, and while the
/// address space is copied, this thread waits at its next page fault.
const PAUSE_BEFORE_CLONE: Duration = Duration::from_millis(1);
/// None is made so soon after one has died, or what it would see has changed: there may be more of that.
const PAUSE_AFTER_LOSS: Duration = Duration::from_secs(1);

pub(super) struct Spares {
    factory: Rc<ChildFactory>,
    /// The oldest first.
    children: RefCell<VecDeque<Spare>>,
    demand: RefCell<Demand>,
    hidden: HiddenPathWatch,
    /// `None`: the kernel does not tell of mounts, and no spare has a chroot of its own.
    mounts: Option<MountWatch>,
    /// Jobs that have come and do not run yet: they have the processors before spares do.
    starting: Cell<usize>,
    changed: Notify,
}

pub(super) struct Spare {
    pub child: Child,
    /// It has said that it waits for its job.
    pub is_ready: bool,
    overrides: Rc<Overrides>,
    view: View,
    born: Instant,
    is_dead: bool,
}

/// What the host's tree was like where a child's view of it depends on that. A child that was made when it
/// was the same sees what a new one would.
#[derive(Clone, Debug, PartialEq)]
struct View {
    hidden: Found,
    /// How often something was mounted, if that matters.
    mounts: Option<u64>,
    chroot: Option<Folder>,
}

impl View {
    /// `None` if to look at the chroot again might take for ever.
    fn with(mut self, chroot: Option<Folder>) -> Option<Self> {
        if chroot.as_ref().is_some_and(|folder| folder.is_remote) {
            return None;
        }
        self.chroot = chroot;
        Some(self)
    }
}

enum Useless {
    /// It did not get ready.
    Failed,
    /// It did, and has ended since.
    Died,
    HasAnotherView,
    TooOld,
    TooMany,
}

/// Held while a job is on its way.
pub(super) struct Starting<'a>(&'a Spares);

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.starting.set(self.0.starting.get() - 1);
        self.0.changed.notify_one();
    }
}

impl Spares {
    /// Keeps at most so many, and at least one, from now on.
    pub(super) fn start(
        factory: Rc<ChildFactory>,
        hidden: HiddenPathWatch,
        most: usize,
    ) -> Rc<Self> {
        let mounts = MountWatch::start().inspect_err(|error| {
            log::info!("no spare child has a chroot of its overrides: {error}")
        });
        let spares = Rc::new(Self {
            factory,
            children: RefCell::default(),
            demand: RefCell::new(Demand::new(most, Instant::now())),
            hidden,
            mounts: mounts.ok(),
            starting: Cell::new(0),
            changed: Notify::new(),
        });
        tokio::task::spawn_local(spares.clone().keep());
        spares
    }

    /// Says that a job has come. No spare is made until its code runs, or it is given up.
    pub(super) fn job_comes(&self) -> Starting<'_> {
        self.starting.set(self.starting.get() + 1);
        Starting(self)
    }

    /// The spare that is furthest on its way to such a job, if there is one.
    pub(super) fn take(&self, overrides: &Overrides) -> Option<Spare> {
        let view = self.view(overrides)?;
        let mut children = self.children.borrow_mut();
        let usable = |spare: &Spare| *spare.overrides == *overrides && spare.is_usable(&view);
        let ready = children.iter().position(|s| s.is_ready && usable(s));
        let mut demand = self.demand.borrow_mut();
        demand.asked(overrides, ready.is_some(), Instant::now());
        let place = ready.or_else(|| children.iter().position(usable))?;
        self.changed.notify_one();
        children.remove(place)
    }

    /// Whether there are as many as are wanted, each of them ready, and no job is on its way.
    pub(super) fn are_ready(&self) -> bool {
        let children = self.children.borrow();
        self.starting.get() == 0
            && !children.is_empty()
            && children.len() == self.demand.borrow().in_all()
            && children.iter().all(|spare| spare.is_ready)
    }

    /// What such a child would see now; `None` if none can be made beforehand.
    fn view(&self, overrides: &Overrides) -> Option<View> {
        let view = self.view_around(overrides)?;
        let chroot = overrides.chroot.as_deref().map(Folder::find).transpose();
        view.with(chroot.ok()?)
    }

    /// The same but for the chroot itself. Comes first: what changes from now on makes it another view.
    fn view_around(&self, overrides: &Overrides) -> Option<View> {
        if !overrides.can_be_ready() {
            return None;
        }
        let mounts = match overrides.chroot {
            Some(_) => Some(self.mounts.as_ref()?.changes()),
            None => None,
        };
        Some(View {
            hidden: self.hidden.look(),
            mounts,
            chroot: None,
        })
    }

    /// Makes spares when nothing waits for the processors, and takes away those that are of no use.
    async fn keep(self: Rc<Self>) {
        loop {
            if self.starting.get() > 0 {
                tokio::select! {
                    () = self.changed.notified() => {}
                    () = self.something_was_mounted() => self.discard_useless(),
                }
                continue;
            }
            let now = Instant::now();
            self.demand.borrow_mut().pass(now);
            self.discard_useless();
            let missing = self.missing();
            if let Some((overrides, when)) = &missing
                && *when <= now
            {
                tokio::time::sleep(PAUSE_BEFORE_CLONE).await;
                if self.starting.get() > 0 {
                    continue;
                }
                if let Err(refusal) = self.make(overrides).await {
                    log::debug!("no spare child: {refusal}");
                    self.failed(overrides);
                }
                continue;
            }
            let later = now + PATIENCE;
            let next = missing.map_or(later, |(_, when)| when.min(later));
            tokio::select! {
                () = self.changed.notified() => {}
                () = self.something_happened() => {}
                () = self.something_was_mounted() => self.discard_useless(),
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// What there are fewer spares for than are wanted, and when one may be made.
    fn missing(&self) -> Option<(Rc<Overrides>, Instant)> {
        self.demand
            .borrow()
            .unmet(|overrides| self.count(overrides))
    }

    fn count(&self, overrides: &Overrides) -> usize {
        let children = self.children.borrow();
        let of_kind = children
            .iter()
            .filter(|spare| *spare.overrides == *overrides && !spare.is_dead);
        of_kind.count()
    }

    fn failed(&self, overrides: &Overrides) {
        let there = self.count(overrides);
        self.demand
            .borrow_mut()
            .failed(overrides, there, Instant::now());
    }

    async fn make(&self, overrides: &Rc<Overrides>) -> Result<(), Refusal> {
        let around = self.view_around(overrides);
        let prepared = overrides.prepare()?;
        // Of the very folder that was taken: its path may lead elsewhere for a moment.
        let view = around.and_then(|around| around.with(prepared.folder.clone()));
        let view = view.ok_or_else(|| "its chroot cannot be followed".to_owned())?;
        let purpose = Purpose::Spare;
        let child = self
            .factory
            .make_prepared(overrides, prepared, purpose)
            .await?;
        self.children.borrow_mut().push_back(Spare {
            child,
            is_ready: false,
            overrides: overrides.clone(),
            view,
            born: Instant::now(),
            is_dead: false,
        });
        Ok(())
    }

    /// Ends those that have died, reported a failure, or grown old, and those that are too many.
    fn discard_useless(&self) {
        while let Some((spare, why)) = self.take_useless() {
            match why {
                Useless::Failed => self.failed(&spare.overrides),
                Useless::Died | Useless::HasAnotherView => {
                    let until = Instant::now() + PAUSE_AFTER_LOSS;
                    self.demand.borrow_mut().pause(&spare.overrides, until);
                }
                Useless::TooOld | Useless::TooMany => {}
            }
            tokio::task::spawn_local(self.factory.clone().discard(spare.child));
        }
    }

    fn take_useless(&self) -> Option<(Spare, Useless)> {
        let mut children = self.children.borrow_mut();
        let demand = self.demand.borrow();
        let mut kinds: Vec<(&Overrides, Option<View>, usize)> = Vec::new();
        // Of too many the oldest, and those first that are not ready.
        let newest_first = children.iter().enumerate().rev();
        let (ready, others): (Vec<_>, Vec<_>) = newest_first.partition(|(_, spare)| spare.is_ready);
        let (place, why) = ready.into_iter().chain(others).find_map(|(place, spare)| {
            let known = kinds
                .iter()
                .position(|(overrides, ..)| **overrides == *spare.overrides);
            let known = known.unwrap_or_else(|| {
                let overrides = &*spare.overrides;
                kinds.push((overrides, self.view(overrides), demand.of(overrides)));
                kinds.len() - 1
            });
            let (_, view, wanted) = &mut kinds[known];
            let why = if spare.is_dead && !spare.is_ready {
                Useless::Failed
            } else if spare.is_dead {
                Useless::Died
            } else if view.as_ref() != Some(&spare.view) {
                Useless::HasAnotherView
            } else if spare.born.elapsed() >= OLDEST {
                Useless::TooOld
            } else if *wanted == 0 {
                Useless::TooMany
            } else {
                *wanted -= 1;
                return None;
            };
            Some((place, why))
        })?;
        children.remove(place).map(|spare| (spare, why))
    }

    /// Waits until something is mounted or unmounted, if that is anything to a spare: a chroot that is
    /// held by one cannot be taken out of use.
    async fn something_was_mounted(&self) {
        let concerns = |spare: &Spare| spare.overrides.chroot.is_some();
        let concerned = self.children.borrow().iter().any(concerns);
        match self.mounts.as_ref().filter(|_| concerned) {
            Some(mounts) => mounts.changed().await.expect("the runtime runs"),
            None => std::future::pending().await,
        }
    }

    /// Waits until a spare has something to say, or has ended.
    async fn something_happened(&self) {
        poll_fn(|context| {
            let mut children = self.children.borrow_mut();
            let changes = children.iter_mut().map(|spare| spare.poll_change(context));
            // All are asked, so that all wake this task.
            let changed = changes.filter(Poll::is_ready).count() > 0;
            if changed {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

impl Spare {
    fn is_usable(&self, view: &View) -> bool {
        !self.is_dead && self.view == *view && self.born.elapsed() < OLDEST
    }

    fn poll_change(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_ready
            && let Poll::Ready(said) = self.child.poll_hear(context)
        {
            match said {
                Ok(Some(ChildReport::Ready)) => self.is_ready = true,
                said => {
                    log::debug!("a spare child failed: {said:?}");
                    self.is_dead = true;
                }
            }
            return Poll::Ready(());
        }
        let ended = self.child.poll_ended(context);
        self.is_dead |= ended.is_ready();
        ended
    }
}
