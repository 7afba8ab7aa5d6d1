//! The way out: for each child a pair of its own, and for all of them one firewall.
//!
//! Runs on: the I/O thread.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;

use tokio::task::JoinHandle;

use super::addresses::{self, Block, Claim, Pairs, Turn};
use super::firewall::{Firewall, Record};
use super::forwarding::{self, Changed, Forwarding, has_ipv6};
use super::links::Links;
use super::table_watch::Watch;
use super::veth::VethConfig;
use super::{PATIENCE, check_failed};
use crate::config;
use crate::layer::SetupError;

/// A host's part of the machine's network.
pub(super) struct Egress {
    pairs: RefCell<Pairs>,
    firewall: Firewall,
    forwarding: Forwarding,
    /// Held to the end: as long as it is, nobody takes what belongs to this host for stale.
    claim: Claim,
    guard: Guard,
}

/// A task that takes the children's way out away when the table that guards them is lost.
struct Guard {
    task: JoinHandle<()>,
    loss: Rc<OnceCell<SetupError>>,
}

impl Guard {
    fn start(watch: Watch, links: Links, block: Block) -> Self {
        let loss = Rc::new(OnceCell::new());
        let found = loss.clone();
        let task = tokio::task::spawn_local(async move {
            let error = watch.loss().await;
            log::error!("children have no way out any more: {error}");
            // From now on no child is connected; one that is just being connected looks again.
            found.set(error).expect("set here alone");
            let prefix = block.interfaces();
            let lower = links.lower(|link| link.name.starts_with(&prefix));
            if let Err(error) = lower.await {
                log::error!("{error}");
            }
        });
        Self { task, loss }
    }

    fn check(&self) -> Result<(), SetupError> {
        self.loss.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// It will act no more.
    fn end(&self) {
        self.task.abort();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.end();
    }
}

impl Egress {
    /// Prepares the machine for children that may connect out. Called before the first clone,
    /// since it runs a program.
    pub(super) async fn start(
        settings: &config::Egress,
        links: &Links,
    ) -> Result<Self, SetupError> {
        let ipv6 = settings.ipv6.filter(|_| has_ipv6());
        if ipv6 != settings.ipv6 {
            log::info!("children have no IPv6, since there is none here");
        }
        let _turn = Turn::take().await?;
        let claim = Claim::take(settings.ipv4, ipv6)?;
        remove_interfaces(links, &claim.block.interfaces()).await?;
        let firewall = Firewall::of(&claim.block)?;
        let records = firewall.records()?;
        let forwarding = Forwarding::look(ipv6.is_some(), all_changed(&records))?;
        let watch = Watch::subscribe(firewall.table())?;
        // Before anything is forwarded, and with what is about to be changed.
        firewall.install(&claim.block, &settings.allow, &forwarding.changed)?;
        let installed = watch.begin();
        let egress = Self {
            pairs: RefCell::new(Pairs::of(&claim.block)),
            guard: Guard::start(watch, links.clone(), claim.block.clone()),
            firewall,
            forwarding,
            claim,
        };
        let started = match installed {
            Ok(()) => egress.finish_start(&records, links).await,
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            egress.guard.end();
            if let Err(also) = egress.take_down(links).await {
                log::error!("{also}");
            }
            return Err(error);
        }
        Ok(egress)
    }

    async fn finish_start(&self, records: &[Record], links: &Links) -> Result<(), SetupError> {
        self.forwarding.enable()?;
        for record in records.iter().filter(|record| !record.is_living) {
            self.remove_stale(record, links).await?;
        }
        for chain in self.firewall.other_dropping_chains()? {
            log::warn!(
                "chain {chain:?} drops forwarded packets that it does not know; hint: if children \
                 reach nothing, accept there what comes from and goes to interfaces \"{}*\"",
                self.claim.block.interfaces()
            );
        }
        log::info!("children may connect out, from {}", self.claim.block.ipv4);
        Ok(())
    }

    /// Whether what guards children is still there.
    pub(super) fn check(&self) -> Result<(), SetupError> {
        self.guard.check()
    }

    /// Names and addresses for a child, and their place.
    pub(super) fn take(&self) -> Result<(usize, VethConfig), SetupError> {
        self.check()?;
        let pair = self.pairs.borrow_mut().take();
        pair.ok_or_else(|| {
            let range = self.claim.block.ipv4;
            check_failed(format!("every address of {range} is in use"))
        })
    }

    /// Takes back what a child had, once it was reaped.
    pub(super) fn give_back(&self, place: usize) {
        self.pairs.borrow_mut().give_back(place);
    }

    /// Takes everything away again: what children might still use before what guards it.
    ///
    /// # Errors
    /// With the step that failed. What guards children stays then.
    pub(super) async fn stop(&self, links: &Links) -> Result<(), SetupError> {
        remove_interfaces(links, &self.claim.block.interfaces()).await?;
        // From here on the table is removed by this host itself.
        self.guard.end();
        let _turn = Turn::take().await?;
        self.take_down(links).await
    }

    /// Turns off what no other host needs, and removes the rules. The last host to end does so for
    /// those that were killed, too.
    async fn take_down(&self, links: &Links) -> Result<(), SetupError> {
        let (living, ended): (Vec<_>, Vec<_>) = self
            .firewall
            .records()?
            .into_iter()
            .partition(|record| record.is_living);
        let mut by_ended = all_changed(&ended);
        // Its record may be lost with its table.
        by_ended.add(&self.forwarding.changed);
        forwarding::restore(&by_ended, &all_changed(&living));
        for record in &ended {
            self.remove_stale(record, links).await?;
        }
        self.firewall.remove()
    }

    /// Removes what a killed host left. A job that outlived it may still use its interfaces, so these
    /// go before what guards them.
    async fn remove_stale(&self, record: &Record, links: &Links) -> Result<(), SetupError> {
        if record.block == self.claim.block.number() {
            return Ok(()); // replaced by our own
        }
        remove_interfaces(links, &addresses::interfaces_of(record.block)).await?;
        self.firewall.remove_stale(record)
    }
}

fn all_changed(records: &[Record]) -> Changed {
    let mut all = Changed::default();
    for record in records {
        all.add(&record.changed);
    }
    all
}

async fn remove_interfaces(links: &Links, prefix: &str) -> Result<(), SetupError> {
    links
        .see_off(PATIENCE, |link| Ok(link.name.starts_with(prefix)))
        .await
}
