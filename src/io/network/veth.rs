//! A pair of interfaces between the machine and one child.
//!
//! Runs on: the I/O thread.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{bail, ensure};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use nix::errno::Errno;

use super::links::{LOOPBACK, Links};
use super::{check_failed, io_error};
use crate::layer::SetupError;
use crate::sys::files::FileId;

/// How long the kernel may take to delete a pair: some 30 ms as a rule.
const PATIENCE: Duration = Duration::from_millis(200);

/// Names and addresses of a pair. The defaults are those of pyspawner 1.0.0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct VethConfig {
    /// The machine's end: at most 15 bytes, and of this child alone while it lives.
    pub kernel_veth_name: String,
    /// The child's end, as it is called in the child.
    pub child_veth_name: String,
    pub kernel_ipv4: Ipv4Addr,
    pub child_ipv4: Ipv4Addr,
    pub ipv4_prefix: u8,
    /// Both, or neither.
    pub kernel_ipv6: Option<Ipv6Addr>,
    pub child_ipv6: Option<Ipv6Addr>,
    pub ipv6_prefix: u8,
}

impl Default for VethConfig {
    fn default() -> Self {
        Self {
            kernel_veth_name: "veth-pyspawn".to_owned(),
            child_veth_name: "veth-pyspawn-c".to_owned(),
            kernel_ipv4: Ipv4Addr::new(192, 168, 123, 1),
            child_ipv4: Ipv4Addr::new(192, 168, 123, 2),
            ipv4_prefix: 24,
            kernel_ipv6: None,
            child_ipv6: None,
            ipv6_prefix: 64,
        }
    }
}

/// The derived decoder would take a list, too, of the values in their order.
pub(super) fn from_object<'de, D: Deserializer<'de>>(d: D) -> Result<VethConfig, D::Error> {
    struct Object;
    impl<'de> Visitor<'de> for Object {
        type Value = VethConfig;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<VethConfig, A::Error> {
            VethConfig::deserialize(MapAccessDeserializer::new(map))
        }
    }
    d.deserialize_map(Object)
}

/// An address for each end, and the network's prefix length.
struct Addresses {
    kernel: IpAddr,
    child: IpAddr,
    prefix: u8,
}

impl VethConfig {
    /// Checks names and addresses, as far as that goes without the kernel.
    ///
    /// # Errors
    /// With what is wrong, in words.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        check_name("kernel_veth_name", &self.kernel_veth_name)?;
        check_name("child_veth_name", &self.child_veth_name)?;
        ensure!(
            self.child_veth_name != "lo",
            "child_veth_name: a child has an interface \"lo\" already"
        );
        ensure!(
            self.kernel_ipv6.is_some() == self.child_ipv6.is_some(),
            "expected both kernel_ipv6 and child_ipv6, or neither"
        );
        for Addresses {
            kernel,
            child,
            prefix,
        } in self.addresses()
        {
            let in_one_network = match (kernel, child) {
                (IpAddr::V4(kernel), IpAddr::V4(child)) => {
                    Ipv4Net::new(kernel, prefix)?.contains(&child)
                }
                (IpAddr::V6(kernel), IpAddr::V6(child)) => {
                    Ipv6Net::new(kernel, prefix)?.contains(&child)
                }
                _ => false,
            };
            ensure!(
                in_one_network && kernel != child,
                "expected two addresses of one network, not {kernel} and {child} with /{prefix}"
            );
        }
        Ok(())
    }

    fn addresses(&self) -> impl Iterator<Item = Addresses> {
        let ipv4 = Addresses {
            kernel: self.kernel_ipv4.into(),
            child: self.child_ipv4.into(),
            prefix: self.ipv4_prefix,
        };
        let ipv6 = self.kernel_ipv6.zip(self.child_ipv6);
        let ipv6 = ipv6.map(|(kernel, child)| Addresses {
            kernel: kernel.into(),
            child: child.into(),
            prefix: self.ipv6_prefix,
        });
        std::iter::once(ipv4).chain(ipv6)
    }
}

/// What the kernel takes as a name (`dev_valid_name`), without `%`, which it would fill in.
fn check_name(key: &str, name: &str) -> anyhow::Result<()> {
    let is_plain = |c: char| c.is_ascii_graphic() && !"/:%".contains(c);
    if name.is_empty()
        || name.len() >= libc::IFNAMSIZ
        || matches!(name, "." | "..")
        || !name.chars().all(is_plain)
    {
        bail!("{key}: {name:?} is not an interface's name of at most 15 bytes");
    }
    Ok(())
}

/// Connects a child that waits for the host's word: creates the pair, and gives both ends their
/// addresses and the child its routes. Nobody else may use the name meanwhile.
///
/// An interface of the same name that an earlier child left is deleted.
///
/// # Errors
/// With the step that failed. Nothing is left then.
pub(super) async fn connect(
    links: &Links,
    pid: libc::pid_t,
    config: &VethConfig,
) -> Result<(), SetupError> {
    let (namespace, own) = open_namespaces(pid)?;
    remove_stale(links, &config.kernel_veth_name).await?;
    let (here, there) = (&config.kernel_veth_name, &config.child_veth_name);
    links.create_pair(here, there, namespace.as_fd()).await?;
    let configured = async {
        set_up_machine_end(links, config).await?;
        let inside = Links::open_in(&namespace, &own)?;
        set_up_child_end(&inside, config).await?;
        inside.wait_until_up(there).await?;
        links.wait_until_up(here).await?;
        for Addresses { kernel, child, .. } in config.addresses() {
            inside.wait_until_own(child).await?;
            links.wait_until_own(kernel).await?;
        }
        Ok(())
    };
    if let Err(error) = configured.await {
        if let Err(also) = links.delete_named(here).await {
            log::error!("{also}");
        }
        return Err(error);
    }
    Ok(())
}

/// The child's network namespace, and this thread's.
fn open_namespaces(pid: libc::pid_t) -> Result<(File, File), SetupError> {
    let open = |path: String| {
        let file = File::open(&path).map_err(|e| io_error(format!("open {path}"), &e))?;
        let stat = file
            .metadata()
            .map_err(|e| io_error(format!("stat {path}"), &e))?;
        Ok((file, FileId::from(&stat)))
    };
    let (child, child_id) = open(format!("/proc/{pid}/ns/net"))?;
    let (own, own_id) = open("/proc/thread-self/ns/net".to_owned())?;
    if child_id == own_id {
        // The layer network_namespace is skipped.
        return Err(check_failed(
            "the child has no network namespace of its own",
        ));
    }
    Ok((child, own))
}

/// Waits until the kernel has deleted the pair of a child that ended, which it does with the child's
/// network namespace. One that is kept, by a connection that the child did not close perhaps, is
/// deleted when its name is asked for again, or at the host's end.
pub(super) async fn disconnect(links: &Links, name: &str) {
    match links
        .wait_for_end(PATIENCE, |link| Ok(link.name == name))
        .await
    {
        Ok(left) if left.is_empty() => {}
        Ok(_) => log::debug!("interface {name} is still there"),
        Err(error) => log::error!("{error}"),
    }
}

/// Makes a name free that no living child has.
async fn remove_stale(links: &Links, name: &str) -> Result<(), SetupError> {
    match links.find(name).await? {
        None => Ok(()),
        Some(link) if link.is_our_veth() => {
            links
                .see_off(PATIENCE, |other| Ok(other.index == link.index))
                .await
        }
        // Pyspawner 1.0.0 gave its interfaces no hardware address to know them by, but nobody else
        // has this name.
        Some(link) if link.is_veth && name == VethConfig::default().kernel_veth_name => {
            links.delete(link.index).await
        }
        Some(_) => Err(
            check_failed(format!("interface {name} is not pyspawner's")).known_as(Errno::EEXIST).hinting(
                "choose another kernel_veth_name, or delete that interface (ip link delete) if nothing needs it",
            ),
        ),
    }
}

async fn set_up_machine_end(links: &Links, config: &VethConfig) -> Result<(), SetupError> {
    let link = links.veth(&config.kernel_veth_name).await?;
    for Addresses { kernel, prefix, .. } in config.addresses() {
        links.add_address(link, kernel, prefix).await?;
    }
    links.raise(link).await
}

async fn set_up_child_end(inside: &Links, config: &VethConfig) -> Result<(), SetupError> {
    inside.raise(LOOPBACK).await?;
    let link = inside.veth(&config.child_veth_name).await?;
    for Addresses { child, prefix, .. } in config.addresses() {
        inside.add_address(link, child, prefix).await?;
    }
    inside.raise(link).await?;
    for Addresses { kernel, .. } in config.addresses() {
        inside.add_default_route(kernel).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_old_package() {
        let config = VethConfig::default();
        assert!(config.check().is_ok());
        assert_eq!(config.child_ipv4.to_string(), "192.168.123.2");
    }

    #[test]
    fn names_and_addresses_are_checked() {
        let named = |name: &str| VethConfig {
            kernel_veth_name: name.to_owned(),
            ..VethConfig::default()
        };
        for wrong in ["", "a-name-of-16-byt", "a/b", "a b", "veth%d", ".."] {
            assert!(named(wrong).check().is_err(), "{wrong:?}");
        }
        let elsewhere = VethConfig {
            child_ipv4: Ipv4Addr::new(192, 168, 124, 2),
            ..VethConfig::default()
        };
        assert!(elsewhere.check().is_err());
        let half = VethConfig {
            child_ipv6: Some(Ipv6Addr::LOCALHOST),
            ..VethConfig::default()
        };
        assert!(half.check().is_err());
    }
}
