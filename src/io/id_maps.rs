//! The host's half of a child's way in: what only a process outside the child may do.
//!
//! Runs on: the I/O thread.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;

use anyhow::Context;

use crate::config;
use crate::layer::{Layer, Layers, SetupError};
use crate::sandbox::identity;

/// Writes the child's id maps: one user and one group inside, `host_id` outside
/// (`user_namespaces(7)`). The child waits for [`crate::wire::handshake::GO`] meanwhile, so its
/// process id is its own.
///
/// `root` is the host's id for user 0 inside, if that is to exist besides: a child cannot become
/// a user that is not mapped, and gets EINVAL for that instead of EPERM.
pub(crate) fn write_id_maps(
    pid: libc::pid_t,
    host_id: u32,
    root: Option<u32>,
    layers: &Layers,
) -> Result<(), SetupError> {
    if !layers.has(Layer::UserNamespace) {
        return Ok(());
    }
    let inside = identity::inside_id(layers);
    let mut map = format!("{inside} {host_id} 1\n");
    if let Some(root) = root.filter(|_| inside != 0) {
        map = format!("0 {root} 1\n{map}");
    }
    for file in ["gid_map", "uid_map"] {
        std::fs::write(format!("/proc/{pid}/{file}"), &map).map_err(|error| {
            SetupError::from_io(
                Layer::UserNamespace,
                format!("write {file} {map:?}"),
                &error,
            )
        })?;
    }
    Ok(())
}

/// The host uids that children get, one each while they live. The gid is the same number.
#[derive(Debug)]
pub(crate) struct HostIds {
    base: u32,
    /// Those that no child may have now: living children have them, or an account of the machine. Empty if there is but one, which
    /// all share.
    taken: Vec<bool>,
    /// One that no child ever has.
    nobodys: Option<u32>,
    /// Where to look next: an id rests as long as it can, so that what one child left behind
    /// in a writable chroot is not soon another's.
    next: usize,
}

impl HostIds {
    /// Chooses a range that this process may map, from `/proc/self/uid_map`.
    ///
    /// Where fewer than 1,000 ids besides the ordinary ones are mapped, as for a user without
    /// subordinate ids, all children share the host's own, which the log says.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub(crate) fn choose() -> anyhow::Result<Self> {
        let path = Path::new("/proc/self/uid_map");
        let map = std::fs::read_to_string(path)?;
        let Some((base, count)) = config::ids_for_children(&map) else {
            let own = nix::unistd::geteuid().as_raw();
            log::warn!(
                "children have no user of their own: outside they are the user who started \
                 pyspawner, and can read that user's files unless these are hidden; hint: \
                 subordinate ids (/etc/subuid, newuidmap), or at least 65,536 ids for a container"
            );
            return Ok(Self {
                base: own,
                taken: Vec::new(),
                nobodys: None,
                next: 0,
            });
        };
        let mut taken = vec![false; count as usize];
        for id in named_ids()? {
            if let Some(place) = id.checked_sub(base).and_then(|n| taken.get_mut(n as usize)) {
                *place = true;
            }
        }
        let free = taken.iter().position(|taken| !taken);
        let nobodys = free.context("every id that children may have is an account's")?;
        taken[nobodys] = true;
        Ok(Self {
            base,
            taken,
            nobodys: Some(base + nobodys as u32),
            // Anywhere, so that several hosts seldom give out the same.
            next: RandomState::new().build_hasher().finish() as usize % count as usize,
        })
    }

    /// Whether each child gets one of its own, which is not the host's.
    pub(crate) fn are_own(&self) -> bool {
        !self.taken.is_empty()
    }

    /// A uid that no child ever has; `None` if all children share one.
    pub(crate) fn nobodys(&self) -> Option<u32> {
        self.nobodys
    }

    /// A uid that no living child has; `None` if all are in use.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let count = self.taken.len();
        if count == 0 {
            return Some(self.base); // shared by all
        }
        let free = (self.next..self.next + count)
            .map(|place| place % count)
            .find(|place| !self.taken[*place])?;
        self.taken[free] = true;
        self.next = free + 1;
        Some(self.base + free as u32)
    }

    /// Gives back the uid of a child that has been reaped.
    pub(crate) fn give_back(&mut self, id: u32) {
        if let Some(taken) = self.taken.get_mut((id - self.base) as usize) {
            *taken = false;
        }
    }
}

/// The uids and gids that have a name on this machine, or in this container: a file that is given to such an account would be a
/// job's. Those of its files alone; a directory service is not asked for all that it knows.
fn named_ids() -> anyhow::Result<Vec<u32>> {
    let mut named = Vec::new();
    for path in ["/etc/passwd", "/etc/group"] {
        match std::fs::read(path) {
            Ok(text) => named.extend(third_fields(&String::from_utf8_lossy(&text))),
            // A container need not have one.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(path),
        }
    }
    Ok(named)
}

/// The ids in a file of the form of `passwd(5)` or `group(5)`.
fn third_fields(text: &str) -> impl Iterator<Item = u32> {
    let ids = text.lines().map(|line| line.split(':').nth(2));
    ids.filter_map(|id| id?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_from_what_names_them() {
        let text = "root:x:0:0:root:/root:/bin/sh\n+::::::\napp:x:64000:7::/:/bin/false\nbroken\n";
        assert_eq!(third_fields(text).collect::<Vec<_>>(), [0, 64_000]);
    }

    #[test]
    fn an_id_is_given_to_one_child_at_a_time() {
        let mut ids = HostIds {
            base: 5,
            taken: vec![false; 2],
            nobodys: None,
            next: 0,
        };
        assert_eq!(
            (ids.take(), ids.take(), ids.take()),
            (Some(5), Some(6), None)
        );
        ids.give_back(5);
        assert_eq!(ids.take(), Some(5));
    }
}
