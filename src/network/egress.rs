//! The way out: for each child a pair of its own, and for all of them one firewall.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::addresses::{Claim, Pairs};
use super::error;
use super::firewall::Firewall;
use super::forwarding::{Forwarding, has_ipv6};
use super::links::Links;
use super::veth::VethConfig;
use crate::config;
use crate::sandbox::SetupError;

/// A host's part of the machine's network.
pub struct Egress {
    pairs: RefCell<Pairs>,
    firewall: Firewall,
    forwarding: RefCell<Forwarding>,
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
        let claim = Claim::take(settings.ipv4, ipv6)?;
        remove_interfaces(links, &claim).await?;
        let forwarding = Forwarding::look(ipv6.is_some())?;
        // Before anything is forwarded.
        let firewall = Firewall::install(&claim.block, &settings.allow, &forwarding)?;
        let egress = Self {
            pairs: RefCell::new(Pairs::of(&claim.block)),
            firewall,
            forwarding: RefCell::new(forwarding),
            claim,
        };
        if let Err(error) = egress.finish_start() {
            egress.stop(links).await;
            return Err(error);
        }
        Ok(egress)
    }

    fn finish_start(&self) -> Result<(), SetupError> {
        self.forwarding.borrow_mut().enable()?;
        self.firewall.remove_stale()?;
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
    pub async fn stop(&self, links: &Links) {
        if let Err(error) = remove_interfaces(links, &self.claim).await {
            log::error!("{error}; the firewall stays");
            return;
        }
        self.forwarding.borrow_mut().restore();
        if let Err(error) = self.firewall.remove() {
            log::error!("{error}");
        }
    }
}

/// Waits until the kernel has deleted the interfaces of children that ended, and deletes those that
/// are left: each takes some 30 ms.
async fn remove_interfaces(links: &Links, claim: &Claim) -> Result<(), SetupError> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let end = Instant::now() + PATIENCE;
    loop {
        let left = links.all_named(&claim.block.interfaces()).await?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            for link in left {
                links.delete(link).await?;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
