//! Children that are ready before there is a job for them.
//!
//! A spare has its whole profile: a job that is to have anything otherwise gets a child of its own.
//! It is used once. How many are kept follows the need: one more each time a job found none ready,
//! one less after a while without that, between one and the configured number.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::child::Child;
use super::clone_service::Purpose;
use super::hidden_names::{Found, HiddenNames};
use super::nursery::{Nursery, Refusal};
use super::payload::Own;
use crate::sandbox::handshake::ChildReport;

/// A spare is replaced at this age, so that nothing that changes slowly is very old in a job.
const OLDEST: Duration = Duration::from_secs(10 * 60);
/// How long none must have been missed before one fewer is kept.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nothing is cloned so soon after a job has begun: its start is still to be told, and while the
/// address space is copied, this thread waits at its next page fault.
const PAUSE_BEFORE_CLONE: Duration = Duration::from_millis(1);
/// How long no spare is made after one could not be.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

pub struct Spares {
    nursery: Rc<Nursery>,
    /// The oldest first.
    children: RefCell<VecDeque<Spare>>,
    hidden: HiddenNames,
    most: usize,
    wanted: Cell<usize>,
    last_missed: Cell<Instant>,
    /// Jobs that have come and do not run yet: they have the processors before spares do.
    starting: Cell<usize>,
    changed: Notify,
}

pub struct Spare {
    pub child: Child,
    /// It has said that it waits for its job.
    pub is_ready: bool,
    born: Instant,
    is_dead: bool,
    /// What was out of its sight when it was made.
    hidden: Found,
}

/// Held while a job is on its way.
pub struct Starting<'a>(&'a Spares);

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.starting.set(self.0.starting.get() - 1);
        self.0.changed.notify_one();
    }
}

impl Spares {
    /// Keeps at most so many, and at least one, from now on.
    pub fn start(nursery: Rc<Nursery>, hidden: HiddenNames, most: usize) -> Rc<Self> {
        let spares = Rc::new(Self {
            nursery,
            children: RefCell::default(),
            hidden,
            most,
            wanted: Cell::new(1),
            last_missed: Cell::new(Instant::now()),
            starting: Cell::new(0),
            changed: Notify::new(),
        });
        tokio::task::spawn_local(spares.clone().keep());
        spares
    }

    /// Says that a job has come. No spare is made until its code runs, or it is given up.
    pub fn job_comes(&self) -> Starting<'_> {
        self.starting.set(self.starting.get() + 1);
        Starting(self)
    }

    /// The spare that is furthest on its way, if there is one.
    pub fn take(&self) -> Option<Spare> {
        let hidden = self.hidden.look();
        let mut children = self.children.borrow_mut();
        let usable = |spare: &Spare| spare.is_usable(&hidden);
        let ready = children.iter().position(|s| s.is_ready && usable(s));
        if ready.is_none() {
            self.last_missed.set(Instant::now());
            self.wanted.set((self.wanted.get() + 1).min(self.most));
        }
        let place = ready.or_else(|| children.iter().position(usable))?;
        self.changed.notify_one();
        children.remove(place)
    }

    /// Whether there are as many as are wanted, each of them ready, and no job is on its way.
    pub fn are_ready(&self) -> bool {
        let children = self.children.borrow();
        self.starting.get() == 0
            && children.len() == self.wanted.get()
            && children.iter().all(|spare| spare.is_ready)
    }

    /// Makes spares when nothing waits for the processors, and takes away those that are of no use.
    async fn keep(self: Rc<Self>) {
        loop {
            if self.starting.get() > 0 {
                self.changed.notified().await;
                continue;
            }
            self.discard_useless().await;
            let missing = self.children.borrow().len() < self.wanted.get();
            if missing {
                tokio::time::sleep(PAUSE_BEFORE_CLONE).await;
                if self.starting.get() > 0 {
                    continue;
                }
                if let Err(refusal) = self.make().await {
                    // The next job is told the same.
                    log::debug!("no spare child: {refusal}");
                    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                }
                continue;
            }
            tokio::select! {
                () = self.changed.notified() => {}
                () = self.something_happened() => {}
                () = tokio::time::sleep(PATIENCE) => {}
            }
            if self.last_missed.get().elapsed() > PATIENCE {
                self.last_missed.set(Instant::now());
                self.wanted.set(self.wanted.get().saturating_sub(1).max(1));
            }
        }
    }

    async fn make(&self) -> Result<(), Refusal> {
        let hidden = self.hidden.look();
        let child = self.nursery.make(&Own::default(), Purpose::Spare).await?;
        self.children.borrow_mut().push_back(Spare {
            child,
            is_ready: false,
            is_dead: false,
            born: Instant::now(),
            hidden,
        });
        Ok(())
    }

    /// Ends those that have died, reported a failure, or grown old, and those that are too many.
    async fn discard_useless(&self) {
        let hidden = self.hidden.look();
        loop {
            let useless = {
                let mut children = self.children.borrow_mut();
                let place = children.iter().position(|spare| !spare.is_usable(&hidden));
                let place = place.or((children.len() > self.wanted.get()).then_some(0));
                place.and_then(|place| children.remove(place))
            };
            let Some(spare) = useless else {
                return;
            };
            self.nursery.clone().discard(spare.child).await;
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
    fn is_usable(&self, hidden: &Found) -> bool {
        !self.is_dead && self.hidden == *hidden && self.born.elapsed() < OLDEST
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
