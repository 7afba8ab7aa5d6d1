//! The kernel's word on whether names may lead elsewhere than they did.
//!
//! Runs on: any process.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use nix::sys::statfs::statfs;

/// File systems of which inotify tells everything (`statfs(2)`): nobody but this kernel changes them.
const LOCAL: &[libc::c_long] = &[
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683E, // Btrfs
    0xCA45_1A4E, // bcachefs
    0xF2F5_2010, // F2FS
    0x2FC1_2FC1, // ZFS
    0x0102_1994, // tmpfs
    0x8584_58F6, // ramfs
    0x794C_7630, // overlay
    0x7371_7368, // squashfs
    0xE0F5_E1E2, // EROFS
];

/// Watches the folders on the way to names (`inotify(7)`), and the mounts of a mount namespace
/// (`proc_pid_mounts(5)`).
pub(crate) struct NameWatch {
    folders: Inotify,
    /// Of each watched folder, the entries that are on the way.
    ways: RefCell<HashMap<WatchDescriptor, HashSet<OsString>>>,
    mounts: File,
}

/// What may have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// A name, or a folder on the way, was made, moved, deleted, or opened or closed to somebody.
    pub names: bool,
    /// Something was mounted or unmounted.
    pub mounts: bool,
}

impl News {
    pub(crate) fn any(self) -> bool {
        self.names || self.mounts
    }
}

impl NameWatch {
    /// `mounts` is a file `mountinfo`, which belongs to the namespace in which it was opened.
    ///
    /// # Errors
    /// EMFILE if the user has too many inotify instances (`fs.inotify.max_user_instances`).
    pub(crate) fn start(mounts: File) -> nix::Result<Self> {
        Ok(Self {
            folders: Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?,
            ways: RefCell::default(),
            mounts,
        })
    }

    /// The news since the last time, which are said once. The names are to be watched anew then, and
    /// looked at after that.
    pub(crate) fn news(&self) -> News {
        let mut ask = [
            PollFd::new(self.folders.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.mounts.as_fd(), PollFlags::POLLPRI),
        ];
        match poll(&mut ask, PollTimeout::ZERO) {
            Ok(0) => News::default(),
            Ok(_) => News {
                names: ask[0].any() != Some(false) && self.concern_names(),
                mounts: ask[1].any() != Some(false),
            },
            Err(_) => News {
                names: true,
                mounts: true,
            },
        }
    }

    /// Takes what has happened in the folders, and tells whether it was on the way to a name.
    fn concern_names(&self) -> bool {
        let mut concern = false;
        loop {
            match self.folders.read_events() {
                Ok(events) => concern |= events.iter().any(|event| self.concerns_name(event)),
                Err(Errno::EAGAIN) => return concern,
                Err(_) => return true,
            }
        }
    }

    fn concerns_name(&self, event: &InotifyEvent) -> bool {
        // More has happened than could be kept, for one.
        let Some(name) = &event.name else {
            return true;
        };
        let ways = self.ways.borrow();
        ways.get(&event.wd).is_some_and(|way| way.contains(name))
    }

    /// Forgets the names that are watched. Comes before they are watched anew.
    pub(crate) fn clear(&self) {
        self.ways.borrow_mut().clear();
    }

    /// Watches the folders on the way to a name, as they are now. Tells whether it can: not if there is
    /// a link on the way, or a file system that others may change, or too much to watch.
    pub(crate) fn watch(&self, name: &Path) -> bool {
        let changes = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::IN_DONT_FOLLOW;
        let mut steps: Vec<&Path> = name.ancestors().collect();
        // From the root on: what is not there yet is made in a folder that is watched by then.
        steps.reverse();
        for step in steps.windows(2) {
            let [folder, next] = step else { continue };
            let Some(entry) = next.file_name() else {
                return false; // "..", which is no entry
            };
            let watched = match self.folders.add_watch(*folder, changes) {
                Ok(watched) => watched,
                Err(Errno::ENOENT) => return true,
                // A link (ENOTDIR), a folder that is closed, too many watches (ENOSPC).
                Err(_) => return false,
            };
            let mut ways = self.ways.borrow_mut();
            ways.entry(watched).or_default().insert(entry.to_owned());
            if !is_local(folder) {
                return false;
            }
        }
        // Last: what becomes a link later is news.
        match fs::symlink_metadata(name) {
            Ok(found) => !found.is_symlink(),
            Err(error) => error.kind() == ErrorKind::NotFound,
        }
    }
}

fn is_local(folder: &Path) -> bool {
    statfs(folder).is_ok_and(|found| LOCAL.contains(&found.filesystem_type().0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn started() -> NameWatch {
        let mounts = File::open("/proc/thread-self/mountinfo").expect("/proc is mounted");
        NameWatch::start(mounts).expect("an inotify instance")
    }

    #[test]
    fn what_happens_on_the_way_to_a_name_is_news_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().canonicalize().expect("it is there");
        let name = folder.join("a/b/secret");
        let watch = started();
        let anew = || {
            watch.clear();
            watch.watch(&name)
        };
        assert!(anew());
        let is_news = |what: &dyn Fn() -> std::io::Result<()>| {
            what().expect("it is possible");
            let news = watch.news().names;
            anew();
            assert!(!watch.news().names, "it is said once");
            news
        };
        assert!(is_news(&|| fs::create_dir(folder.join("a"))));
        assert!(!is_news(&|| fs::write(folder.join("a/other"), "")));
        assert!(is_news(&|| fs::create_dir(folder.join("a/b"))));
        assert!(is_news(&|| fs::write(&name, "1")));
        assert!(!is_news(&|| fs::write(&name, "2")), "its content");
        assert!(is_news(&|| fs::rename(folder.join("a/other"), &name)));
        assert!(is_news(&|| fs::rename(folder.join("a"), folder.join("c"))));
        assert!(!is_news(&|| fs::remove_file(folder.join("c/b/secret"))));
        assert!(anew());
        assert!(is_news(&|| symlink("c", folder.join("a"))));
        assert!(!anew());
    }

    #[test]
    fn a_link_on_the_way_and_what_others_may_change_is_not_watched() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().canonicalize().expect("it is there");
        symlink("elsewhere", folder.join("link")).expect("a link");
        let watch = started();
        assert!(watch.watch(&folder.join("name")));
        assert!(!watch.watch(&folder.join("link")));
        assert!(!watch.watch(&folder.join("link/name")));
        assert!(!watch.watch(Path::new("/proc/sys/kernel/hostname")));
    }
}
