//! The kernel's word on whether names may lead elsewhere than they did.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Watches the folders on the way to names (`inotify(7)`), and the mounts of a mount namespace
/// (`proc_pid_mounts(5)`).
pub struct NameWatch {
    folders: Inotify,
    mounts: File,
}

impl NameWatch {
    /// `mounts` is a file `mountinfo`, which belongs to the namespace in which it was opened.
    ///
    /// # Errors
    /// EMFILE if the user has too many inotify instances (`fs.inotify.max_user_instances`).
    pub fn start(mounts: File) -> nix::Result<Self> {
        Ok(Self {
            folders: Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?,
            mounts,
        })
    }

    /// Whether since [`Self::forget`] an entry of a watched folder was made, moved or deleted, or
    /// something was mounted. The latter is said once.
    pub fn has_news(&self) -> bool {
        let mut ask = [
            PollFd::new(self.folders.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.mounts.as_fd(), PollFlags::POLLPRI),
        ];
        poll(&mut ask, PollTimeout::ZERO) != Ok(0)
    }

    /// Forgets the news. The names are to be watched anew then, and after that to be looked at.
    pub fn forget(&self) {
        while self.folders.read_events().is_ok() {}
    }

    /// Watches the folders on the way to a name that there are now. Tells whether it can: not if it is
    /// a link or there is one on the way, or if there is too much to watch.
    pub fn watch(&self, name: &Path) -> bool {
        if name.is_symlink() {
            return false;
        }
        let changes = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::IN_DONT_FOLLOW;
        let mut folders = name.ancestors().skip(1);
        folders.all(|folder| match self.folders.add_watch(folder, changes) {
            // What is not there is made in a folder that is.
            Ok(_) | Err(Errno::ENOENT) => true,
            // A link on the way (ENOTDIR), or too many watches (ENOSPC).
            Err(_) => false,
        })
    }
}
