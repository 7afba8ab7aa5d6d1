//! `pyspawner serve`: a host for clients.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::JobOptions;
use crate::api::listen::Listener;
use crate::api::protocol::Event;
use crate::api::{Service, attend};
use crate::config::Profile;
use crate::pool::Pool;
use crate::pool::interrupt::Interrupt;
use crate::sys::files;
use crate::sys::messages::Socket;

/// Start children for clients of the Python package, until they have gone.
///
/// With --socket it serves any number of clients, of this user or root, until it is interrupted.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    options: JobOptions,
    #[command(flatten)]
    own: OwnArguments,
}

#[derive(Args)]
#[command(next_help_heading = "Options")]
pub(super) struct OwnArguments {
    /// Where to listen: a Unix socket (SOCK_SEQPACKET) that is made there.
    #[arg(long, value_name = "PATH", required_unless_present = "client_fd")]
    socket: Option<PathBuf>,
    /// The number of an open descriptor that is connected to the only client.
    #[arg(long, value_name = "N", conflicts_with = "socket")]
    client_fd: Option<RawFd>,
}

#[derive(Serialize, Deserialize)]
pub(super) enum Command {
    Socket(PathBuf),
    ClientFd(RawFd),
}

impl Command {
    /// What it makes itself, with what that is.
    pub(super) fn files(&self) -> Vec<(&'static str, &Path)> {
        match self {
            Self::Socket(path) => vec![("the socket", path.as_path())],
            Self::ClientFd(_) => Vec::new(),
        }
    }
}

impl Arguments {
    pub(super) fn split(self) -> (JobOptions, OwnArguments) {
        (self.options, self.own)
    }
}

impl OwnArguments {
    pub(super) fn into_command(self) -> anyhow::Result<Command> {
        match (self.socket, self.client_fd) {
            (Some(path), _) => Ok(Command::Socket(std::path::absolute(path)?)),
            (None, Some(fd)) => {
                let fd = leave_for_host(fd).with_context(|| format!("--client-fd {fd}"))?;
                Ok(Command::ClientFd(fd))
            }
            (None, None) => unreachable!("clap requires one of them"),
        }
    }
}

/// Moves a descriptor of the caller's out of the way of the numbers that a host is started with.
fn leave_for_host(fd: RawFd) -> anyhow::Result<RawFd> {
    const ABOVE: RawFd = 10;
    let moved = files::duplicate_above(fd, ABOVE)?;
    files::set_close_on_exec(moved, false)?;
    if fd > libc::STDERR_FILENO {
        files::set_close_on_exec(fd, true)?; // it has done its part
    }
    Ok(moved)
}

/// Where clients come from, open before the interpreter is warm.
pub(super) enum Clients {
    One(Socket),
    Many(Listener),
}

impl Clients {
    pub(super) fn open(command: &Command) -> anyhow::Result<Self> {
        match command {
            Command::Socket(path) => Ok(Self::Many(Listener::open(path)?)),
            Command::ClientFd(fd) => {
                // SAFETY: `into_command` left it open for this process, and nobody else has it.
                let fd = unsafe { OwnedFd::from_raw_fd(*fd) };
                files::set_close_on_exec(fd.as_raw_fd(), true)?;
                Ok(Self::One(Socket::new(fd).context("--client-fd")?))
            }
        }
    }

    /// Tells those who have come that there will be no host.
    pub(super) async fn tell_failure(&self, kind: &str, detail: &str) {
        let event = Event::Failed { kind, detail };
        match self {
            // It may have gone.
            Self::One(client) => drop(client.send(&event.encode()).await),
            Self::Many(listener) => listener.turn_away(&event),
        }
    }
}

pub(super) async fn serve(
    pool: &Pool,
    interrupt: &Interrupt,
    profile: Rc<Profile>,
    clients: Clients,
) -> anyhow::Result<i32> {
    let service = Service::new(pool.clone(), profile).context("getrlimit(RLIMIT_NOFILE)")?;
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
