//! The way out: for each child a pair of its own, and for all of them one firewall.

use std::cell::RefCell;

use nix::errno::Errno;

use super::PATIENCE;
use super::addresses::{Claim, Pairs, Turn};
use super::error;
use super::firewall::{Firewall, Record};
use super::forwarding::{self, Changed, Forwarding, has_ipv6};
use super::links::Links;
use super::veth::VethConfig;
use crate::config;
use crate::sandbox::SetupError;

/// A host's part of the machine's network.
pub struct Egress {
    pairs: RefCell<Pairs>,
    firewall: Firewall,
    forwarding: Forwarding,
    /// Held to the end: as long as it is, nobody takes what belongs to this host for stale.
    claim: Claim,
}

impl Egress {
    /// Prepares the machine for children that may connect out. Called before the first clone,
    /// since it runs a program.
    pub async fn start(settings: &config::Egress, links: &Links) -> Result<Self, SetupError> {
        let ipv6 = settings.ipv6.filter(|_| has_ipv6());
        if ipv6 != settings.ipv6 {
            log::info!("children have no IPv6, since there is none here");
        }
        let _turn = Turn::take().await?;
        let claim = Claim::take(settings.ipv4, ipv6)?;
        remove_interfaces(links, &claim).await?;
        let firewall = Firewall::of(&claim.block)?;
        let records = firewall.records()?;
        let forwarding = Forwarding::look(ipv6.is_some(), all_changed(&records))?;
        // Before anything is forwarded, and with what is about to be changed.
        firewall.install(&claim.block, &settings.allow, &forwarding.changed)?;
        let egress = Self {
            pairs: RefCell::new(Pairs::of(&claim.block)),
            firewall,
            forwarding,
            claim,
        };
        if let Err(error) = egress.finish_start(&records) {
            if let Err(also) = egress.take_down() {
                log::error!("{also}");
            }
            return Err(error);
        }
        Ok(egress)
    }

    fn finish_start(&self, records: &[Record]) -> Result<(), SetupError> {
        self.forwarding.enable()?;
        for record in records.iter().filter(|record| !record.is_living) {
            self.firewall.remove_stale(record)?;
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

    /// Names and addresses for a child, and their place.
    pub fn take(&self) -> Result<(usize, VethConfig), SetupError> {
        let pair = self.pairs.borrow_mut().take();
        pair.ok_or_else(|| {
            let range = self.claim.block.ipv4;
            error(
                format!("every address of {range} is in use"),
                Errno::EADDRNOTAVAIL,
            )
        })
    }

    /// Takes back what a child had, once it was reaped.
    pub fn give_back(&self, place: usize) {
        self.pairs.borrow_mut().give_back(place);
    }

    /// Takes everything away again: what children might still use before what guards it.
    ///
    /// # Errors
    /// With the step that failed. What guards children stays then.
    pub async fn stop(&self, links: &Links) -> Result<(), SetupError> {
        remove_interfaces(links, &self.claim).await?;
        let _turn = Turn::take().await?;
        self.take_down()
    }

    /// Turns off what no other host needs, and removes the rules. The last host to end does so for
    /// those that were killed, too.
    fn take_down(&self) -> Result<(), SetupError> {
        let (living, ended): (Vec<_>, Vec<_>) = self
            .firewall
            .records()?
            .into_iter()
            .partition(|record| record.is_living);
        forwarding::restore(&all_changed(&ended), &all_changed(&living));
        for record in &ended {
            self.firewall.remove_stale(record)?;
        }
        self.firewall.remove()
    }
}

fn all_changed(records: &[Record]) -> Changed {
    let mut all = Changed::default();
    for record in records {
        all.add(&record.changed);
    }
    all
}

async fn remove_interfaces(links: &Links, claim: &Claim) -> Result<(), SetupError> {
    let prefix = claim.block.interfaces();
    links
        .see_off(PATIENCE, |link| Ok(link.name.starts_with(&prefix)))
        .await
}
