//! Descriptors by what they are for, on their way to another process or thread.
//!
//! Runs on: the main thread, the I/O thread, a child.
//!
//! A message with descriptors (`SCM_RIGHTS`, `unix(7)`) says by [`Roles`] which there are. They follow in the order of [`Role`].

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

/// What a descriptor is for. The first five have the order of the client protocol (`docs/protocol.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Stdin,
    Stdout,
    Stderr,
    /// The socket between a child and its host, or its client.
    Control,
    /// A sealed memory file with a job's arguments.
    Arguments,
    /// Where a child writes what its job returns.
    Result,
    /// A sealed memory file with a [`super::child_spec::ChildSpec`].
    Spec,
    /// A detached tree, as `open_tree(2)` gives it: a root of the child's own.
    Root,
    /// The folder of a control group.
    Cgroup,
    /// A network namespace.
    Network,
}

impl Role {
    const COUNT: usize = 10;
}

/// Which descriptors there are: a bit for each [`Role`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Roles(u16);

impl Roles {
    /// The length of [`Roles::encode`], in bytes.
    pub(crate) const LENGTH: usize = size_of::<u16>();

    pub(crate) fn of(roles: &[Role]) -> Self {
        Self(roles.iter().fold(0, |bits, role| bits | 1 << *role as u16))
    }

    fn has(self, place: usize) -> bool {
        self.0 & 1 << place != 0
    }

    fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    pub(crate) fn encode(self) -> [u8; Self::LENGTH] {
        self.0.to_le_bytes()
    }

    pub(crate) fn decode(bytes: [u8; Self::LENGTH]) -> Self {
        Self(u16::from_le_bytes(bytes))
    }
}

/// At most one descriptor for each role.
#[derive(Debug)]
pub(crate) struct FdSet<Fd>([Option<Fd>; Role::COUNT]);

impl<Fd> Default for FdSet<Fd> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| None))
    }
}

/// Other descriptors have come than were announced.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{came} of {announced} descriptors came; hint: RLIMIT_NOFILE, fs.file-max")]
pub(crate) struct WrongCount {
    came: usize,
    announced: usize,
}

impl<Fd> FdSet<Fd> {
    /// The same with a descriptor for this role, if there is one.
    pub(crate) fn with(mut self, role: Role, descriptor: impl Into<Option<Fd>>) -> Self {
        self.0[role as usize] = descriptor.into();
        self
    }

    pub(crate) fn put(&mut self, role: Role, descriptor: Fd) {
        self.0[role as usize] = Some(descriptor);
    }

    pub(crate) fn get(&self, role: Role) -> Option<&Fd> {
        self.0[role as usize].as_ref()
    }

    pub(crate) fn take(&mut self, role: Role) -> Option<Fd> {
        self.0[role as usize].take()
    }

    /// Which there are.
    pub(crate) fn roles(&self) -> Roles {
        let places = self.0.iter().enumerate();
        Roles(places.fold(0, |bits, (place, descriptor)| {
            bits | u16::from(descriptor.is_some()) << place
        }))
    }
}

impl<Fd: AsRawFd> FdSet<Fd> {
    /// Their numbers, in the order in which they are sent.
    pub(crate) fn numbers(&self) -> Vec<RawFd> {
        self.0.iter().flatten().map(AsRawFd::as_raw_fd).collect()
    }

    /// The number of the one for this role.
    pub(crate) fn number(&self, role: Role) -> Option<RawFd> {
        self.get(role).map(AsRawFd::as_raw_fd)
    }
}

impl FdSet<OwnedFd> {
    /// Of descriptors that came with a message.
    ///
    /// # Errors
    /// If they are not as many as were announced. They are closed then.
    pub(crate) fn received(roles: Roles, descriptors: Vec<OwnedFd>) -> Result<Self, WrongCount> {
        let (came, announced) = (descriptors.len(), roles.count());
        if came != announced || roles.0 >> Role::COUNT != 0 {
            return Err(WrongCount { came, announced });
        }
        let mut descriptors = descriptors.into_iter();
        Ok(Self(std::array::from_fn(|place| {
            roles.has(place).then(|| descriptors.next()).flatten()
        })))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn file() -> OwnedFd {
        tempfile::tempfile().expect("a file").into()
    }

    #[test]
    fn descriptors_arrive_under_their_roles() {
        let [control, root] = [file(), file()];
        let sent = FdSet::default()
            .with(Role::Root, root.as_fd())
            .with(Role::Control, control.as_fd())
            .with(Role::Spec, None);
        assert_eq!(sent.numbers(), [control.as_raw_fd(), root.as_raw_fd()]);
        let roles = Roles::decode(sent.roles().encode());
        assert_eq!(roles, Roles::of(&[Role::Control, Role::Root]));
        let numbers = sent.numbers();
        let mut came = FdSet::received(roles, vec![control, root]).expect("as announced");
        assert_eq!(came.numbers(), numbers);
        assert_eq!(came.number(Role::Root), Some(numbers[1]));
        assert!(came.take(Role::Control).is_some() && came.take(Role::Control).is_none());
        assert!(came.get(Role::Spec).is_none());
    }

    #[test]
    fn others_than_were_announced_are_refused() {
        let announced = Roles::of(&[Role::Stdin, Role::Stdout]);
        for count in [0, 1, 3] {
            let came = (0..count).map(|_| file()).collect();
            assert!(FdSet::received(announced, came).is_err(), "{count}");
        }
        let unknown = Roles::decode([0, 0x80]);
        assert!(FdSet::received(unknown, vec![file()]).is_err());
    }
}
