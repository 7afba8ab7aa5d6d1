//! What the names that children must not see lead to at the moment.
//!
//! A clone hides what is there when it is made ([`crate::sandbox::root`]). A host that replaces or
//! makes such a file later shows it to a spare, which therefore must not get a job any more.

use std::fs;
use std::path::{Path, PathBuf};

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
pub struct HiddenNames(Vec<PathBuf>);

/// What was found at each: device and inode.
#[derive(Debug, PartialEq, Eq)]
pub struct Found(Vec<Option<(u64, u64)>>);

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
        remote.is_none().then_some(Self(names))
    }

    /// Looks at all of them: a microsecond each.
    pub fn look(&self) -> Found {
        let look = |name: &PathBuf| {
            let found = nix::sys::stat::stat(name).ok()?;
            Some((found.st_dev, found.st_ino))
        };
        Found(self.0.iter().map(look).collect())
    }
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
