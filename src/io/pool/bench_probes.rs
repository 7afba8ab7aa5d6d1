//! What `pyspawner bench` needs of a pool besides jobs: floors to measure them against, and a
//! child that does nothing, to look at.
//!
//! Runs on: the I/O thread.

use std::time::{Duration, Instant};

use anyhow::bail;

use super::Pool;
use super::child::{self, Child};
use super::overrides::Overrides;
use crate::sys::process::Ending;
use crate::wire::clone_channel::Purpose;
use crate::wire::handshake::ChildReport;

/// How long a child took, from its request on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lap {
    /// Until the first byte that it wrote was read; `None` if it writes none.
    pub first_byte: Option<Duration>,
    /// Until it was reaped, and what it had given back.
    pub reaped: Duration,
}

impl Pool {
    /// The same pool for a job that is to find no spare.
    pub(crate) fn without_spares(&self) -> Self {
        let mut pool = self.clone();
        pool.spares = None;
        pool
    }

    pub(crate) fn has_spares(&self) -> bool {
        self.spares.is_some()
    }

    /// Whether as many spares as are wanted wait for jobs, and none is being made.
    pub(crate) fn spares_are_ready(&self) -> bool {
        self.spares
            .as_ref()
            .is_some_and(|spares| spares.are_ready())
    }

    /// A child that goes the whole way into its sandbox, says one byte and ends.
    pub(crate) async fn floor(&self) -> anyhow::Result<Lap> {
        let start = Instant::now();
        let made = self
            .factory
            .make(&Overrides::default(), Purpose::Floor)
            .await;
        let child = made?;
        expect_ready(&child).await?;
        let first_byte = start.elapsed();
        let ending = child.reap().await.ending;
        self.factory.forget(child).await;
        check_ending(ending)?;
        Ok(Lap {
            first_byte: Some(first_byte),
            reaped: start.elapsed(),
        })
    }

    /// A child that ends at once.
    pub(crate) async fn bare_clone(&self) -> anyhow::Result<Lap> {
        let start = Instant::now();
        let (cloned, slot) = self.factory.make_bare().await?;
        check_ending(child::reap(&cloned.pidfd).await.ending)?;
        self.factory.give_back(slot);
        Ok(Lap {
            first_byte: None,
            reaped: start.elapsed(),
        })
    }

    /// Shows a child that waits for a job in its sandbox, and ends it.
    pub(crate) async fn look_at_idle<T>(
        &self,
        look: impl FnOnce(libc::pid_t) -> T,
    ) -> anyhow::Result<T> {
        let made = self
            .factory
            .make(&Overrides::default(), Purpose::Spare)
            .await;
        let child = made?;
        expect_ready(&child).await?;
        let seen = look(child.pid);
        self.factory.clone().discard(child).await;
        Ok(seen)
    }
}

async fn expect_ready(child: &Child) -> anyhow::Result<()> {
    match child.hear().await {
        Ok(Some(ChildReport::Ready)) => Ok(()),
        said => bail!("a child did not get into its sandbox: {said:?}"),
    }
}

fn check_ending(ending: Ending) -> anyhow::Result<()> {
    match ending {
        Ending::Exited(0) => Ok(()),
        other => bail!("a child that was to end at once: {other:?}"),
    }
}
