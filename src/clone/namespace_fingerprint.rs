//! What a job without network can leave in its network namespace, made visible.
//!
//! Runs on: the main thread.
//!
//! A job has no capability over a slot's namespace, so it can configure nothing there; and no
//! interface there takes packets of IP ([`crate::clone::network_namespace`]), so nothing is ever
//! sent. What is left to it shows in these files:
//!
//! - `sockstat`, "used": every socket of whatever family that is still open, in another process's
//!   hands, in flight, or on its way to be freed (`__sk_free`). With the sockets go their names, ports and
//!   memberships, so these need no look of their own. (Its other lines count the whole machine.)
//! - `snmp`, `snmp6`, `netstat`: the counters that the next job could read. They count every
//!   packet and every attempt to find a route for one, those of Multipath TCP too.
//!
//! Flow labels of IPv6 outlive their sockets, too, but no job is given one (`seccomp_policy.toml`).
//!
//! A job that opens no such thing, or closes all that it opened in time, leaves them as they were.
//! `tests/security/test_network_slots.py` looks for what these files do not show.

use std::os::fd::BorrowedFd;

use crate::sys::files::read_whole;

/// More than the files have together if nothing happened: `netstat` comes to 4 KiB.
pub(crate) const ROOM: usize = 64 << 10;

/// Those that are compared as a whole.
const WHOLE: [&str; 3] = ["net/snmp", "net/snmp6", "net/netstat"];

/// What these files say of the network namespace that a thread is in, whose folder in `/proc` this is:
/// its length in `room`.
///
/// # Errors
/// ENOENT if the kernel does not have them all, EFBIG if one has grown: then nothing can be shown.
pub(crate) fn read(thread: BorrowedFd<'_>, room: &mut [u8]) -> nix::Result<usize> {
    let sockets = read_whole(thread, "net/sockstat", room)?;
    let line = sockets.split(|byte| *byte == b'\n').next();
    let mut length = line.map_or(0, <[u8]>::len);
    for path in WHOLE {
        length += read_whole(thread, path, &mut room[length..])?.len();
    }
    Ok(length)
}
