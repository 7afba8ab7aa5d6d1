//! Names and addresses for the children of one host, which no other living host has.
//!
//! Runs on: the I/O thread.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use ipnet::{Ipv4Net, Ipv6Net};

use nix::errno::Errno;

use super::veth::VethConfig;
use super::{check_failed, io_error};
use crate::layer::SetupError;

/// A host's share of the range, as a prefix length: 1,024 pairs.
const BLOCK_PREFIX: u8 = 20;
/// What a pair takes of it: its network, both ends, and the broadcast address.
const PAIR: u32 = 4;
const PAIR_PREFIX: u8 = 30;
/// An IPv6 address is the range's with the IPv4 address in its lower half.
const IPV6_MORE: u8 = 96;

/// What all interfaces of all hosts begin with. With a block's number and a place it is at most 15
/// bytes, which is what a name may have.
pub(super) const ANY_INTERFACE: &str = "pysp-";

/// A part of the range. Its number is that of its addresses, so that hosts with other ranges
/// cannot come to have the same names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub ipv4: Ipv4Net,
    pub ipv6: Option<Ipv6Net>,
}

impl Block {
    fn new(ipv4: Ipv4Net, range: Option<Ipv6Net>) -> Self {
        let ipv6 = range.map(|range| {
            let network = embed(range, ipv4.network());
            Ipv6Net::new(network, IPV6_MORE + ipv4.prefix_len()).expect("at most 96 and 32")
        });
        Self { ipv4, ipv6 }
    }

    pub(super) fn number(&self) -> u32 {
        u32::from(self.ipv4.network()) >> (32 - BLOCK_PREFIX)
    }

    /// How the names of its interfaces begin.
    pub(super) fn interfaces(&self) -> String {
        interfaces_of(self.number())
    }

    fn pairs(&self) -> usize {
        1 << (PAIR_PREFIX - self.ipv4.prefix_len())
    }

    /// Names and addresses of one pair.
    fn pair(&self, place: usize) -> VethConfig {
        let network = u32::from(self.ipv4.network()) + place as u32 * PAIR;
        let (kernel, child) = (Ipv4Addr::from(network + 1), Ipv4Addr::from(network + 2));
        VethConfig {
            kernel_veth_name: format!("{}{place}", self.interfaces()),
            child_veth_name: "eth0".to_owned(),
            kernel_ipv4: kernel,
            child_ipv4: child,
            ipv4_prefix: PAIR_PREFIX,
            kernel_ipv6: self.ipv6.map(|range| embed(range, kernel)),
            child_ipv6: self.ipv6.map(|range| embed(range, child)),
            ipv6_prefix: IPV6_MORE + PAIR_PREFIX,
        }
    }
}

fn embed(range: Ipv6Net, address: Ipv4Addr) -> Ipv6Addr {
    // What of the address is in the range's network already is the same there.
    Ipv6Addr::from(u128::from(range.network()) | u128::from(u32::from(address)))
}

/// Proof that a host lives, and that a block is its own: an abstract socket's name
/// (`unix(7)`). It belongs to the network namespace, as the addresses do, and the kernel frees it
/// when the host ends, however it ends.
pub(super) struct Claim {
    pub block: Block,
    _lock: UnixDatagram,
}

impl Claim {
    /// Takes the first block of the range that no living host has.
    pub(super) fn take(ipv4: Ipv4Net, ipv6: Option<Ipv6Net>) -> Result<Self, SetupError> {
        let prefix = BLOCK_PREFIX.max(ipv4.prefix_len());
        let blocks = ipv4.subnets(prefix).expect("no shorter than the range");
        for network in blocks {
            let block = Block::new(network, ipv6);
            if let Some(lock) = lock(block.number())? {
                return Ok(Self { block, _lock: lock });
            }
        }
        Err(check_failed(format!(
            "every part of {ipv4} is another host's"
        )))
    }
}

/// Proof that the interface of a name is a living child's: a socket as [`Claim`]'s, held by its host.
pub(crate) struct NameClaim {
    interface: String,
    _lock: UnixDatagram,
}

impl NameClaim {
    /// # Errors
    /// If the name is another child's, of this host or another.
    pub(crate) async fn take(interface: &str) -> Result<Self, SetupError> {
        // A clone has a copy of each of its host's descriptors at first, for a moment.
        const PATIENCE: Duration = Duration::from_millis(250);
        match wait_to_bind(&Self::socket(interface), PATIENCE).await? {
            Some(lock) => Ok(Self {
                interface: interface.to_owned(),
                _lock: lock,
            }),
            None => {
                let step = format!("interface {interface} is another child's");
                Err(check_failed(step)
                    .known_as(Errno::EBUSY)
                    .hinting(NAMES_OF_THEIR_OWN))
            }
        }
    }

    /// Whether nobody has it. Does not take it meanwhile: another may be about to.
    pub(crate) fn is_free(interface: &str) -> Result<bool, SetupError> {
        let name = Self::socket(interface);
        let connected = SocketAddr::from_abstract_name(&name)
            .and_then(|address| UnixDatagram::unbound()?.connect_addr(&address));
        match connected {
            Ok(()) => Ok(false),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => Ok(true),
            Err(e) => Err(io_error(format!("connect @{name}"), &e)),
        }
    }

    pub(crate) fn interface(&self) -> &str {
        &self.interface
    }

    fn socket(interface: &str) -> String {
        format!("pyspawner-interface-{interface}")
    }
}

/// How the names of the interfaces of a block begin.
pub(super) fn interfaces_of(block: u32) -> String {
    format!("{ANY_INTERFACE}{block:x}-")
}

/// Whether the firewall takes a name for one that [`Block::pair`] gives.
pub(super) fn is_of_a_block(interface: &str) -> bool {
    interface.starts_with(ANY_INTERFACE)
}

/// Whether no living host has this block.
pub(super) fn is_free(number: u32) -> Result<bool, SetupError> {
    lock(number).map(|lock| lock.is_some())
}

/// While it is held, no other host of this network namespace starts or ends: what one turns on,
/// another may be about to turn off.
pub(super) struct Turn(#[expect(dead_code, reason = "it is held")] UnixDatagram);

/// Of a name or an address that another child has.
const NAMES_OF_THEIR_OWN: &str = "children that live at the same time, of whatever host, need interfaces (kernel_veth_name) and \
                                  addresses of their own";

impl Turn {
    /// Waits for it, which takes as long as some runs of a program.
    pub(super) async fn take() -> Result<Self, SetupError> {
        const PATIENCE: Duration = Duration::from_secs(20);
        match wait_to_bind("pyspawner-network", PATIENCE).await? {
            Some(socket) => Ok(Self(socket)),
            None => {
                let step =
                    "another host has not started or ended in time (socket @pyspawner-network)";
                Err(check_failed(step))
            }
        }
    }
}

/// [`bind`], once others have let go; `None` if they do not.
async fn wait_to_bind(name: &str, patience: Duration) -> Result<Option<UnixDatagram>, SetupError> {
    let end = Instant::now() + patience;
    loop {
        match bind(name)? {
            None if Instant::now() < end => tokio::time::sleep(Duration::from_millis(5)).await,
            bound => return Ok(bound),
        }
    }
}

fn lock(number: u32) -> Result<Option<UnixDatagram>, SetupError> {
    bind(&format!("pyspawner-network-{number:x}"))
}

/// A socket of this abstract name; `None` if another process has it.
fn bind(name: &str) -> Result<Option<UnixDatagram>, SetupError> {
    let bound =
        SocketAddr::from_abstract_name(name).and_then(|name| UnixDatagram::bind_addr(&name));
    match bound {
        Ok(socket) => Ok(Some(socket)),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => Ok(None),
        Err(e) => Err(io_error(format!("bind @{name}"), &e)),
    }
}

/// The pairs of a block.
pub(super) struct Pairs {
    block: Block,
    taken: Vec<bool>,
    /// Where to look next: a pair rests as long as it can, so that what is still under way to one
    /// child does not soon reach another.
    next: usize,
}

impl Pairs {
    pub(super) fn of(block: &Block) -> Self {
        Self {
            block: block.clone(),
            taken: vec![false; block.pairs()],
            // Anywhere: the block may have been another host's a moment ago.
            next: RandomState::new().build_hasher().finish() as usize % block.pairs(),
        }
    }

    /// A pair that no living child has, and its place; `None` if all are in use.
    pub(super) fn take(&mut self) -> Option<(usize, VethConfig)> {
        let count = self.taken.len();
        let free = (self.next..self.next + count)
            .map(|place| place % count)
            .find(|place| !self.taken[*place])?;
        self.taken[free] = true;
        self.next = free + 1;
        Some((free, self.block.pair(free)))
    }

    pub(super) fn give_back(&mut self, place: usize) {
        self.taken[place] = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a network")
    }

    #[test]
    fn a_pair_has_the_same_place_in_both_families() {
        let block = Block::new(net("10.213.16.0/20"), Some(net("fd70:7973:7061::/48")));
        assert_eq!(block.interfaces(), "pysp-ad51-");
        assert_eq!(block.ipv6, Some(net("fd70:7973:7061::ad5:1000/116")));
        assert_eq!(block.pairs(), 1024);
        for place in [0, 1023] {
            let pair = block.pair(place);
            pair.check().expect("names and addresses are valid");
            assert!(block.ipv4.contains(&pair.child_ipv4));
            assert!(
                block
                    .ipv6
                    .expect("set")
                    .contains(&pair.child_ipv6.expect("set"))
            );
        }
        assert_eq!(block.pair(1).child_ipv4, Ipv4Addr::new(10, 213, 16, 6));
    }

    #[test]
    fn the_longest_name_is_one() {
        let block = Block::new(net("255.255.240.0/20"), None);
        let pair = block.pair(1023);
        assert_eq!(pair.kernel_veth_name, "pysp-fffff-1023");
        pair.check().expect("it is a name");
    }

    #[test]
    fn hosts_begin_anywhere() {
        let block = Block::new(net("10.213.0.0/20"), None);
        let firsts: Vec<_> = (0..8).map(|_| Pairs::of(&block).next).collect();
        assert!(firsts.iter().any(|first| *first != firsts[0]), "{firsts:?}");
    }

    #[test]
    fn names_of_pairs_are_told_from_others() {
        let block = Block::new(net("10.213.16.0/20"), None);
        assert!(is_of_a_block(&block.pair(7).kernel_veth_name));
        for other in ["veth-pyspawn", "pyspawn0", "pyspawner-1", "eth0"] {
            assert!(!is_of_a_block(other), "{other}");
        }
    }

    #[test]
    fn a_pair_is_given_to_one_child_at_a_time_and_rests_in_between() {
        let mut pairs = Pairs::of(&Block::new(net("10.0.0.0/28"), None));
        pairs.next = 3;
        let places: Vec<_> = std::iter::from_fn(|| pairs.take())
            .map(|(p, _)| p)
            .collect();
        assert_eq!(places, [3, 0, 1, 2]);
        pairs.give_back(1);
        pairs.give_back(3);
        assert_eq!(pairs.take().map(|(place, _)| place), Some(3));
        assert_eq!(pairs.take().map(|(place, _)| place), Some(1));
        assert!(pairs.take().is_none());
    }
}
