//! The client protocol (`docs/protocol.md`): clients ask for children over Unix sockets.
//!
//! Runs on: the I/O thread.
//!
//! The host never decodes what passes between client and child: arguments are bytes for it, in a
//! memory file if they are many, and the child's streams are the client's own pipes.

mod client;
mod client_child;
pub(crate) mod listen;
pub(crate) mod protocol;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::Notify;

use super::interrupt::Interrupt;
use super::pool::queue::{Place, Queue};
use super::pool::{Outcome, Pool};
use crate::config::Profile;
pub(crate) use client::attend;

/// Descriptors of the host that a child takes at most, on its way and at work.
const DESCRIPTORS_OF_A_CHILD: u64 = 15;
/// Those that the host needs for itself.
const DESCRIPTORS_OF_THE_HOST: u64 = 100;

/// The clients' index in the service's queue, in which they wait without a bound but that of their number.
pub(crate) const CLIENTS: usize = 0;

/// What all clients share.
pub(crate) struct Service {
    pool: Pool,
    profile: Rc<Profile>,
    children: Count,
    clients: Count,
    idle: Notify,
    interrupt: Interrupt,
    /// Whose turn it is. Clients are its first tenant.
    queue: Arc<Queue>,
}

/// How many there are, and how many there may be.
struct Count {
    now: Cell<u64>,
    most: u64,
}

impl Service {
    /// # Errors
    /// If this process's limit of open files cannot be read.
    pub(crate) fn new(
        pool: Pool,
        profile: Rc<Profile>,
        interrupt: Interrupt,
        queue: Arc<Queue>,
    ) -> nix::Result<Rc<Self>> {
        // What one client takes must not be missing where another's child is at work.
        let (files, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let files = files.saturating_sub(DESCRIPTORS_OF_THE_HOST);
        let count = |most: u64| Count {
            now: Cell::new(0),
            most: most.max(1),
        };
        Ok(Rc::new(Self {
            pool,
            profile,
            children: count(files / 4 * 3 / DESCRIPTORS_OF_A_CHILD),
            clients: count(files / 4),
            idle: Notify::new(),
            interrupt,
            queue,
        }))
    }

    /// Returns once no child is left.
    pub(crate) async fn idle(&self) {
        while self.children.now.get() > 0 {
            self.idle.notified().await;
        }
    }

    /// Waits until a child may run, and returns its place; or with what has come instead.
    async fn place(&self, kill: &Notify) -> Result<Place, Outcome> {
        // Children are counted before they come here.
        let turn = self.queue.enter(CLIENTS).map_err(|_| Outcome::Cancelled)?;
        tokio::select! {
            biased;
            _ = self.interrupt.received() => Err(Outcome::Cancelled),
            () = kill.notified() => Err(Outcome::Signaled),
            place = turn.wait() => Ok(place),
        }
    }

    fn admit_child(self: &Rc<Self>) -> Result<Counted, String> {
        Counted::new(self, |service| &service.children).map_err(|most| {
            format!("{most} children run already, for which there are descriptors{HINT}")
        })
    }

    fn admit_client(self: &Rc<Self>) -> Result<Counted, String> {
        Counted::new(self, |service| &service.clients)
            .map_err(|most| format!("{most} clients are connected already{HINT}"))
    }
}

const HINT: &str = "; hint: raise the host's hard limit of open files (ulimit -Hn)";

/// Counts a child, or a client, while it is there.
struct Counted {
    service: Rc<Service>,
    which: fn(&Service) -> &Count,
}

impl Counted {
    fn new(service: &Rc<Service>, which: fn(&Service) -> &Count) -> Result<Self, u64> {
        let count = which(service);
        if count.now.get() >= count.most {
            return Err(count.most);
        }
        count.now.set(count.now.get() + 1);
        let service = service.clone();
        Ok(Self { service, which })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let count = (self.which)(&self.service);
        count.now.set(count.now.get() - 1);
        if self.service.children.now.get() == 0 {
            self.service.idle.notify_waiters();
        }
    }
}
