//! Whether the machine passes packets on (`ip-sysctl`), which it must for children to reach
//! anything but itself.
//!
//! Runs on: the I/O thread.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::{error, io_error};
use crate::layer::SetupError;

const IPV6_INTERFACES: &str = "/proc/sys/net/ipv6/conf";

/// What hosts have turned on. Kept with each host's firewall, so that whoever ends last, or comes
/// after a host that was killed, knows what to turn off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// Address families, as nftables calls them, that were not forwarded before.
    pub families: BTreeSet<String>,
    /// Interfaces whose `accept_ra` was 1 before and is 2 now.
    pub interfaces: BTreeSet<String>,
}

impl Changed {
    pub(super) fn add(&mut self, other: &Self) {
        self.families.extend(other.families.iter().cloned());
        self.interfaces.extend(other.interfaces.iter().cloned());
    }

    fn without(&self, other: &Self) -> Self {
        Self {
            families: &self.families - &other.families,
            interfaces: &self.interfaces - &other.interfaces,
        }
    }
}

/// The switches of this machine.
pub(super) struct Forwarding {
    missing: Changed,
    /// By this host or by others whose children may still need it.
    pub changed: Changed,
}

/// Whether this machine, or container, has IPv6 at all.
pub(super) fn has_ipv6() -> bool {
    let path = Path::new(IPV6_INTERFACES).join("all/disable_ipv6");
    fs::read_to_string(path).is_ok_and(|text| text.trim() == "0")
}

impl Forwarding {
    /// Looks at what is missing, besides what other hosts have changed already. Changes nothing.
    pub(super) fn look(with_ipv6: bool, by_others: Changed) -> Result<Self, SetupError> {
        let mut missing = Changed::default();
        for family in ["ipv4", "ipv6"].iter().take(1 + usize::from(with_ipv6)) {
            if !is_on(&switch(family))? {
                missing.families.insert((*family).to_owned());
            }
        }
        if missing.families.contains("ipv6") {
            missing.interfaces = that_follow_routers()?;
        }
        let mut changed = by_others;
        changed.add(&missing);
        Ok(Self { missing, changed })
    }

    /// Turns on what is missing.
    pub(super) fn enable(&self) -> Result<(), SetupError> {
        for interface in &self.missing.interfaces {
            set(&accept_ra(interface), "2")?;
        }
        for family in &self.missing.families {
            log::info!(
                "{family} forwarding is turned on while hosts run, for their children alone"
            );
            set(&switch(family), "1")?;
        }
        Ok(())
    }
}

/// Turns off what hosts that have ended turned on, but for what those that live need.
pub(super) fn restore(by_ended: &Changed, by_living: &Changed) {
    let changed = by_ended.without(by_living);
    let families = changed
        .families
        .iter()
        .map(|family| (switch(family), "0"))
        .rev();
    let interfaces = changed.interfaces.iter().map(|name| (accept_ra(name), "1"));
    for (path, value) in families.chain(interfaces) {
        match set(&path, value) {
            // An interface may be gone.
            Err(error) if path.exists() => log::error!("{error}"),
            _ => {}
        }
    }
}

/// A machine that forwards IPv6 forgets the default route that its router told it, and takes no
/// new one, unless `accept_ra` is 2. The interfaces where it is 1.
fn that_follow_routers() -> Result<BTreeSet<String>, SetupError> {
    let step = || format!("read {IPV6_INTERFACES}");
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(IPV6_INTERFACES).map_err(|e| io_error(step(), &e))? {
        let name = entry.map_err(|e| io_error(step(), &e))?.file_name();
        if let Ok(name) = name.into_string()
            && !["all", "default", "lo"].contains(&name.as_str())
            && is_on(&accept_ra(&name))?
        {
            found.insert(name);
        }
    }
    Ok(found)
}

fn switch(family: &str) -> PathBuf {
    match family {
        "ipv4" => "/proc/sys/net/ipv4/ip_forward".into(),
        _ => Path::new(IPV6_INTERFACES).join("all/forwarding"),
    }
}

fn accept_ra(interface: &str) -> PathBuf {
    Path::new(IPV6_INTERFACES).join(interface).join("accept_ra")
}

fn set(path: &Path, value: &str) -> Result<(), SetupError> {
    fs::write(path, value).map_err(|e| io_error(format!("write {value} to {}", path.display()), &e))
}

/// Whether a switch has the value 1.
fn is_on(path: &Path) -> Result<bool, SetupError> {
    let step = || format!("read {}", path.display());
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim() == "1"),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Err(error(step(), Errno::EAFNOSUPPORT)),
        Err(e) => Err(io_error(step(), &e)),
    }
}
