//! What the names that children must not see lead to at the moment.
//!
//! A clone hides what is there when it is made ([`crate::sandbox::root`]). A host that replaces or
//! makes such a file later shows it to a spare, which therefore must not get a job any more.

use std::cell::RefCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::sys::name_watch::NameWatch;

/// Where a look may take for ever (`statfs(2)`).
const REMOTE: &[libc::c_long] = &[
    0x6969,      // NFS
    0x517B,      // SMB
    0xFE53_4D42, // SMB2
    0xFF53_4D42, // CIFS
    0x6573_5546, // FUSE
    0x0187,      // autofs
    0x00C3_6400, // Ceph
    0x5346_414F, // AFS
    0x0102_1997, // 9P
];

/// The names, as the host knows them.
pub struct HiddenNames {
    names: Vec<PathBuf>,
    /// `None`: the kernel does not tell, and each look is at all of them.
    watch: Option<NameWatch>,
    last: RefCell<Option<Last>>,
}

/// What was found at each: device and inode.
pub type Found = Rc<[Option<(u64, u64)>]>;

struct Last {
    found: Found,
    /// Those of which the kernel does not tell what becomes of them, since a link is on the way.
    unwatched: Vec<usize>,
}

impl HiddenNames {
    /// `None` if to look at one of them might take for ever.
    pub fn new(names: Vec<PathBuf>) -> Option<Self> {
        let remote = names.iter().find(|name| is_remote(name));
        if let Some(name) = remote {
            log::info!(
                "no spare children are kept, since {}, which is hidden, is on a remote file system",
                name.display()
            );
        }
        remote.is_none().then(|| Self {
            names,
            watch: watch_names()
                .inspect_err(|error| log::info!("hidden names are looked at each time: {error}"))
                .ok(),
            last: RefCell::default(),
        })
    }

    /// Looks at all of them, or asks the kernel whether that is needed: a microsecond or two each
    /// way.
    pub fn look(&self) -> Found {
        let has_news = self.watch.as_ref().is_none_or(NameWatch::has_news);
        let mut last = self.last.borrow_mut();
        if let (false, Some(last)) = (has_news, &*last)
            && last
                .unwatched
                .iter()
                .all(|&place| look_at(&self.names[place]) == last.found[place])
        {
            return last.found.clone();
        }
        // Watched first: what happens between that and the look is news the next time.
        let unwatched = self.watch.as_ref().map(|watch| {
            watch.forget();
            let all = 0..self.names.len();
            all.filter(|&place| !watch.watch(&self.names[place]))
                .collect()
        });
        let found: Found = self.names.iter().map(|name| look_at(name)).collect();
        *last = unwatched.map(|unwatched| Last {
            found: found.clone(),
            unwatched,
        });
        found
    }
}

fn watch_names() -> std::io::Result<NameWatch> {
    Ok(NameWatch::start(File::open(
        "/proc/thread-self/mountinfo",
    )?)?)
}

fn look_at(name: &Path) -> Option<(u64, u64)> {
    let found = nix::sys::stat::stat(name).ok()?;
    Some((found.st_dev, found.st_ino))
}

fn is_remote(name: &Path) -> bool {
    let nearest = name.ancestors().find(|path| fs::metadata(path).is_ok());
    let found = nearest.and_then(|path| nix::sys::statfs::statfs(path).ok());
    found.is_some_and(|found| REMOTE.contains(&found.filesystem_type().0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_replaced_or_made_is_noticed() {
        let folder = std::env::temp_dir().join(format!("pyspawner-names-{}", std::process::id()));
        fs::create_dir_all(folder.join("bind")).expect("writable temporary folder");
        let (secret, other) = (folder.join("secret"), folder.join("other"));
        let later = folder.join("bind/later");
        let names = HiddenNames::new(vec![secret.clone(), later.clone()]).expect("a local folder");
        for path in [&secret, &other] {
            fs::write(path, "x").expect("writable");
        }
        let first = names.look();
        assert_eq!(names.look(), first);
        fs::write(&secret, "y").expect("writable");
        assert_eq!(names.look(), first, "its content is hidden all the same");
        fs::rename(&other, &secret).expect("in one folder");
        let second = names.look();
        assert_ne!(second, first);
        fs::write(later, "x").expect("writable");
        assert_ne!(names.look(), second);
        fs::remove_dir_all(folder).expect("ours");
    }
}
