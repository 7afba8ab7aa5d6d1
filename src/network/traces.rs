//! What a job without network can leave in its network namespace, made visible.
//!
//! A job has no capability over a slot's namespace, so it can configure nothing there; and no
//! interface there takes packets of IP ([`crate::clone::network_namespace`]), so nothing is ever
//! sent. What is left to it shows in these files, each of which goes on showing the namespace that
//! it was opened in:
//!
//! - `sockstat`, "used": every socket of whatever family that is still open, in another process's
//!   hands, in flight, or on its way to be freed (`__sk_free`). With the sockets go their names, ports and
//!   memberships, so these need no look of their own. (Its other lines count the whole machine.)
//! - `snmp`, `snmp6`, `netstat`: the counters that the next job could read. They count every
//!   packet and every attempt to find a route for one, those of Multipath TCP too.
//! - `ip6_flowlabel`: leases of flow labels, which outlive their sockets by up to a minute and hold an
//!   address of the job's choice (`fl_create`; no capability is asked for).
//!
//! A job that opens no such thing, or closes all that it opened in time, leaves them as they were.
//! `tests/security/test_network_slots.py` looks for what these files do not show.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::uio::pread;

/// More than any of the files has if nothing happened: `netstat` comes to 4 KiB.
const MOST: usize = 16 << 10;

/// The files, open.
pub struct Traces {
    sockstat: OwnedFd,
    /// Those that are compared as a whole.
    others: [OwnedFd; 4],
}

impl Traces {
    /// Opens the files of the network namespace that a thread is in, by its folder in `/proc`.
    ///
    /// # Errors
    /// ENOENT if the kernel does not have them all; then nothing can be shown.
    pub fn open(thread: BorrowedFd<'_>) -> nix::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let open = |path| openat(thread, path, flags, Mode::empty());
        Ok(Self {
            sockstat: open("net/sockstat")?,
            others: [
                open("net/snmp")?,
                open("net/snmp6")?,
                open("net/netstat")?,
                open("net/ip6_flowlabel")?,
            ],
        })
    }

    /// What they say now.
    ///
    /// # Errors
    /// EFBIG if one has grown; else the kernel's.
    pub fn read(&self) -> nix::Result<Vec<u8>> {
        let mut buffer = [0; MOST];
        let mut text = Vec::new();
        let first_line = read(&self.sockstat, &mut buffer)?.split(|byte| *byte == b'\n');
        text.extend(first_line.take(1).flatten());
        for file in &self.others {
            text.extend_from_slice(read(file, &mut buffer)?);
        }
        Ok(text)
    }
}

fn read<'a>(file: &OwnedFd, buffer: &'a mut [u8]) -> nix::Result<&'a [u8]> {
    let length = pread(file, buffer, 0)?;
    if length == buffer.len() {
        return Err(Errno::EFBIG);
    }
    Ok(&buffer[..length])
}
