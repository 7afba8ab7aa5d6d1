//! The flags of `pyspawner serve`.
//!
//! Runs on: the launcher.

use std::os::fd::{BorrowedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{Group, User};

use super::JobOptions;
use crate::config;
use crate::config::Tenants;
use crate::io::api::protocol::Event;
use crate::io::commands::serve::{ClientsFrom, Command};
use crate::io::http::{self, Address};
use crate::io::socket_file::Access;
use crate::launcher::settings::processors;
use crate::launcher::user_namespace;
use crate::sys::{files, messages};

/// Start children for clients of the Python package, until they have gone.
///
/// With --socket it serves any number of clients, of this user, of root and of those that --allow-uid names, until it is interrupted.
#[derive(Args)]
pub(in crate::launcher) struct Arguments {
    #[command(flatten)]
    options: JobOptions,
    #[command(flatten)]
    own: OwnArguments,
}

#[derive(Args)]
#[command(next_help_heading = "Options")]
pub(in crate::launcher) struct OwnArguments {
    /// Where to listen: a Unix socket (SOCK_SEQPACKET) that is made there.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The socket's mode, in octal, such as 0660: who cannot write to it cannot connect. By default 0600.
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    socket_mode: Option<u32>,
    /// The socket's group, by name or number. Without --socket-mode its members may connect.
    #[arg(long, value_name = "GROUP", value_parser = parse_group)]
    socket_group: Option<u32>,
    /// Serve this user too, by name or number, if the socket's mode lets it connect. May be given several times.
    ///
    /// Clients are trusted as the operator is: they choose limits, and a chroot.
    #[arg(long, value_name = "USER", value_parser = parse_user)]
    allow_uid: Vec<u32>,
    /// Take jobs over HTTP there: ADDRESS:PORT, or unix:PATH, for which --socket-mode and the like hold too.
    #[arg(long, value_name = "WHERE", conflicts_with = "client_fd")]
    http: Option<Address>,
    /// The file with the HTTP clients' tokens (docs/http.md). Without, only this machine is served.
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// How long jobs may take to end after SIGTERM, with --http.
    #[arg(long, value_name = "DURATION", value_parser = config::parse_duration)]
    drain: Option<Duration>,
    /// The number of an open descriptor that is connected to the only client.
    #[arg(long, value_name = "N", conflicts_with = "socket")]
    client_fd: Option<RawFd>,
}

impl Arguments {
    pub(in crate::launcher) fn split(self) -> (JobOptions, OwnArguments) {
        (self.options, self.own)
    }
}

impl OwnArguments {
    /// The number under which the only client's end is open.
    pub(in crate::launcher) fn client_fd(&self) -> Option<RawFd> {
        self.client_fd
    }

    /// `profile` is the name of the profile that jobs are run with.
    pub(in crate::launcher) fn into_command(
        self,
        file: &config::File,
        profile: String,
    ) -> anyhow::Result<Command> {
        let http = match (&self.http, &file.serve.http) {
            (Some(address), _) => Some(address.clone()),
            // Clients that start a host of their own may share a configuration with a service.
            (None, Some(text)) if self.client_fd.is_none() => {
                let address = text.parse().map_err(anyhow::Error::msg);
                Some(address.context("serve.http")?)
            }
            (None, _) => None,
        };
        let is_of_a_socket =
            self.socket_mode.is_some() || self.socket_group.is_some() || !self.allow_uid.is_empty();
        ensure!(
            !is_of_a_socket || self.socket.is_some() || matches!(http, Some(Address::Unix(_))),
            "--socket-mode, --socket-group and --allow-uid are of a Unix socket: --socket, or --http unix:PATH"
        );
        ensure!(
            user_namespace::has_privilege()?
                || (self.socket_group.is_none() && self.allow_uid.is_empty()),
            "--socket-group and --allow-uid need CAP_SYS_ADMIN: an ordinary user's host is in a user namespace, in which other \
             users have no ids"
        );
        let access = Access {
            mode: self.socket_mode.or(self.socket_group.map(|_| 0o660)),
            group: self.socket_group,
            uids: self.allow_uid,
        };
        let concurrency = match &http {
            // HTTP has a queue, in which jobs wait better than for a processor.
            Some(_) => Some(file.pool.concurrency.map_or_else(processors, Ok)?),
            None => file.pool.concurrency,
        };
        let http = http
            .map(|address| {
                let token_file = self.tokens.as_ref().or(file.serve.tokens.as_ref());
                http_settings(&file.serve, address, access.clone(), token_file, profile).map(
                    |settings| http::Settings {
                        drain: self.drain.unwrap_or(settings.drain),
                        queue_timeout: file.pool.queue_timeout,
                        most_at_once: concurrency.unwrap_or(usize::MAX),
                        ..settings
                    },
                )
            })
            .transpose()?;
        let clients = match (self.socket, self.client_fd) {
            (Some(path), _) => Some(ClientsFrom::Socket(std::path::absolute(path)?, access)),
            (None, Some(fd)) => {
                let fd = leave_for_host(fd).with_context(|| format!("--client-fd {fd}"))?;
                Some(ClientsFrom::Descriptor(fd))
            }
            (None, None) => None,
        };
        ensure!(
            clients.is_some() || http.is_some(),
            "where to listen? hint: --socket PATH for the Python package, --http 127.0.0.1:8000 for HTTP"
        );
        Ok(Command {
            clients,
            http,
            concurrency,
            queue: file.pool.queue.unwrap_or(1000),
        })
    }
}

fn http_settings(
    serve: &config::Serve,
    address: Address,
    access: Access,
    token_file: Option<&PathBuf>,
    profile_name: String,
) -> anyhow::Result<http::Settings> {
    let address = match address {
        Address::Unix(path) => Address::Unix(std::path::absolute(path)?),
        tcp => tcp,
    };
    if let (Address::Tcp(tcp), None) = (&address, token_file) {
        ensure!(
            tcp.ip().is_loopback(),
            "--http {tcp}: whoever reaches this address could run jobs; hint: --tokens FILE says who may (docs/http.md), \
             127.0.0.1 serves this machine alone"
        );
    }
    let token_file = token_file.map(std::path::absolute).transpose()?;
    let tenants = match &token_file {
        Some(path) => Tenants::read(path)?,
        None => Tenants::anybody(),
    };
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let (files, _) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit(RLIMIT_NOFILE)")?;
    let connections = bytes(files / 4).clamp(16, 4096);
    Ok(http::Settings {
        address,
        access,
        tenants,
        token_file,
        profile_name,
        keeping: http::Keeping {
            ttl: serve.result_ttl,
            bytes: bytes(serve.result_memory),
        },
        bounds: http::Bounds {
            connections: serve.connections.unwrap_or(connections).max(1),
            body: bytes(serve.body),
            bodies: bytes(serve.body).saturating_mul(4).max(64 << 20),
            head: Duration::from_secs(10),
            body_time: Duration::from_secs(60),
            write: Duration::from_secs(30),
        },
        queue_timeout: None,
        most_at_once: 1,
        drain: serve.drain,
    })
}

fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected a mode in octal, such as 0660".to_owned()),
    }
}

fn parse_group(text: &str) -> Result<u32, String> {
    let gid = |name: &str| Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()));
    parse_id(text, "group", gid)
}

fn parse_user(text: &str) -> Result<u32, String> {
    let uid = |name: &str| Ok(User::from_name(name)?.map(|user| user.uid.as_raw()));
    parse_id(text, "user", uid)
}

/// A number, or the name of somebody who has one.
fn parse_id(
    text: &str,
    kind: &str,
    by_name: impl FnOnce(&str) -> nix::Result<Option<u32>>,
) -> Result<u32, String> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    match by_name(text) {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(format!("there is no such {kind}")),
        Err(errno) => Err(errno.to_string()),
    }
}

/// Tells the only client why there will be no host.
pub(in crate::launcher) fn tell_refusal(client: RawFd, error: &anyhow::Error) {
    let detail = format!("{error:#}");
    let event = Event::Failed {
        kind: "configuration",
        detail: &detail,
    };
    // SAFETY: only for the call; the number was given for this, and a wrong one is EBADF.
    let client = unsafe { BorrowedFd::borrow_raw(client) };
    if let Err(errno) = messages::send(client, &event.encode(), &[]) {
        log::debug!("the client is not told: {errno}");
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
