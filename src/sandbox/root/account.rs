//! The one user that children have: what `/etc/passwd` and `/etc/group` say of it, and its home.
//!
//! Runs on: the main thread.
//!
//! The host may have another user with the id that children have inside, or none. And no other
//! account of the host's means anything to a child: its user namespace has one id, and to it every
//! file of another owner belongs to nobody. So the two files name the sandbox's user, nobody, and root,
//! which a child is whose profile skips the layer `setuid`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::steps::{error, io_error};
use crate::layer::SetupError;
use crate::sandbox::identity::INSIDE_ID;

const NAME: &str = "sandbox";
/// What the kernel shows of an id that a user namespace does not have (`/proc/sys/kernel/overflowuid`).
const NOBODY: u32 = 65_534;

/// Where each child makes its home: a place on a tmpfs that is its own. Nothing of the `taken` paths is
/// at or below it.
pub(super) fn choose_home<'a>(taken: impl Iterator<Item = &'a Path> + Clone) -> PathBuf {
    let names = std::iter::once("/tmp/job".to_owned())
        .chain((2..).map(|number| format!("/tmp/job-{number}")));
    names
        .map(PathBuf::from)
        .find(|home| !taken.clone().any(|path| path.starts_with(home)))
        .expect("there are more names than paths")
}

/// The file names in `/etc`, and what is in them.
pub(super) fn files(home: &Path) -> [(&'static str, String); 2] {
    let home = home.display();
    let passwd = format!(
        "root:x:0:0:root:/:/usr/sbin/nologin\n\
         {NAME}:x:{INSIDE_ID}:{INSIDE_ID}:{NAME}:{home}:/bin/sh\n\
         nobody:x:{NOBODY}:{NOBODY}:nobody:/nonexistent:/usr/sbin/nologin\n"
    );
    let group = format!("root:x:0:\n{NAME}:x:{INSIDE_ID}:\nnogroup:x:{NOBODY}:\n");
    [("passwd", passwd), ("group", group)]
}

/// Has nobody a name, in a child whose client leaves layers out: tests written for version 1 of the package expect
/// `id` to print numbers alone, as it did there on a machine without a user of this id.
pub(super) fn take_names_away() -> Result<(), SetupError> {
    for path in ["/etc/passwd", "/etc/group"] {
        let source = Some("/dev/null");
        match mount(source, path, None::<&str>, MsFlags::MS_BIND, None::<&str>) {
            Ok(()) | Err(Errno::ENOENT) => {} // a machine without such a file
            Err(errno) => return Err(error(format!("mount /dev/null on {path}"), errno)),
        }
    }
    Ok(())
}

/// Writes them to an empty tree, while that is still writable.
pub(super) fn create_files(home: &Path) -> Result<(), SetupError> {
    let etc = Path::new("/etc");
    let created = fs::create_dir(etc)
        .and_then(|()| fs::set_permissions(etc, Permissions::from_mode(0o755)))
        .and_then(|()| {
            files(home).into_iter().try_for_each(|(name, content)| {
                let path = etc.join(name);
                fs::write(&path, content)?;
                fs::set_permissions(&path, Permissions::from_mode(0o644))
            })
        });
    created.map_err(|e| io_error("create /etc/passwd and /etc/group".into(), &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_has_a_name_that_nothing_else_has() {
        let home = |taken: &[&str]| {
            let home = choose_home(taken.iter().map(Path::new));
            home.to_str().expect("ASCII").to_owned()
        };
        assert_eq!(home(&["/srv", "/tmp/jobs"]), "/tmp/job");
        assert_eq!(home(&["/tmp/job"]), "/tmp/job-2");
        assert_eq!(home(&["/tmp/job-2", "/tmp/job/deep/er"]), "/tmp/job-3");
    }
}
