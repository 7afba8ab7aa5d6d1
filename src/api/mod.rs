//! The client protocol (`docs/protocol.md`): clients ask for children over Unix sockets.
//!
//! The host never reads what passes between client and child: arguments are in a memory file that
//! only the child opens, and the child's streams are the client's own pipes.

mod child;
mod client;
pub mod listen;
pub mod protocol;
mod socket;

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

pub use client::attend;
pub use socket::Socket;

use crate::config::Profile;
use crate::pool::Pool;

/// What all clients share.
pub struct Service {
    pool: Pool,
    profile: Rc<Profile>,
    children: Cell<usize>,
    idle: Notify,
}

impl Service {
    pub fn new(pool: Pool, profile: Rc<Profile>) -> Rc<Self> {
        Rc::new(Self {
            pool,
            profile,
            children: Cell::new(0),
            idle: Notify::new(),
        })
    }

    /// Returns once no child is left.
    pub async fn idle(&self) {
        while self.children.get() > 0 {
            self.idle.notified().await;
        }
    }
}

/// Counts a child while it lives.
struct Counted(Rc<Service>);

impl Counted {
    fn new(service: &Rc<Service>) -> Self {
        service.children.set(service.children.get() + 1);
        Self(service.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.children.set(self.0.children.get() - 1);
        if self.0.children.get() == 0 {
            self.0.idle.notify_waiters();
        }
    }
}
