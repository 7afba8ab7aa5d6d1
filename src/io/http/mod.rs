//! `serve --http`: jobs over HTTP. See `docs/http.md`.
//!
//! Runs on: the I/O thread.
//!
//! A thin face over the pool: [`routes`] turns requests into jobs, [`run`] runs them, [`jobs`] keeps what is known of
//! each, and [`server`] has the connections. Nothing of a request is ever in a child's memory but the job's own part.

mod events;
mod job;
mod jobs;
mod map;
mod metrics;
mod problem;
mod room;
mod routes;
mod run;
mod schema;
mod server;
mod service;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Tenants;
use crate::io::socket_file::Access;
pub(crate) use server::Server;

/// Where HTTP is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl std::str::FromStr for Address {
    type Err = String;

    /// `ADDR:PORT`, or `unix:PATH`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err("expected a path after unix:".to_owned()),
                path => Ok(Self::Unix(path.into())),
            };
        }
        // No look-up of names: what is listened at is an address.
        let numeric = text.replacen("localhost:", "127.0.0.1:", 1);
        numeric.parse().map(Self::Tcp).map_err(|_| {
            format!(
                "{text:?}: expected ADDRESS:PORT such as 127.0.0.1:8000 or [::1]:8000, or unix:PATH"
            )
        })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What the service goes by.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub address: Address,
    /// For a Unix socket.
    pub access: Access,
    pub tenants: Tenants,
    /// Where the tenants are from.
    pub token_file: Option<PathBuf>,
    pub profile_name: String,
    pub keeping: Keeping,
    pub bounds: Bounds,
    pub queue_timeout: Option<Duration>,
    /// How many jobs run at once.
    pub most_at_once: usize,
    /// How long the jobs that were taken may take to end after SIGTERM.
    pub drain: Duration,
}

impl Settings {
    /// The files that it opens or makes itself, with what they are.
    pub(crate) fn files(&self) -> Vec<(&'static str, &Path)> {
        let mut files = Vec::new();
        if let Address::Unix(path) = &self.address {
            files.push(("the HTTP socket", path.as_path()));
        }
        if let Some(path) = &self.token_file {
            files.push(("the token file", path.as_path()));
        }
        files
    }
}

/// How long, and how much of, what has ended is kept.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Keeping {
    pub ttl: Duration,
    /// Bytes of records and output.
    pub bytes: usize,
}

/// What a stranger may have of the service.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Bounds {
    /// Open connections.
    pub connections: usize,
    /// Bytes of one body.
    pub body: usize,
    /// Bytes of all bodies that are being read.
    pub bodies: usize,
    /// How long a request's head may take, and a connection may be idle.
    pub head: Duration,
    /// How long a body may take.
    pub body_time: Duration,
    /// How long a reader may take nothing of a response.
    pub write: Duration,
}
