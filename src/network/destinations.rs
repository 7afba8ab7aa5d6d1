//! Which addresses are private, and what a profile's `allow` makes of that.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::Destination;

/// What is not public: the machine, its neighbours, and whatever only means something to them.
/// After IANA's special-purpose registries (RFC 6890), but for the networks that documentation
/// uses, which nobody answers on.
pub const PRIVATE: &[(&str, &str)] = &[
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private (RFC 1918)"),
    ("100.64.0.0/10", "shared by carriers (RFC 6598)"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local; cloud metadata"),
    ("172.16.0.0/12", "private (RFC 1918)"),
    ("192.0.0.0/24", "protocol assignments (RFC 6890)"),
    ("192.88.99.0/24", "6to4 relays (RFC 7526)"),
    ("192.168.0.0/16", "private (RFC 1918)"),
    ("198.18.0.0/15", "benchmarks of networks (RFC 2544)"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved, and broadcast"),
    ("::/96", "unspecified, loopback, IPv4-compatible"),
    ("::ffff:0:0/96", "IPv4-mapped"),
    ("64:ff9b::/104", "NAT64 of 0.0.0.0/8"),
    ("64:ff9b::a00:0/104", "NAT64 of 10.0.0.0/8"),
    ("64:ff9b::6440:0/106", "NAT64 of 100.64.0.0/10"),
    ("64:ff9b::7f00:0/104", "NAT64 of 127.0.0.0/8"),
    ("64:ff9b::a9fe:0/112", "NAT64 of 169.254.0.0/16"),
    ("64:ff9b::ac10:0/108", "NAT64 of 172.16.0.0/12"),
    ("64:ff9b::c000:0/120", "NAT64 of 192.0.0.0/24"),
    ("64:ff9b::c058:6300/120", "NAT64 of 192.88.99.0/24"),
    ("64:ff9b::c0a8:0/112", "NAT64 of 192.168.0.0/16"),
    ("64:ff9b::c612:0/111", "NAT64 of 198.18.0.0/15"),
    ("64:ff9b::e000:0/99", "NAT64 of 224.0.0.0/3"),
    ("64:ff9b:1::/48", "local NAT64 (RFC 8215)"),
    ("100::/64", "discarded (RFC 6666)"),
    ("2001::/32", "Teredo, which tunnels to any IPv4 address"),
    ("2002::/16", "6to4, which tunnels to any IPv4 address"),
    ("5f00::/16", "segment routing (RFC 9602)"),
    ("fc00::/7", "unique local"),
    ("fe80::/9", "link-local, and the former site-local"),
    ("ff00::/8", "multicast"),
];

/// The networks of [`PRIVATE`].
pub fn private() -> impl Iterator<Item = IpNet> {
    PRIVATE
        .iter()
        .map(|(network, _)| network.parse().expect("a network"))
}

/// Whether all of a network is private. Only then does `allow` open it: `0.0.0.0/0:443` means
/// every public server, not the metadata service.
pub fn is_private(network: IpNet) -> bool {
    private().any(|private| private.contains(&network))
}

/// Whether children may connect to this address and port: what the firewall's rules say.
pub fn permits(allow: &[Destination], address: IpAddr, port: u16) -> bool {
    let is_private = is_private(address.into());
    let is_named = allow.iter().any(|entry| {
        entry.network.contains(&address)
            && entry.port.is_none_or(|only| only == port)
            && self::is_private(entry.network) == is_private
    });
    is_named || (allow.is_empty() && !is_private)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permitted(allow: &[&str], address: &str, port: u16) -> bool {
        let allow: Vec<Destination> = allow.iter().map(|e| e.parse().expect("valid")).collect();
        permits(&allow, address.parse().expect("an address"), port)
    }

    #[test]
    fn what_is_public_is_open_and_what_is_private_is_not() {
        for address in ["1.1.1.1", "192.0.2.10", "2001:db8::10", "2606:4700::1"] {
            assert!(permitted(&[], address, 443), "{address}");
        }
        for address in [
            "10.2.3.4",
            "169.254.169.254",
            "127.0.0.1",
            "172.31.0.1",
            "192.168.1.1",
            "100.100.0.1",
            "255.255.255.255",
            "239.1.1.1",
            "0.0.0.0",
            "::1",
            "::ffff:1.1.1.1",
            "64:ff9b::10.2.3.4",
            "64:ff9b::169.254.169.254",
            "64:ff9b::192.168.1.1",
            "64:ff9b::198.19.0.1",
            "64:ff9b::255.255.255.255",
            "2002:a02:304::1",
            "2001:0:1:2::3",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!permitted(&[], address, 443), "{address}");
        }
        assert!(permitted(&[], "64:ff9b::1.1.1.1", 443));
    }

    #[test]
    fn every_private_ipv4_network_is_closed_through_nat64_too() {
        for network in private() {
            if let IpNet::V4(network) = network {
                for address in [network.network(), network.broadcast()] {
                    assert!(
                        !permitted(&[], &format!("64:ff9b::{address}"), 443),
                        "{address}"
                    );
                }
            }
        }
    }

    #[test]
    fn allow_opens_private_networks_only_by_their_own_name() {
        assert!(permitted(&["10.2.3.4:80"], "10.2.3.4", 80));
        assert!(!permitted(&["10.2.3.4:80"], "10.2.3.4", 81));
        assert!(!permitted(&["10.2.3.4:80"], "192.0.2.10", 80));
        assert!(!permitted(&["0.0.0.0/0"], "10.2.3.4", 80));
        assert!(permitted(&["0.0.0.0/0"], "192.0.2.10", 80));
        assert!(!permitted(&["8.0.0.0/6"], "10.2.3.4", 80));
    }
}
