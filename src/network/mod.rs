//! The host's half of a child's network. It runs on the I/O thread.
//!
//! A child is born into an empty network namespace. What it is to reach is brought into it by the
//! host while the child still waits: [`Networks::connect`]. Once it was reaped,
//! [`Networks::disconnect`] takes that away.

mod addresses;
pub mod destinations;
mod egress;
mod firewall;
mod forwarding;
mod links;
mod veth;

use std::cell::{OnceCell, RefCell};
use std::collections::HashSet;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

pub use veth::VethConfig;

use self::egress::Egress;
use self::links::Links;
use crate::config::Network;
use crate::sandbox::{Layer, SetupError};

/// What one job is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobNetwork {
    /// Nothing: not even the loopback interface is up.
    None,
    /// The machine, by a pair of interfaces that the caller names. What may pass there is for the
    /// machine's own firewall to say.
    Veth(VethConfig),
    /// What the profile's `egress` permits.
    Egress,
}

impl From<&Network> for JobNetwork {
    fn from(network: &Network) -> Self {
        match network {
            Network::None => Self::None,
            Network::Egress(_) => Self::Egress,
        }
    }
}

/// The networks of a host's children.
pub struct Networks {
    /// Opened when it is first needed.
    links: OnceCell<Links>,
    egress: Option<Egress>,
    /// Names of the interfaces of living children.
    in_use: RefCell<HashSet<String>>,
}

/// A connected child's share.
#[must_use = "it is given back with Networks::disconnect"]
pub struct Connection {
    link: u32,
    name: String,
    /// Its place among the pairs of the egress.
    place: Option<usize>,
}

impl Networks {
    /// Prepares what the profile asks for. Called before the first clone.
    ///
    /// # Errors
    /// With the step that failed; nothing is left behind then.
    pub async fn start(network: &Network) -> Result<Self, SetupError> {
        let mut networks = Self {
            links: OnceCell::new(),
            egress: None,
            in_use: RefCell::default(),
        };
        if let Network::Egress(settings) = network {
            networks.egress = Some(Egress::start(settings, networks.links()?).await?);
        }
        Ok(networks)
    }

    /// Connects a child that waits for the host's word.
    ///
    /// # Errors
    /// With the step that failed; the child has no network then.
    pub async fn connect(
        &self,
        pid: libc::pid_t,
        network: &JobNetwork,
    ) -> Result<Option<Connection>, SetupError> {
        match network {
            JobNetwork::None => Ok(None),
            JobNetwork::Veth(config) => self.connect_veth(pid, config, None).await.map(Some),
            JobNetwork::Egress => {
                let egress = self.egress.as_ref();
                let egress = egress.ok_or_else(|| {
                    error("the profile has no network = \"egress\"", Errno::EINVAL)
                })?;
                let (place, pair) = egress.take()?;
                let connected = self.connect_veth(pid, &pair, Some(place)).await;
                if connected.is_err() {
                    egress.give_back(place);
                }
                connected.map(Some)
            }
        }
    }

    /// Takes away what a child had, at once and for certain: names and addresses are used again.
    /// For a child that was reaped.
    pub async fn disconnect(&self, connection: Connection) {
        match self.links() {
            Ok(links) => veth::disconnect(links, connection.link).await,
            Err(error) => log::error!("{error}"),
        }
        self.in_use.borrow_mut().remove(&connection.name);
        if let (Some(egress), Some(place)) = (&self.egress, connection.place) {
            egress.give_back(place);
        }
    }

    /// Takes everything away. Called when no child is to be connected any more.
    pub async fn stop(&self) {
        if let (Some(egress), Some(links)) = (&self.egress, self.links.get()) {
            egress.stop(links).await;
        }
    }

    async fn connect_veth(
        &self,
        pid: libc::pid_t,
        config: &VethConfig,
        place: Option<usize>,
    ) -> Result<Connection, SetupError> {
        config
            .check()
            .map_err(|wrong| error(wrong.to_string(), Errno::EINVAL))?;
        let name = config.kernel_veth_name.clone();
        if !self.in_use.borrow_mut().insert(name.clone()) {
            return Err(error(
                format!("interface {name} is another child's"),
                Errno::EBUSY,
            ));
        }
        let connected = match self.links() {
            Ok(links) => veth::connect(links, pid, config).await,
            Err(error) => Err(error),
        };
        match connected {
            Ok(link) => Ok(Connection { link, name, place }),
            Err(error) => {
                self.in_use.borrow_mut().remove(&name);
                Err(error)
            }
        }
    }

    fn links(&self) -> Result<&Links, SetupError> {
        if let Some(links) = self.links.get() {
            return Ok(links);
        }
        let links = Links::open()?;
        Ok(self.links.get_or_init(|| links))
    }
}

fn error(step: impl Into<String>, errno: Errno) -> SetupError {
    SetupError::new(Layer::Network, step, errno)
}

fn io_error(step: impl Into<String>, source: &std::io::Error) -> SetupError {
    SetupError::from_io(Layer::Network, step, source)
}
