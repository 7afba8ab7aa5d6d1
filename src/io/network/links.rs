//! Interfaces, addresses and routes, through a netlink socket (`rtnetlink(7)`).
//!
//! Runs on: the I/O thread.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage, State,
};
use rtnetlink::packet_route::route::RouteType;
use rtnetlink::{Error, Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{check_failed, error};
use crate::layer::SetupError;

/// The loopback interface of every network namespace.
pub(super) const LOOPBACK: u32 = 1;

/// Both ends of a pair have it, and neither asks for the other's (IFF_NOARP): so no neighbour
/// discovery, and no router advertisement, need ever be let through. Set by us, it is left alone by
/// udev (`systemd.link(5)`, MACAddressPolicy).
const HARDWARE_ADDRESS: [u8; 6] = [0x02, b'p', b'y', b's', b'p', b'a'];

/// A netlink socket in one network namespace.
#[derive(Clone)]
pub(super) struct Links {
    handle: Handle,
}

/// An interface of this network namespace.
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub is_veth: bool,
    /// Whether packets pass.
    is_up: bool,
    /// Whether it has [`HARDWARE_ADDRESS`].
    is_ours: bool,
}

impl Link {
    /// Whether a pyspawner made it.
    pub(super) fn is_our_veth(&self) -> bool {
        self.is_veth && self.is_ours
    }

    fn of(message: &LinkMessage) -> Self {
        let has = |wanted: &dyn Fn(&LinkAttribute) -> bool| message.attributes.iter().any(wanted);
        let name = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
        Self {
            index: message.header.index,
            name: name.unwrap_or_default(),
            is_veth: has(&|attribute| {
                matches!(attribute, LinkAttribute::LinkInfo(info)
                    if info.contains(&LinkInfo::Kind(InfoKind::Veth)))
            }),
            is_up: has(&|attribute| *attribute == LinkAttribute::OperState(State::Up)),
            is_ours: has(
                &|attribute| matches!(attribute, LinkAttribute::Address(address) if *address == HARDWARE_ADDRESS),
            ),
        }
    }
}

impl Links {
    /// Opens a socket in the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, SetupError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| {
            SetupError::from_io(crate::layer::Layer::Network, "socket(netlink)", &e)
        })?;
        // It ends when the last handle is dropped.
        tokio::task::spawn_local(connection);
        Ok(Self { handle })
    }

    /// Opens a socket in another network namespace, where it stays. The calling thread is back in
    /// `own` when this returns; nothing else runs on it meanwhile.
    pub(super) fn open_in(namespace: &File, own: &File) -> Result<Self, SetupError> {
        let enter = |file| setns(file, CloneFlags::CLONE_NEWNET);
        enter(namespace).map_err(|e| error("setns(the child's network namespace)", e))?;
        let links = Self::open();
        // Nothing that follows would be where it must be.
        enter(own).expect("a thread may return to its own network namespace");
        links
    }

    /// Creates a veth pair (`veth(4)`): one end here, the other in `namespace`.
    pub(super) async fn create_pair(
        &self,
        here: &str,
        there: &str,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), SetupError> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(there.to_owned())
            .address(HARDWARE_ADDRESS.to_vec())
            .arp(false)
            .append_extra_attribute(LinkAttribute::NetNsFd(namespace.as_raw_fd()))
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(here, there)
            .address(HARDWARE_ADDRESS.to_vec())
            .arp(false)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        let step = || format!("create the veth pair {here}, {there}");
        self.handle
            .link()
            .add(pair)
            .execute()
            .await
            .map_err(at(step))
    }

    /// The interface of this name, if there is one.
    pub(super) async fn find(&self, name: &str) -> Result<Option<Link>, SetupError> {
        let mut found = self.handle.link().get().match_name(name).execute();
        match found.try_next().await {
            Ok(message) => Ok(message.as_ref().map(Link::of)),
            Err(e) if errno(&e) == Errno::ENODEV => Ok(None),
            Err(e) => Err(at(|| format!("look for interface {name}"))(e)),
        }
    }

    /// The veth interface of this name.
    pub(super) async fn veth(&self, name: &str) -> Result<u32, SetupError> {
        match self.find(name).await? {
            Some(link) => Ok(link.index),
            None => Err(error(format!("look for interface {name}"), Errno::ENODEV)),
        }
    }

    /// All interfaces.
    pub(super) async fn all(&self) -> Result<Vec<Link>, SetupError> {
        let links = self.handle.link().get().execute();
        let links: Vec<_> = links
            .try_collect()
            .await
            .map_err(at(|| "list the interfaces".to_owned()))?;
        Ok(links.iter().map(Link::of).collect())
    }

    /// Gives an interface an address. It is valid at once: nobody else can have it on a pair, so
    /// IPv6 need not ask (RFC 4862, duplicate address detection).
    pub(super) async fn add_address(
        &self,
        link: u32,
        address: IpAddr,
        prefix: u8,
    ) -> Result<(), SetupError> {
        let mut request = self.handle.address().add(link, address, prefix);
        if address.is_ipv6() {
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            request.message_mut().attributes.push(flags);
        }
        let step = || format!("add the address {address}/{prefix}");
        request.execute().await.map_err(at(step))
    }

    /// Raises an interface.
    pub(super) async fn raise(&self, link: u32) -> Result<(), SetupError> {
        let up = LinkUnspec::new_with_index(link).up().build();
        let step = || format!("raise interface {link}");
        self.handle.link().set(up).execute().await.map_err(at(step))
    }

    /// Waits until packets pass. The kernel lets them a moment after both ends were raised, by a
    /// worker that waits for whatever else is done to interfaces on the machine; until then it drops
    /// what is sent.
    pub(super) async fn wait_until_up(&self, name: &str) -> Result<(), SetupError> {
        let step = || format!("wait until interface {name} is up");
        wait_until(step, async || match self.find(name).await? {
            Some(link) => Ok(link.is_up),
            None => Err(error(step(), Errno::ENODEV)),
        })
        .await
    }

    /// Waits until packets to this address of an interface that is up are taken for this machine's,
    /// or child's, own. For IPv6 such a worker adds the route that says so.
    pub(super) async fn wait_until_own(&self, address: IpAddr) -> Result<(), SetupError> {
        let IpAddr::V6(ipv6) = address else {
            return Ok(());
        };
        let step = || format!("wait for the route to the own address {address}");
        wait_until(step, async || {
            let query = RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(ipv6, 128)
                .build();
            let mut routes = self.handle.route().get(query).execute();
            match routes.try_next().await {
                Ok(route) => Ok(route.is_some_and(|route| route.header.kind == RouteType::Local)),
                // Nothing leads there yet.
                Err(e) if errno(&e) == Errno::ENETUNREACH => Ok(false),
                Err(e) => Err(at(step)(e)),
            }
        })
        .await
    }

    /// Lowers these interfaces, so that nothing passes: in 0.2 ms each, where [`Links::delete`] takes
    /// 30. One that cannot be lowered does not keep the others.
    ///
    /// # Errors
    /// The last of them.
    pub(super) async fn lower(&self, is_one: impl Fn(&Link) -> bool) -> Result<(), SetupError> {
        let mut lowered = Ok(());
        for link in self.all().await?.into_iter().filter(is_one) {
            let down = LinkUnspec::new_with_index(link.index).down().build();
            match self.handle.link().set(down).execute().await {
                Err(e) if errno(&e) != Errno::ENODEV => {
                    lowered = Err(at(|| format!("lower interface {}", link.name))(e));
                }
                _ => {}
            }
        }
        lowered
    }

    /// Sends whatever goes elsewhere to `gateway`.
    pub(super) async fn add_default_route(&self, gateway: IpAddr) -> Result<(), SetupError> {
        let route = match gateway {
            IpAddr::V4(gateway) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .gateway(gateway)
                .build(),
            IpAddr::V6(gateway) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .gateway(gateway)
                .build(),
        };
        let step = || format!("add the default route through {gateway}");
        self.handle
            .route()
            .add(route)
            .execute()
            .await
            .map_err(at(step))
    }

    /// Deletes an interface, and with it the other end, their addresses and routes. One that is
    /// gone already is no error. The kernel's grace periods make this hold up the thread for some
    /// 30 ms.
    pub(super) async fn delete(&self, link: u32) -> Result<(), SetupError> {
        match self.handle.link().del(link).execute().await {
            Err(e) if errno(&e) == Errno::ENODEV => Ok(()),
            other => other.map_err(at(|| format!("delete interface {link}"))),
        }
    }

    /// Deletes the interface of this name, as [`Links::delete`] does.
    pub(super) async fn delete_named(&self, name: &str) -> Result<(), SetupError> {
        let mut request = self.handle.link().del(0);
        let attributes = &mut request.message_mut().attributes;
        attributes.push(LinkAttribute::IfName(name.to_owned()));
        match request.execute().await {
            Err(e) if errno(&e) == Errno::ENODEV => Ok(()),
            other => other.map_err(at(|| format!("delete interface {name}"))),
        }
    }

    /// Waits until the kernel has deleted these, as it does with the network namespace of a child
    /// that ended. Those that are left after `patience`.
    pub(super) async fn wait_for_end(
        &self,
        patience: Duration,
        is_one: impl Fn(&Link) -> Result<bool, SetupError>,
    ) -> Result<Vec<u32>, SetupError> {
        let end = Instant::now() + patience;
        loop {
            let mut left = Vec::new();
            for link in self.all().await? {
                if is_one(&link)? {
                    left.push(link.index);
                }
            }
            if left.is_empty() || Instant::now() > end {
                return Ok(left);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The same, and deletes what is left.
    pub(super) async fn see_off(
        &self,
        patience: Duration,
        is_one: impl Fn(&Link) -> Result<bool, SetupError>,
    ) -> Result<(), SetupError> {
        for link in self.wait_for_end(patience, is_one).await? {
            self.delete(link).await?;
        }
        Ok(())
    }
}

/// What the kernel does by itself, after a moment.
async fn wait_until(
    step: impl Fn() -> String,
    is_done: impl AsyncFn() -> Result<bool, SetupError>,
) -> Result<(), SetupError> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let end = Instant::now() + PATIENCE;
    while !is_done().await? {
        if Instant::now() > end {
            return Err(check_failed(format!(
                "{}: not done after {PATIENCE:?}",
                step()
            )));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

fn at(step: impl Fn() -> String) -> impl Fn(Error) -> SetupError {
    move |source| {
        log::debug!("{}: {source}", step());
        error(step(), errno(&source))
    }
}

/// The kernel's answer. What else can go wrong is a connection that broke.
fn errno(error: &Error) -> Errno {
    match error {
        Error::NetlinkError(message) => Errno::from_raw(-message.raw_code()),
        _ => Errno::EIO,
    }
}
