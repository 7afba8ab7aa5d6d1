//! Whether the machine passes packets on (`ip-sysctl`), which it must for children to reach
//! anything but itself.

use std::fs;
use std::path::{Path, PathBuf};

use super::{error, io_error};
use crate::sandbox::SetupError;

const IPV4: &str = "/proc/sys/net/ipv4/ip_forward";
const IPV6_INTERFACES: &str = "/proc/sys/net/ipv6/conf";
const IPV6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

/// What has to be turned on, and is turned off again at the end.
pub struct Forwarding {
    ipv4: bool,
    ipv6: bool,
    /// Files with what was in them, in the order in which they were changed.
    changed: Vec<(PathBuf, &'static str)>,
}

/// Whether this machine, or container, has IPv6 at all.
pub fn has_ipv6() -> bool {
    let path = Path::new(IPV6_INTERFACES).join("all/disable_ipv6");
    fs::read_to_string(path).is_ok_and(|text| text.trim() == "0")
}

impl Forwarding {
    /// Looks at what is missing. Changes nothing yet.
    pub fn look(with_ipv6: bool) -> Result<Self, SetupError> {
        Ok(Self {
            ipv4: !is_on(Path::new(IPV4))?,
            ipv6: with_ipv6 && !is_on(Path::new(IPV6))?,
            changed: Vec::new(),
        })
    }

    /// The address families that are off until now, as nftables calls them.
    pub fn turned_on(&self) -> impl Iterator<Item = &'static str> {
        let ipv4 = self.ipv4.then_some("ipv4");
        ipv4.into_iter().chain(self.ipv6.then_some("ipv6"))
    }

    /// Turns on what is missing.
    pub fn enable(&mut self) -> Result<(), SetupError> {
        for family in self.turned_on() {
            log::info!(
                "{family} forwarding is turned on while this host runs, for its children alone"
            );
        }
        if self.ipv4 {
            self.change(IPV4.into(), "0", "1")?;
        }
        if self.ipv6 {
            self.keep_router_advertisements()?;
            self.change(IPV6.into(), "0", "1")?;
        }
        Ok(())
    }

    /// A machine that forwards IPv6 forgets the default route that its router told it, and takes
    /// no new one, unless `accept_ra` is 2.
    fn keep_router_advertisements(&mut self) -> Result<(), SetupError> {
        let folder = Path::new(IPV6_INTERFACES);
        let entries =
            fs::read_dir(folder).map_err(|e| io_error(format!("read {}", folder.display()), &e))?;
        for entry in entries {
            let entry = entry.map_err(|e| io_error(format!("read {}", folder.display()), &e))?;
            let file = entry.path().join("accept_ra");
            if ["all", "default", "lo"]
                .iter()
                .all(|name| entry.file_name() != *name)
                && is_on(&file)?
            {
                self.change(file, "1", "2")?;
            }
        }
        Ok(())
    }

    /// Puts back what was there, last change first.
    pub fn restore(&mut self) {
        while let Some((path, value)) = self.changed.pop() {
            match fs::write(&path, value) {
                // An interface may be gone.
                Err(error) if path.exists() => {
                    log::error!("write {value:?} to {}: {error}", path.display());
                }
                _ => {}
            }
        }
    }

    fn change(&mut self, path: PathBuf, old: &'static str, new: &str) -> Result<(), SetupError> {
        fs::write(&path, new)
            .map_err(|e| io_error(format!("write {new:?} to {}", path.display()), &e))?;
        self.changed.push((path, old));
        Ok(())
    }
}

/// Whether a switch has the value 1.
fn is_on(path: &Path) -> Result<bool, SetupError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim() == "1"),
        Err(e) => Err(match e.raw_os_error() {
            Some(libc::ENOENT) => error(
                format!("read {}", path.display()),
                nix::errno::Errno::EAFNOSUPPORT,
            ),
            _ => io_error(format!("read {}", path.display()), &e),
        }),
    }
}
