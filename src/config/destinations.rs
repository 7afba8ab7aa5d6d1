//! Which addresses are private, and what a profile's `allow` makes of that.
//!
//! Runs on: any process.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Destination;

/// What is not public: the machine, its neighbours, and whatever only means something to them.
/// After IANA's special-purpose registries (RFC 6890), but for the networks that documentation
/// uses, which nobody answers on.
const PRIVATE_IPV4: &[(&str, &str)] = &[
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private (RFC 1918)"),
    ("100.64.0.0/10", "shared by carriers (RFC 6598)"),
    ("127.0.0.0/8", "loopback"),
    (
        "168.63.129.16/32",
        "Azure's metadata, given to the machine alone",
    ),
    ("169.254.0.0/16", "link-local; cloud metadata"),
    ("172.16.0.0/12", "private (RFC 1918)"),
    ("192.0.0.0/24", "protocol assignments (RFC 6890)"),
    ("192.88.99.0/24", "6to4 relays (RFC 7526)"),
    ("192.168.0.0/16", "private (RFC 1918)"),
    ("198.18.0.0/15", "benchmarks of networks (RFC 2544)"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved, and broadcast"),
];

/// All of IPv6 that is assigned to the public (RFC 4291).
const PUBLIC_IPV6: &str = "2000::/3";
/// And what is not public in it.
const PRIVATE_IPV6: &[(&str, &str)] = &[
    (
        "2001::/23",
        "protocol assignments (RFC 2928): Teredo, which tunnels to any IPv4 address, benchmarks, \
         ORCHID, the nearest router by anycast",
    ),
    ("2002::/16", "6to4, which tunnels to any IPv4 address"),
];
/// Also public, but for the private networks of IPv4 in it (RFC 6052).
const NAT64: &str = "64:ff9b::/96";

/// The networks that are private.
pub(crate) fn private() -> impl Iterator<Item = IpNet> {
    let ipv4 = || {
        PRIVATE_IPV4
            .iter()
            .map(|(network, _)| net::<Ipv4Net>(network))
    };
    let nat64 = net::<Ipv6Net>(NAT64);
    let through_nat64 = ipv4().map(move |network| {
        let address = u128::from(nat64.network()) | u128::from(u32::from(network.network()));
        Ipv6Net::new_assert(address.into(), nat64.prefix_len() + network.prefix_len())
    });
    let public = net::<Ipv6Net>(PUBLIC_IPV6);
    let ipv6 = around(Ipv6Net::default(), public)
        .flat_map(move |outside| {
            let has_nat64 = outside.contains(&nat64);
            let whole = (!has_nat64).then_some(outside);
            let parts = has_nat64.then(|| around(outside, nat64));
            whole.into_iter().chain(parts.into_iter().flatten())
        })
        .chain(PRIVATE_IPV6.iter().map(|(network, _)| net(network)))
        .chain(through_nat64);
    ipv4().map(IpNet::from).chain(ipv6.map(IpNet::from))
}

/// What of `outer` is not in `inner`: on the way in, the half that is left out each time.
fn around(outer: Ipv6Net, inner: Ipv6Net) -> impl Iterator<Item = Ipv6Net> {
    (outer.prefix_len() + 1..=inner.prefix_len()).map(move |length| {
        let bit = 1 << (128 - u32::from(length));
        let address = u128::from(inner.network()) ^ bit;
        Ipv6Net::new_assert(address.into(), length).trunc()
    })
}

fn net<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a network")
}

/// Whether all of a network is private. Only then does `allow` open it: `0.0.0.0/0:443` means
/// every public server, not the metadata service.
pub(crate) fn is_private(network: IpNet) -> bool {
    private().any(|private| private.contains(&network))
}

/// Whether children may connect to this address and port: what the firewall's rules say.
pub(crate) fn permits(allow: &[Destination], address: IpAddr, port: u16) -> bool {
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
        for address in [
            "1.1.1.1",
            "168.63.129.15",
            "192.0.2.10",
            "2001:200::1",
            "2001:db8::10",
            "2606:4700::1",
            "3fff:ffff::1",
            "64:ff9b::1.1.1.1",
        ] {
            assert!(permitted(&[], address, 443), "{address}");
        }
        for address in [
            "10.2.3.4",
            "168.63.129.16",
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
            "::ffff:0:10.2.3.4",
            "64:ff9a:ffff::1",
            "64:ff9b::1:0:0",
            "64:ff9b:1::1.1.1.1",
            "64:ff9b::168.63.129.16",
            "100::1",
            "200::1",
            "3ff:ffff::1",
            "1fff:ffff::1",
            "4000::1",
            "5f00::1",
            "2001:1::1",
            "2001:2::1",
            "2001:10::1",
            "2001:2f::1",
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
    fn what_is_around_a_network_is_everything_else() {
        let (outer, inner) = (net("::/3"), net(NAT64));
        let around: Vec<Ipv6Net> = around(outer, inner).collect();
        let sum = |networks: &[Ipv6Net]| -> u128 {
            let sizes = networks.iter().map(|one| 1 << (128 - one.prefix_len()));
            sizes.sum()
        };
        assert_eq!(sum(&around), sum(&[outer]) - sum(&[inner]));
        assert!(
            around
                .iter()
                .all(|one| outer.contains(one) && !one.contains(&inner))
        );
    }

    #[test]
    fn allow_opens_private_networks_only_by_their_own_name() {
        assert!(permitted(&["10.2.3.4:80"], "10.2.3.4", 80));
        assert!(!permitted(&["10.2.3.4:80"], "10.2.3.4", 81));
        assert!(!permitted(&["10.2.3.4:80"], "192.0.2.10", 80));
        assert!(!permitted(&["0.0.0.0/0"], "10.2.3.4", 80));
        assert!(permitted(&["0.0.0.0/0"], "192.0.2.10", 80));
        assert!(!permitted(&["8.0.0.0/6"], "10.2.3.4", 80));
        assert!(permitted(&["168.63.129.16:53"], "168.63.129.16", 53));
        assert!(!permitted(&["64:ff9b::/96"], "64:ff9b::10.2.3.4", 80));
        assert!(permitted(&["64:ff9b::/96"], "64:ff9b::1.1.1.1", 80));
    }
}
