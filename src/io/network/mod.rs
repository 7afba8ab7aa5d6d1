//! The host's half of a child's network. It runs on the I/O thread.
//!
//! Runs on: the I/O thread.
//!
//! A child is born into an empty network namespace: its own, or one that it has to itself while it
//! lives ([`slots`]). What it is to reach is brought into it by the
//! host while the child still waits: [`Networks::connect`]. Once it was reaped,
//! [`Networks::disconnect`] takes that away.

mod addresses;
mod egress;
mod firewall;
mod forwarding;
mod links;
pub(crate) mod slots;
mod table_watch;
mod veth;

use std::cell::OnceCell;
use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use self::addresses::NameClaim;
use self::egress::Egress;
use self::links::{Link, Links};
use crate::config::Network;
use crate::layer::{Layer, SetupError};
pub(crate) use veth::VethConfig;

/// How long the kernel may take to delete what children had that have ended.
const PATIENCE: Duration = Duration::from_secs(1);

/// What one job is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum JobNetwork {
    /// Nothing: not even the loopback interface is up.
    None,
    /// The loopback interface, which the child raises itself: `sandbox::namespaces::raise_loopback`.
    Loopback,
    /// The machine, by a pair of interfaces that the caller names. What may pass there is for the
    /// machine's own firewall to say.
    Veth(#[serde(deserialize_with = "veth::from_object")] VethConfig),
    /// What the profile's `egress` permits.
    Egress,
}

impl From<&Network> for JobNetwork {
    fn from(network: &Network) -> Self {
        match network {
            Network::None => Self::None,
            Network::Loopback => Self::Loopback,
            Network::Egress(_) => Self::Egress,
        }
    }
}

/// The networks of a host's children.
pub(crate) struct Networks {
    /// Opened when it is first needed.
    links: OnceCell<Links>,
    egress: Option<Egress>,
}

/// A connected child's share.
#[must_use = "it is given back with Networks::disconnect"]
pub(crate) enum Connection {
    /// A place among the pairs of the egress.
    Place(usize),
    /// The name that the caller chose.
    Name(NameClaim),
}

impl Networks {
    /// Prepares what the profile asks for. Called before the first clone.
    ///
    /// # Errors
    /// With the step that failed; nothing is left behind then.
    pub(crate) async fn start(network: &Network) -> Result<Self, SetupError> {
        let mut networks = Self {
            links: OnceCell::new(),
            egress: None,
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
    pub(crate) async fn connect(
        &self,
        pid: libc::pid_t,
        network: &JobNetwork,
    ) -> Result<Option<Connection>, SetupError> {
        let connection = match network {
            JobNetwork::None | JobNetwork::Loopback => return Ok(None),
            JobNetwork::Veth(config) => self.connect_named(pid, config).await?,
            JobNetwork::Egress => self.connect_out(pid).await?,
        };
        Ok(Some(connection))
    }

    /// Gives back what a child had. For a child that was reaped.
    ///
    /// Its interfaces are left to the kernel, which deletes them with the child's network namespace:
    /// to delete them would hold up this thread, and so every job. One that the caller named is waited
    /// for: the next job may have the same. One of the egress is not: its name and addresses come
    /// around again only after all others.
    pub(crate) async fn disconnect(&self, connection: Connection) {
        match (connection, &self.egress, self.links.get()) {
            (Connection::Place(place), Some(egress), _) => egress.give_back(place),
            (Connection::Name(claim), _, Some(links)) => {
                veth::disconnect(links, claim.interface()).await;
            }
            _ => {}
        }
    }

    /// Takes everything away. Called when no child is to be connected any more.
    pub(crate) async fn stop(&self) {
        let Some(links) = self.links.get() else {
            return;
        };
        if let Some(egress) = &self.egress
            && let Err(error) = egress.stop(links).await
        {
            log::error!("{error}; the firewall stays, and the next host takes it away");
        }
        // Of other hosts' children, too, if these have ended.
        let is_stale = |link: &Link| {
            let is_named = link.is_our_veth() && !addresses::is_of_a_block(&link.name);
            Ok(is_named && NameClaim::is_free(&link.name)?)
        };
        if let Err(error) = links.see_off(PATIENCE, is_stale).await {
            log::error!("{error}");
        }
    }

    async fn connect_named(
        &self,
        pid: libc::pid_t,
        config: &VethConfig,
    ) -> Result<Connection, SetupError> {
        let name = &config.kernel_veth_name;
        config
            .check()
            .map_err(|wrong| check_failed(wrong.to_string()))?;
        if addresses::is_of_a_block(name) {
            let step = format!("interface {name}: such names are those of network = \"egress\"");
            return Err(check_failed(step).known_as(Errno::EINVAL));
        }
        let claim = NameClaim::take(name).await?;
        veth::connect(self.links()?, pid, config).await?;
        Ok(Connection::Name(claim))
    }

    async fn connect_out(&self, pid: libc::pid_t) -> Result<Connection, SetupError> {
        let egress = self.egress.as_ref();
        let egress = egress
            .ok_or_else(|| error("the profile has no network = \"egress\"", Errno::EINVAL))?;
        let links = self.links()?;
        let (place, pair) = egress.take()?;
        let mut connected = veth::connect(links, pid, &pair).await;
        if let Err(error) = egress.check() {
            // The guard was lost meanwhile.
            if connected.is_ok() {
                links.delete_named(&pair.kernel_veth_name).await?;
            }
            connected = Err(error);
        }
        if connected.is_err() {
            egress.give_back(place);
        }
        connected.map(|()| Connection::Place(place))
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

/// What a check of this layer has found.
fn check_failed(what: impl Into<String>) -> SetupError {
    SetupError::found(Layer::Network, what)
}

fn io_error(step: impl Into<String>, source: &std::io::Error) -> SetupError {
    SetupError::from_io(Layer::Network, step, source)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::process::{Child, Command};
    use std::time::Duration;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// A process in a network namespace of its own, as a child is.
    struct Process(Child);

    impl Process {
        fn start() -> Self {
            let command = Command::new("unshare").args(["-n", "sleep", "60"]).spawn();
            let process = Self(command.expect("util-linux"));
            let namespace = |path: String| std::fs::read_link(path).expect("it lives");
            let own = namespace("/proc/thread-self/ns/net".to_owned());
            while namespace(format!("/proc/{}/ns/net", process.0.id())) == own {
                std::thread::sleep(Duration::from_millis(5));
            }
            process
        }

        fn pid(&self) -> libc::pid_t {
            self.0.id() as libc::pid_t
        }

        /// Has bash send a word from there.
        fn say(&self, address: &str) {
            let script = format!("echo hello > /dev/tcp/{address}");
            let done = Command::new("nsenter")
                .args(["-n", "-t", &self.pid().to_string(), "bash", "-c", &script])
                .status();
            assert!(done.expect("util-linux").success(), "{address}");
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            self.0.kill().and_then(|()| self.0.wait()).expect("our own");
        }
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn a_named_pair_connects_one_child_at_a_time_and_is_gone_in_the_end() {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        // This thread alone: the machine's own network stays as it is.
        unshare(CloneFlags::CLONE_NEWNET).expect("root may");
        let process = Process::start();
        run(async {
            let networks = Networks::start(&Network::None)
                .await
                .expect("nothing to do");
            let config = VethConfig {
                kernel_ipv6: Some("fd00::1".parse().expect("valid")),
                child_ipv6: Some("fd00::2".parse().expect("valid")),
                ..VethConfig::default()
            };
            let job = JobNetwork::Veth(config.clone());
            for _ in 0..2 {
                let connected = networks
                    .connect(process.pid(), &job)
                    .await
                    .expect("connects");
                for address in ["192.168.123.1:0", "[fd00::1]:0"] {
                    let server = TcpListener::bind(address).expect("our own address");
                    let place = server.local_addr().expect("bound");
                    process.say(&format!("{}/{}", place.ip(), place.port()));
                    let mut said = String::new();
                    let (mut stream, from) = server.accept().expect("a connection");
                    stream.read_to_string(&mut said).expect("a word");
                    assert_eq!(said, "hello\n");
                    assert!(["192.168.123.2", "fd00::2"].contains(&&*from.ip().to_string()));
                }
                let again = networks.connect(process.pid(), &job).await;
                let again = again.err().map(|error| error.to_string());
                let again = again.unwrap_or_default();
                assert!(again.contains("is another child's"), "{again}");
                let name = &config.kernel_veth_name;
                assert!(!NameClaim::is_free(name).expect("asks"));
                networks.disconnect(connected.expect("a connection")).await;
                // A process that another test has forked meanwhile has a copy for a moment.
                let mut looks = 0;
                while !NameClaim::is_free(name).expect("asks") {
                    looks += 1;
                    assert!(looks < 100, "{name} is not given back");
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            }
            // The process lives on, and so the kernel has not deleted the pair.
            let links = networks.links().expect("open");
            let left = links.find(&config.kernel_veth_name).await.expect("asks");
            assert!(left.is_some());
            networks.stop().await;
            let left = links.find(&config.kernel_veth_name).await.expect("asks");
            assert!(left.is_none());
        });
    }

    #[test]
    fn an_interface_of_the_machine_is_not_taken_for_a_stale_one() {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        unshare(CloneFlags::CLONE_NEWNET).expect("root may");
        let process = Process::start();
        run(async {
            let networks = Networks::start(&Network::None)
                .await
                .expect("nothing to do");
            let job = JobNetwork::Veth(VethConfig {
                kernel_veth_name: "lo".to_owned(),
                ..VethConfig::default()
            });
            let refused = networks.connect(process.pid(), &job).await;
            let refused = refused.err().map(|error| error.step);
            assert_eq!(refused.as_deref(), Some("interface lo is not pyspawner's"));
            let job = JobNetwork::Veth(VethConfig {
                kernel_veth_name: "pysp-ad50-2".to_owned(),
                ..VethConfig::default()
            });
            let refused = networks.connect(process.pid(), &job).await;
            let refused = refused.err().map(|error| error.step).unwrap_or_default();
            assert!(refused.contains("such names are those of"), "{refused}");
            let without = networks.connect(process.pid(), &JobNetwork::Egress).await;
            assert!(without.is_err());
            let job = JobNetwork::Veth(VethConfig::default());
            let own = networks.connect(nix::unistd::gettid().as_raw(), &job).await;
            let step = own.err().map(|error| error.step).unwrap_or_default();
            assert!(step.contains("no network namespace of its own"), "{step}");
        });
    }
}
