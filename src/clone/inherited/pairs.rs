//! Which descriptors are the two ends of one pipe, or of one pair of sockets.
//!
//! Runs on: the main thread.

use std::collections::HashMap;
use std::os::fd::RawFd;

use nix::fcntl::OFlag;
use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};
use nix::sys::stat::SFlag;

use super::table::Entry;

/// The ends of one pipe, or of one pair of sockets, by number. For sockets the kernel does not tell; those of
/// a pair are made one after the other, and so are their inode numbers. Were two of different pairs taken
/// for one, they would lead to each other within a job, and to nobody else.
pub(super) fn partners<'a>(entries: &[&'a Entry]) -> HashMap<RawFd, &'a Entry> {
    let mut found = HashMap::new();
    let mut pair = |one: &'a Entry, other: &'a Entry| {
        if !found.contains_key(&one.number) && !found.contains_key(&other.number) {
            found.insert(one.number, other);
            found.insert(other.number, one);
        }
    };
    let with_kind = |kind| entries.iter().filter(move |entry| entry.kind() == kind);
    let pipes_with =
        |access| with_kind(SFlag::S_IFIFO).filter(move |entry| entry.access() == access);
    let writers: HashMap<_, &'a Entry> = pipes_with(OFlag::O_WRONLY)
        .map(|entry| (entry.file(), *entry))
        .collect();
    for reader in pipes_with(OFlag::O_RDONLY) {
        if let Some(writer) = writers.get(&reader.file()) {
            pair(reader, writer);
        }
    }
    let ends: HashMap<_, &'a Entry> = with_kind(SFlag::S_IFSOCK)
        .filter(|entry| is_end_of_pair(entry))
        .map(|entry| (entry.status.st_ino, *entry))
        .collect();
    let mut inodes: Vec<_> = ends.keys().copied().collect();
    inodes.sort_unstable();
    // Those with successive numbers first, since they are so more likely.
    for has_next_number in [true, false] {
        for inode in &inodes {
            let (one, other) = (ends[inode], ends.get(&(inode + 1)));
            if let Some(other) = other
                && (other.number == one.number + 1 || !has_next_number)
            {
                pair(one, other);
            }
        }
    }
    found
}

/// Whether a socket may be from `socketpair(2)`: connected, without a name on either side.
fn is_end_of_pair(entry: &Entry) -> bool {
    let is_unnamed = |address: nix::Result<SockaddrStorage>| {
        let address = address.ok();
        let address = address.as_ref().and_then(SockaddrStorage::as_unix_addr);
        address.is_some_and(|address| address.path().is_none() && address.as_abstract().is_none())
    };
    is_unnamed(getsockname(entry.number)) && is_unnamed(getpeername(entry.number))
}
