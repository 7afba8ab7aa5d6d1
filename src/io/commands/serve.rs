//! `pyspawner serve`: a host for clients.
//!
//! Runs on: the I/O thread.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::config::Profile;
use crate::io::api::listen::{Access, Listener};
use crate::io::api::protocol::Event;
use crate::io::api::{Service, attend};
use crate::io::interrupt::Interrupt;
use crate::io::pool::Pool;
use crate::sys::files;
use crate::sys::messages::Socket;

#[derive(Serialize, Deserialize)]
pub(crate) struct Command {
    pub clients: ClientsFrom,
    /// How many children run at once; all at once if nothing is said.
    pub concurrency: Option<usize>,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum ClientsFrom {
    Socket(PathBuf, Access),
    Descriptor(RawFd),
}

impl Command {
    /// What it makes itself, with what that is.
    pub(crate) fn files(&self) -> Vec<(&'static str, &Path)> {
        match &self.clients {
            ClientsFrom::Socket(path, _) => vec![("the socket", path.as_path())],
            ClientsFrom::Descriptor(_) => Vec::new(),
        }
    }
}

/// Where clients come from, open before the interpreter is warm.
pub(crate) enum Clients {
    One(Socket),
    Many(Listener),
}

impl Clients {
    pub(crate) fn open(command: &Command) -> anyhow::Result<Self> {
        match &command.clients {
            ClientsFrom::Socket(path, access) => Ok(Self::Many(Listener::open(path, access)?)),
            ClientsFrom::Descriptor(fd) => {
                // SAFETY: `into_command` left it open for this process, and nobody else has it.
                let fd = unsafe { OwnedFd::from_raw_fd(*fd) };
                files::set_close_on_exec(fd.as_raw_fd(), true)?;
                Ok(Self::One(Socket::new(fd).context("--client-fd")?))
            }
        }
    }

    /// Tells those who have come that there will be no host.
    pub(crate) async fn tell_failure(&self, kind: &str, detail: &str) {
        let event = Event::Failed { kind, detail };
        match self {
            // It may have gone.
            Self::One(client) => drop(client.send(&event.encode()).await),
            Self::Many(listener) => listener.turn_away(&event),
        }
    }
}

pub(crate) async fn serve(
    pool: &Pool,
    interrupt: &Interrupt,
    profile: Rc<Profile>,
    command: &Command,
    clients: Clients,
) -> anyhow::Result<i32> {
    let service = Service::new(
        pool.clone(),
        profile,
        interrupt.clone(),
        command.concurrency,
    );
    let service = service.context("getrlimit(RLIMIT_NOFILE)")?;
    if let ClientsFrom::Socket(path, _) = &command.clients {
        log::info!("clients are served at {}", path.display());
    }
    let signal = match clients {
        Clients::One(client) => tokio::select! {
            () = attend(service.clone(), client) => None,
            signal = interrupt.received() => Some(signal),
        },
        Clients::Many(listener) => tokio::select! {
            failed = listener.serve(&service) => {
                failed.context("accepting clients")?;
                None
            }
            signal = interrupt.received() => Some(signal),
        },
    };
    // An interrupt has ended them all; a client's farewell has not.
    service.idle().await;
    Ok(signal.map_or(0, |signal| 128 + signal))
}
