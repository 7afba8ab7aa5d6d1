//! What the names that children must not see lead to at the moment.
//!
//! Runs on: the I/O thread.
//!
//! A clone hides what is there when it is made ([`crate::sandbox::root`]). A host that replaces or
//! makes such a file later shows it to a spare, which therefore must not get a job any more.

use std::cell::RefCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::sys::files::FileId;
use crate::sys::mounts::is_remote;
use crate::sys::name_watch::{NameWatch, News};

/// The names, as the host knows them.
pub(crate) struct HiddenPathWatch {
    names: Vec<PathBuf>,
    /// `None`: the kernel does not tell, and each look is at all of them.
    watch: Option<NameWatch>,
    last: RefCell<Last>,
}

/// What was found at each. Of a name that is watched it is enough to know that nothing happened on the way
/// to it: a file that is replaced and put back is the same, but what covered it is gone.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Found {
    /// How often something happened.
    changes: u64,
    at: Rc<[Option<Identity>]>,
}

/// With the time of its last change, of a name that is not watched.
type Identity = (FileId, Option<(i64, i64)>);

#[derive(Default)]
struct Last {
    found: Found,
    /// Those of which the kernel does not tell what becomes of them.
    unwatched: Vec<usize>,
}

impl HiddenPathWatch {
    /// `None` if to look at one of them might take for ever.
    pub(crate) fn new(names: Vec<PathBuf>) -> Option<Self> {
        let remote = names.iter().find(|name| lies_on_remote(name));
        if let Some(name) = remote {
            log::info!(
                "no spare children are kept, since {}, which is hidden, is on a remote file system",
                name.display()
            );
        }
        remote.is_none().then(|| {
            let watch = File::open("/proc/thread-self/mountinfo")
                .and_then(|mounts| Ok(NameWatch::start(mounts)?))
                .inspect_err(|error| log::info!("hidden names are looked at each time: {error}"));
            let names = Self {
                watch: watch.ok(),
                last: RefCell::default(),
                names,
            };
            names.look_at_all();
            names
        })
    }

    /// Looks at those that may lead elsewhere than at the last look.
    pub(crate) fn look(&self) -> Found {
        let news = self.watch.as_ref().map(NameWatch::news);
        if news.is_none_or(News::any) {
            self.last.borrow_mut().found.changes += u64::from(news.is_some_and(|news| news.names));
            return self.look_at_all();
        }
        let last = self.last.borrow();
        let is_as_before = |&place: &usize| self.look_at(place, true) == last.found.at[place];
        if last.unwatched.iter().all(is_as_before) {
            return last.found.clone();
        }
        drop(last);
        self.look_at_all()
    }

    fn look_at_all(&self) -> Found {
        let all = 0..self.names.len();
        let is_unwatched: Vec<bool> = match &self.watch {
            // First: what happens between that and the look is news the next time.
            Some(watch) => {
                watch.clear();
                let names = self.names.iter();
                names.map(|name| !watch.watch(name)).collect()
            }
            None => vec![true; self.names.len()],
        };
        let mut last = self.last.borrow_mut();
        let looks = all
            .clone()
            .map(|place| self.look_at(place, is_unwatched[place]));
        last.found.at = looks.collect();
        last.unwatched = all.filter(|&place| is_unwatched[place]).collect();
        last.found.clone()
    }

    fn look_at(&self, place: usize, is_unwatched: bool) -> Option<Identity> {
        let found = nix::sys::stat::stat(&self.names[place]).ok()?;
        let changed = is_unwatched.then_some((found.st_ctime, found.st_ctime_nsec));
        Some((FileId::from(&found), changed))
    }
}

fn lies_on_remote(name: &Path) -> bool {
    let nearest = name.ancestors().find(|path| fs::metadata(path).is_ok());
    let found = nearest.and_then(|path| nix::sys::statfs::statfs(path).ok());
    found.is_some_and(|found| is_remote(found.filesystem_type()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_replaced_or_made_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().canonicalize().expect("it is there");
        fs::create_dir(folder.join("bind")).expect("writable");
        let (secret, other) = (folder.join("secret"), folder.join("other"));
        let later = folder.join("bind/later");
        for path in [&secret, &other] {
            fs::write(path, "x").expect("writable");
        }
        let names =
            HiddenPathWatch::new(vec![secret.clone(), later.clone()]).expect("a local folder");
        let first = names.look();
        assert_eq!(names.look(), first);
        fs::write(&secret, "y").expect("writable");
        assert_eq!(names.look(), first, "its content is hidden all the same");
        fs::rename(&other, &secret).expect("in one folder");
        let second = names.look();
        assert_ne!(second, first);
        fs::write(later, "x").expect("writable");
        assert_ne!(names.look(), second);
    }

    /// What covers it in a child goes with its entry in the folder.
    #[test]
    fn what_is_replaced_and_put_back_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().canonicalize().expect("it is there");
        let [secret, kept, linked] = ["secret", "kept", "linked"].map(|name| folder.join(name));
        fs::write(&secret, "x").expect("writable");
        std::os::unix::fs::symlink("secret", &linked).expect("writable");
        for name in [&secret, &linked] {
            let names = HiddenPathWatch::new(vec![name.clone()]).expect("a local folder");
            let before = names.look();
            fs::hard_link(&secret, &kept).expect("one file system");
            fs::write(folder.join("new"), "z").expect("writable");
            fs::rename(folder.join("new"), &secret).expect("in one folder");
            fs::rename(&kept, &secret).expect("in one folder");
            assert_ne!(names.look(), before, "{}", name.display());
        }
    }
}
