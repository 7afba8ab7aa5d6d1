//! Whether the host's table is still as it was installed.
//!
//! Runs on: the I/O thread.
//!
//! Whoever reloads the machine's rules may begin with `nft flush ruleset`, and the children's guard
//! is gone. No program can be run to look for that while children are cloned, but the kernel tells of
//! every change as it makes it (nfnetlink, what `nft monitor` shows).

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
    socket, sockopt,
};
use tokio::io::unix::AsyncFd;

use super::{check_failed, error, io_error};
use crate::layer::SetupError;
use crate::sys::files::{Interest, watch};

/// Of changes that wait to be read. One reload of others can make thousands, and what does not fit is
/// lost.
const BUFFER: usize = 32 << 20;
/// The kernel puts no more into one packet.
const LONGEST: usize = 64 << 10;

/// Names in `linux/netfilter/nf_tables.h`; new ones come at the end, so those that destroy are here
/// by number.
const NEWTABLE: u16 = libc::NFT_MSG_NEWTABLE as u16;
const REMOVALS: &[u16] = &[
    libc::NFT_MSG_DELTABLE as u16,
    libc::NFT_MSG_DELCHAIN as u16,
    libc::NFT_MSG_DELRULE as u16,
    libc::NFT_MSG_DELSET as u16,
    libc::NFT_MSG_DELSETELEM as u16,
    libc::NFT_MSG_DELOBJ as u16,
    24, // NFT_MSG_DELFLOWTABLE
    26, // NFT_MSG_DESTROYTABLE
    27, // NFT_MSG_DESTROYCHAIN
    28, // NFT_MSG_DESTROYRULE
    29, // NFT_MSG_DESTROYSET
    30, // NFT_MSG_DESTROYSETELEM
    31, // NFT_MSG_DESTROYOBJ
    32, // NFT_MSG_DESTROYFLOWTABLE
];

/// What a message says of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// It was made, or its flags were changed: "dormant" puts all of it out of force.
    Table,
    /// It was removed, or something in it.
    Removal,
}

/// A subscription to the changes of one table.
pub(super) struct Watch {
    socket: AsyncFd<OwnedFd>,
    table: String,
}

impl Watch {
    /// Subscribes: before the table is installed, so that nothing is missed.
    pub(super) fn subscribe(table: &str) -> Result<Self, SetupError> {
        Self::with_buffer(table, BUFFER)
    }

    fn with_buffer(table: &str, size: usize) -> Result<Self, SetupError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            flags,
            SockProtocol::NetlinkNetFilter,
        )
        .map_err(|e| error("socket(NETLINK_NETFILTER)", e))?;
        // In another user namespace than the machine's it may not be larger than for all.
        if let Err(e) = setsockopt(&socket, sockopt::RcvBufForce, &size) {
            log::debug!("setsockopt(SO_RCVBUFFORCE, {size}): {e}");
        }
        let groups = 1 << (libc::NFNLGRP_NFTABLES - 1);
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))
            .map_err(|e| error("bind(NETLINK_NETFILTER, NFNLGRP_NFTABLES)", e))?;
        let socket = watch(socket, Interest::READABLE)
            .map_err(|e| io_error("epoll(NETLINK_NETFILTER)", &e))?;
        Ok(Self {
            socket,
            table: table.to_owned(),
        })
    }

    /// Reads what was told while the table was installed: nothing may have been removed since.
    ///
    /// # Errors
    /// If it is not, or not known to be, as it was installed.
    pub(super) fn begin(&self) -> Result<(), SetupError> {
        match self.read_all()?.last() {
            Some(Change::Table) => Ok(()),
            _ => Err(self.removed()),
        }
    }

    /// Waits until the table is not, or not known to be, as it was installed, and says which.
    pub(super) async fn loss(&self) -> SetupError {
        loop {
            let mut ready = match self.socket.readable().await {
                Ok(ready) => ready,
                Err(e) => return io_error("epoll(NETLINK_NETFILTER)", &e),
            };
            ready.clear_ready();
            match self.read_all() {
                Ok(changes) if changes.is_empty() => {}
                Ok(_) => return self.removed(),
                Err(error) => return error,
            }
        }
    }

    /// What is there to be read.
    fn read_all(&self) -> Result<Vec<Change>, SetupError> {
        let mut changes = Vec::new();
        let mut packet = vec![0; LONGEST];
        let socket = self.socket.get_ref().as_raw_fd();
        loop {
            match recv(socket, &mut packet, MsgFlags::MSG_TRUNC) {
                Ok(length) => match packet.get(..length).and_then(|all| parse(all, &self.table)) {
                    Some(more) => changes.extend(more),
                    None => return Err(self.unknown(Errno::EBADMSG)),
                },
                Err(Errno::EAGAIN) => return Ok(changes),
                Err(Errno::EINTR) => {}
                // ENOBUFS: there were more than fit.
                Err(errno) => return Err(self.unknown(errno)),
            }
        }
    }

    fn removed(&self) -> SetupError {
        let step = format!(
            "another program removed the table inet {} or some of it: restart pyspawner, and let \
             what reloads the machine's rules keep this table",
            self.table
        );
        check_failed(step)
    }

    fn unknown(&self, errno: Errno) -> SetupError {
        let step = format!(
            "changes of the machine's rules were missed, perhaps the end of the table inet {}: \
             restart pyspawner",
            self.table
        );
        error(step, errno)
    }
}

/// What the messages of a packet (`netlink(7)`) say of this table; `None` if they are no such messages.
fn parse(mut packet: &[u8], table: &str) -> Option<Vec<Change>> {
    const HEADER: usize = 16;
    const SUBSYSTEM: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;
    let mut changes = Vec::new();
    while !packet.is_empty() {
        let length = u32::from_ne_bytes(*packet.first_chunk()?) as usize;
        let message = packet.get(..length).filter(|_| length >= HEADER)?;
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        packet = packet.get(length.next_multiple_of(4)..).unwrap_or_default();
        let change = match (kind >> 8, kind & 0xff) {
            (SUBSYSTEM, NEWTABLE) => Change::Table,
            (SUBSYSTEM, kind) if REMOVALS.contains(&kind) => Change::Removal,
            _ => continue,
        };
        if is_of(message.get(HEADER..)?, table)? {
            changes.push(change);
        }
    }
    Some(changes)
}

/// Whether the first attribute of a message, which is the table's name in all of these, is this.
fn is_of(body: &[u8], table: &str) -> Option<bool> {
    const FAMILY_AND_VERSION: usize = 4;
    const ATTRIBUTE: usize = 4;
    const NAME: u16 = 1;
    let family = *body.first()?;
    let attribute = body.get(FAMILY_AND_VERSION..)?;
    let length = u16::from_ne_bytes(*attribute.first_chunk()?);
    let kind = u16::from_ne_bytes([*attribute.get(2)?, *attribute.get(3)?]);
    let name = attribute.get(ATTRIBUTE..usize::from(length))?;
    let name = name.strip_suffix(b"\0").filter(|_| kind == NAME)?;
    Some(libc::c_int::from(family) == NFPROTO_INET && name == table.as_bytes())
}

const NFPROTO_INET: libc::c_int = 1;

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn nft(command: &str) {
        let done = Command::new("nft").arg(command).status();
        assert!(done.expect("nftables").success(), "{command}");
    }

    /// In a network namespace of this thread's own.
    fn run(test: impl Future<Output = ()>) {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        unshare(CloneFlags::CLONE_NEWNET).expect("root may");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(test);
    }

    const TABLE: &str = "table inet pyspawner-1 { set s { type ifname; elements = { \"a\" }; }; \
        chain c { accept; }; chain d { type filter hook input priority 0; drop; }; }";

    #[test]
    fn every_removal_from_the_table_is_noticed() {
        run(async {
            for removal in [
                "flush ruleset",
                "delete table inet pyspawner-1",
                "flush table inet pyspawner-1",
                "flush chain inet pyspawner-1 d",
                "delete chain inet pyspawner-1 c",
                "delete set inet pyspawner-1 s",
                "flush set inet pyspawner-1 s",
                "delete element inet pyspawner-1 s { a }",
                "replace rule inet pyspawner-1 d handle 5 accept",
                "add table inet pyspawner-1 { flags dormant; }",
            ] {
                let watch = Watch::subscribe("pyspawner-1").expect("subscribes");
                nft(&format!(
                    "add table inet pyspawner-1; flush ruleset; {TABLE}"
                ));
                watch.begin().expect("it is installed");
                nft("add table inet pyspawner-11; flush table inet pyspawner-11");
                nft("add table ip pyspawner-1; add chain ip pyspawner-1 c");
                nft("delete table ip pyspawner-1; delete table inet pyspawner-11");
                nft("insert rule inet pyspawner-1 d accept");
                assert_eq!(watch.read_all(), Ok(vec![]), "{removal}");
                nft(removal);
                let loss = watch.loss().await;
                assert_eq!(loss.errno, None, "{removal}: {loss}");
            }
        });
    }

    #[test]
    fn a_removal_right_after_the_installation_is_noticed() {
        run(async {
            let watch = Watch::subscribe("pyspawner-1").expect("subscribes");
            assert!(watch.begin().is_err());
            nft(TABLE);
            nft("flush ruleset");
            assert!(watch.begin().is_err());
        });
    }

    #[test]
    fn what_was_missed_counts_as_a_removal() {
        run(async {
            let watch = Watch::with_buffer("pyspawner-1", 4096).expect("subscribes");
            nft(TABLE);
            watch.begin().expect("it is installed");
            for number in 0..20 {
                nft(&format!(
                    "add table inet other-{number} {{ chain c {{ accept; }}; }}"
                ));
            }
            assert_eq!(watch.loss().await.errno, Some(Errno::ENOBUFS));
        });
    }

    #[test]
    fn no_bytes_lead_astray() {
        let mut message = [20_u32.to_ne_bytes(), [2, 10, 0, 0]].concat();
        message.extend([0; 8]);
        message.extend([1, 0, 0, 0]);
        assert_eq!(parse(&message, "t"), None);
        message.extend([6, 0, 1, 0, b't', 0, 0, 0]);
        message[0] = message.len() as u8;
        assert_eq!(parse(&message, "t"), Some(vec![Change::Removal]));
        assert_eq!(parse(&message, "u"), Some(vec![]));
        assert_eq!(
            parse(&[message.clone(), message.clone()].concat(), "t").map(|c| c.len()),
            Some(2)
        );
        for end in 1..message.len() {
            assert_eq!(parse(&message[..end], "t"), None);
        }
        for wrong in [0, 15, 200] {
            message[0] = wrong;
            assert_eq!(parse(&message, "t"), None);
        }
    }
}
