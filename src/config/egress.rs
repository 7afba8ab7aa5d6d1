//! `network = { egress = { … } }`: where children may connect to.
//!
//! Runs on: any process.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{bail, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::destinations;

/// The C library reads no more (`resolv.conf(5)`, MAXNS).
const MOST_NAMESERVERS: usize = 3;

/// `egress` of a profile's `network`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Egress {
    /// The only destinations, if there are any; else all that are public.
    #[serde(
        deserialize_with = "some_destinations",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub allow: Vec<Destination>,
    /// Written into the children's `/etc/resolv.conf`.
    pub nameservers: Vec<IpAddr>,
    /// The children's `/etc/resolv.conf`.
    pub resolv_conf: Option<PathBuf>,
    /// From which each child gets a /30.
    pub ipv4: Ipv4Net,
    /// From which each child gets a /126.
    #[serde(with = "net_or_none")]
    pub ipv6: Option<Ipv6Net>,
}

/// An empty list would mean the opposite of what it says.
fn some_destinations<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Destination>, D::Error> {
    let allow = Vec::deserialize(d)?;
    match allow.is_empty() {
        false => Ok(allow),
        true => Err(serde::de::Error::custom(
            "allow: expected at least one destination; hint: leave it out for all public addresses, and network = \"none\" \
             for none at all",
        )),
    }
}

impl Default for Egress {
    fn default() -> Self {
        const PYSPA: Ipv6Addr = Ipv6Addr::new(0xfd70, 0x7973, 0x7061, 0, 0, 0, 0, 0);
        Self {
            allow: Vec::new(),
            nameservers: Vec::new(),
            resolv_conf: None,
            ipv4: Ipv4Net::new_assert(Ipv4Addr::new(10, 213, 0, 0), 16),
            ipv6: Some(Ipv6Net::new_assert(PYSPA, 48)),
        }
    }
}

impl Egress {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        self.check_ranges()?;
        self.check_resolver()
    }

    fn check_ranges(&self) -> anyhow::Result<()> {
        ensure!(
            self.ipv4 == self.ipv4.trunc()
                && (8..=28).contains(&self.ipv4.prefix_len())
                && destinations::is_private(self.ipv4.into()),
            "network: ipv4: expected a private network from /8 to /28 such as \
             \"10.213.0.0/16\", not {}",
            self.ipv4
        );
        let Some(range) = self.ipv6 else {
            return Ok(());
        };
        // An address of a child is one of the IPv4 network, in the lower 32 bits.
        ensure!(
            range == range.trunc()
                && range.prefix_len() <= 96
                && destinations::is_private(range.into()),
            "network: ipv6: expected \"none\" or a private network of at most /96 such as \
             \"fd70:7973:7061::/48\", not {range}"
        );
        Ok(())
    }

    fn check_resolver(&self) -> anyhow::Result<()> {
        if let Some(path) = &self.resolv_conf {
            super::profile::check_path("network: resolv_conf", path)?;
            ensure!(
                path.is_file(),
                "network: resolv_conf: {} is not a file",
                path.display()
            );
            ensure!(
                self.nameservers.is_empty(),
                "network: choose either resolv_conf or nameservers"
            );
        }
        ensure!(
            self.nameservers.len() <= MOST_NAMESERVERS,
            "network: nameservers: expected at most {MOST_NAMESERVERS}"
        );
        for address in &self.nameservers {
            const DNS: u16 = 53;
            ensure!(
                destinations::permits(&self.allow, *address, DNS),
                "network: nameservers: children cannot reach {address}: it is private, or not \
                 among those in allow; add it there"
            );
        }
        Ok(())
    }

    /// What children find in `/etc/resolv.conf`, if not the host's own.
    ///
    /// # Errors
    /// If the file that the profile names cannot be read.
    pub(crate) fn resolver(&self) -> std::io::Result<Option<Vec<u8>>> {
        if let Some(path) = &self.resolv_conf {
            return std::fs::read(path).map(Some);
        }
        let lines = self
            .nameservers
            .iter()
            .map(|address| format!("nameserver {address}\n"));
        Ok((!self.nameservers.is_empty()).then(|| lines.collect::<String>().into_bytes()))
    }
}

/// An address or a network, and with a port only that of TCP and UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    pub network: IpNet,
    pub port: Option<u16>,
}

impl std::str::FromStr for Destination {
    type Err = anyhow::Error;

    /// `192.0.2.7`, `192.0.2.0/24:443`, `2001:db8::/32`, `[2001:db8::7]:443`.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (network, port) = match text.strip_prefix('[') {
            Some(rest) => match rest.split_once(']') {
                Some((network, "")) => (network, None),
                Some((network, port)) => match port.strip_prefix(':') {
                    Some(port) => (network, Some(port)),
                    None => bail!(expected(text)),
                },
                None => bail!(expected(text)),
            },
            None => match text.split_once(':') {
                Some((network, port)) if !port.contains(':') => (network, Some(port)),
                _ => (text, None),
            },
        };
        let network = match network.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => network
                .parse::<IpNet>()
                .map_err(|_| anyhow::anyhow!(expected(text)))?,
        };
        ensure!(
            network == network.trunc(),
            "{text:?} is not a network: did you mean {}?",
            network.trunc()
        );
        let port = port.map(str::parse::<u16>).transpose();
        let port = port.map_err(|_| anyhow::anyhow!(expected(text)))?;
        ensure!(port != Some(0), "{text:?}: there is no port 0");
        Ok(Self { network, port })
    }
}

fn expected(text: &str) -> String {
    format!(
        "{text:?} is no destination: expected an address or a network, and with :PORT one port, \
         such as \"192.0.2.7:443\", \"2001:db8::/32\" or \"[2001:db8::7]:443\""
    )
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.network, self.port) {
            (network, None) => write!(f, "{network}"),
            (IpNet::V4(network), Some(port)) => write!(f, "{network}:{port}"),
            (IpNet::V6(network), Some(port)) => write!(f, "[{network}]:{port}"),
        }
    }
}

impl Serialize for Destination {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Destination {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A network, or `"none"`.
mod net_or_none {
    use super::{Deserialize, Deserializer, Ipv6Net, Serializer};

    const NONE: &str = "none";

    pub(super) fn serialize<S: Serializer>(net: &Option<Ipv6Net>, s: S) -> Result<S::Ok, S::Error> {
        match net {
            Some(net) => s.collect_str(net),
            None => s.serialize_str(NONE),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<Ipv6Net>, D::Error> {
        let text = String::deserialize(d)?;
        if text == NONE {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| {
            serde::de::Error::custom(format!(
                "{text:?}: expected \"none\" or an IPv6 network such as \"fd70:7973:7061::/48\""
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Destination, String> {
        text.parse::<Destination>().map_err(|e| e.to_string())
    }

    #[test]
    fn destinations_are_read_and_written() {
        for (text, written) in [
            ("192.0.2.7", "192.0.2.7/32"),
            ("192.0.2.7:443", "192.0.2.7/32:443"),
            ("192.0.2.0/24:443", "192.0.2.0/24:443"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("[2001:db8::7]:443", "[2001:db8::7/128]:443"),
            ("[2001:db8::/32]:53", "[2001:db8::/32]:53"),
            ("[2001:db8::7]", "2001:db8::7/128"),
        ] {
            let destination = parse(text).expect(text);
            assert_eq!(destination.to_string(), written);
            assert_eq!(parse(written).expect(written), destination);
        }
    }

    #[test]
    fn what_is_no_destination_is_told_why() {
        for (text, words) in [
            ("example.org", "no destination"),
            ("192.0.2.7:", "no destination"),
            ("192.0.2.7:https", "no destination"),
            ("192.0.2.7:70000", "no destination"),
            ("192.0.2.7:0", "no port 0"),
            ("192.0.2.7/24", "did you mean 192.0.2.0/24"),
            ("[2001:db8::7", "no destination"),
            ("[2001:db8::7]443", "no destination"),
            ("", "no destination"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_nameserver_must_be_within_reach() {
        let egress = |allow: &[&str], nameserver: &str| Egress {
            allow: allow.iter().map(|text| parse(text).expect(text)).collect(),
            nameservers: vec![nameserver.parse().expect("an address")],
            ..Egress::default()
        };
        assert!(egress(&[], "192.0.2.53").check().is_ok());
        assert!(egress(&[], "10.0.0.2").check().is_err());
        assert!(egress(&[], "127.0.0.53").check().is_err());
        assert!(egress(&["10.0.0.2:53"], "10.0.0.2").check().is_ok());
        assert!(egress(&["10.0.0.2:443"], "10.0.0.2").check().is_err());
        assert!(egress(&["0.0.0.0/0"], "10.0.0.2").check().is_err());
    }
}
