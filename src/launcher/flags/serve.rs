//! The flags of `pyspawner serve`.
//!
//! Runs on: the launcher.

use std::os::fd::{BorrowedFd, RawFd};
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use nix::unistd::{Group, User};

use super::JobOptions;
use crate::config;
use crate::io::api::listen::Access;
use crate::io::api::protocol::Event;
use crate::io::commands::serve::{ClientsFrom, Command};
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
    #[arg(long, value_name = "PATH", required_unless_present = "client_fd")]
    socket: Option<PathBuf>,
    /// The socket's mode, in octal, such as 0660: who cannot write to it cannot connect. By default 0600.
    #[arg(long, value_name = "MODE", value_parser = parse_mode, requires = "socket")]
    socket_mode: Option<u32>,
    /// The socket's group, by name or number. Without --socket-mode its members may connect.
    #[arg(long, value_name = "GROUP", value_parser = parse_group, requires = "socket")]
    socket_group: Option<u32>,
    /// Serve this user too, by name or number, if the socket's mode lets it connect. May be given several times.
    ///
    /// Clients are trusted as the operator is: they choose limits, and a chroot.
    #[arg(long, value_name = "USER", value_parser = parse_user, requires = "socket")]
    allow_uid: Vec<u32>,
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

    pub(in crate::launcher) fn into_command(self, file: &config::File) -> anyhow::Result<Command> {
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
        let clients = match (self.socket, self.client_fd) {
            (Some(path), _) => ClientsFrom::Socket(std::path::absolute(path)?, access),
            (None, Some(fd)) => {
                let fd = leave_for_host(fd).with_context(|| format!("--client-fd {fd}"))?;
                ClientsFrom::Descriptor(fd)
            }
            (None, None) => unreachable!("clap requires one of them"),
        };
        Ok(Command {
            clients,
            concurrency: file.pool.concurrency,
        })
    }
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
