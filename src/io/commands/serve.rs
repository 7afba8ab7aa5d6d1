//! `pyspawner serve`: a host for clients, over the client protocol and over HTTP.
//!
//! Runs on: the I/O thread.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::config::Profile;
use crate::io::api::listen::Listener;
use crate::io::api::protocol::Event;
use crate::io::api::{self, Service, attend};
use crate::io::http;
use crate::io::interrupt::Interrupt;
use crate::io::pool::Pool;
use crate::io::pool::queue::{Queue, Share};
use crate::io::socket_file::Access;
use crate::sys::files;
use crate::sys::messages::Socket;

#[derive(Serialize, Deserialize)]
pub(crate) struct Command {
    pub clients: Option<ClientsFrom>,
    pub http: Option<http::Settings>,
    /// How many children run at once; all at once if nothing is said.
    pub concurrency: Option<usize>,
    /// How many HTTP jobs wait.
    pub queue: usize,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum ClientsFrom {
    Socket(PathBuf, Access),
    Descriptor(RawFd),
}

impl Command {
    /// What it makes itself, with what that is.
    pub(crate) fn files(&self) -> Vec<(&'static str, &Path)> {
        let mut files = Vec::new();
        if let Some(ClientsFrom::Socket(path, _)) = &self.clients {
            files.push(("the socket", path.as_path()));
        }
        if let Some(http) = &self.http {
            files.extend(http.files());
        }
        files
    }

    fn make_queue(&self) -> Arc<Queue> {
        let mut shares = vec![OF_CLIENTS];
        if let Some(http) = &self.http {
            shares.extend(http.tenants.iter().map(|tenant| Share {
                running: tenant.concurrency.unwrap_or(usize::MAX),
                waiting: Some(tenant.queue.unwrap_or(usize::MAX)),
            }));
        }
        let most = self.concurrency.unwrap_or(usize::MAX);
        Queue::new(most, self.queue, &shares)
    }
}

/// Clients of the package are bounded by the descriptors that their children take.
const OF_CLIENTS: Share = Share {
    running: usize::MAX,
    waiting: None,
};

/// All that is listened to, open before the interpreter is warm.
pub(crate) struct Faces {
    queue: Arc<Queue>,
    clients: Option<Clients>,
    http: Option<http::Server>,
}

/// Where clients come from.
enum Clients {
    One(Socket),
    Many(Listener, PathBuf),
}

impl Faces {
    /// Listens, and answers HTTP requests that need no job.
    pub(crate) fn open(command: &Command, profile: &Profile) -> anyhow::Result<Self> {
        let queue = command.make_queue();
        let clients = command.clients.as_ref().map(Clients::open).transpose()?;
        let http = command.http.clone().map(|settings| {
            let first_tenant = api::CLIENTS + 1;
            http::Server::start(settings, queue.clone(), first_tenant, profile)
        });
        Ok(Self {
            queue,
            clients,
            http: http.transpose()?,
        })
    }

    /// Tells the clients who have come that there will be no host.
    pub(crate) async fn tell_failure(&self, kind: &str, detail: &str) {
        if let Some(clients) = &self.clients {
            clients.tell_failure(kind, detail).await;
        }
    }
}

impl Clients {
    fn open(from: &ClientsFrom) -> anyhow::Result<Self> {
        match from {
            ClientsFrom::Socket(path, access) => {
                Ok(Self::Many(Listener::open(path, access)?, path.clone()))
            }
            ClientsFrom::Descriptor(fd) => {
                // SAFETY: `into_command` left it open for this process, and nobody else has it.
                let fd = unsafe { OwnedFd::from_raw_fd(*fd) };
                files::set_close_on_exec(fd.as_raw_fd(), true)?;
                Ok(Self::One(Socket::new(fd).context("--client-fd")?))
            }
        }
    }

    async fn tell_failure(&self, kind: &str, detail: &str) {
        let event = Event::Failed { kind, detail };
        match self {
            // It may have gone.
            Self::One(client) => drop(client.send(&event.encode()).await),
            Self::Many(listener, _) => listener.turn_away(&event),
        }
    }

    /// Serves them until they have gone; those that connect, for ever.
    async fn serve(self, service: &Rc<Service>) -> anyhow::Result<()> {
        match self {
            Self::One(client) => attend(service.clone(), client).await,
            Self::Many(listener, path) => {
                log::info!("clients are served at {}", path.display());
                let failed = listener.serve(service).await;
                failed.context("accepting clients")?;
            }
        }
        Ok(())
    }
}

pub(crate) async fn serve(
    pool: &Pool,
    interrupt: &Interrupt,
    profile: Rc<Profile>,
    faces: Faces,
) -> anyhow::Result<i32> {
    let service = Service::new(
        pool.clone(),
        profile.clone(),
        interrupt.clone(),
        faces.queue,
    );
    let service = service.context("getrlimit(RLIMIT_NOFILE)")?;
    let clients = async {
        match faces.clients {
            Some(clients) => clients.serve(&service).await,
            None => std::future::pending().await,
        }
    };
    let http = async {
        match faces.http {
            Some(server) => server.run(pool.clone(), profile, interrupt).await,
            None => Some(interrupt.received().await),
        }
    };
    let signal = tokio::select! {
        served = clients => {
            served?;
            None
        }
        signal = http => signal,
    };
    // An interrupt has ended them all; a client's farewell has not.
    service.idle().await;
    Ok(signal.map_or(0, |signal| 128 + signal))
}
