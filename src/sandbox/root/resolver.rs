//! The children's `/etc/resolv.conf`, where the profile has one of its own.
//!
//! Runs on: the main thread.

use std::fs::{self, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::steps::{create_mount_point, detach_top, error, io_error, mount_tmpfs};
use crate::config::{Network, Profile};
use crate::layer::SetupError;
use crate::sys::mounts::{attach_tree, copy_tree, set_attributes};

const PLACE: &str = "/etc/resolv.conf";

/// What children are to find there.
pub(super) struct Resolver(Option<Vec<u8>>);

impl Resolver {
    /// Reads it, while the host's tree is in sight.
    pub(super) fn take(profile: &Profile) -> Result<Self, SetupError> {
        let Network::Egress(egress) = &profile.network else {
            return Ok(Self(None));
        };
        let content = egress
            .resolver()
            .map_err(|e| io_error("read resolv_conf".into(), &e))?;
        Ok(Self(content))
    }

    /// Puts it in its place. Where the machine has a link there, into `/run` perhaps, the link is
    /// covered.
    pub(super) fn mount(&self, may_create: bool) -> Result<(), SetupError> {
        let Some(content) = &self.0 else {
            return Ok(());
        };
        let place = Path::new(PLACE);
        if may_create && place.symlink_metadata().is_err() {
            create_mount_point(place, false)?;
        }
        let folder = place.parent().expect("it has one");
        let file = small_file(folder, content)?;
        attach_tree(&file, place).map_err(|e| error(format!("bind on {PLACE}"), e))
    }
}

/// A detached mount of a file that cannot be written. For a moment a file system is mounted on
/// `place`, which is a folder, since mounts can only be copied from where they are.
fn small_file(place: &Path, content: &[u8]) -> Result<OwnedFd, SetupError> {
    mount_tmpfs(place, "mode=755,size=64k")?;
    let path = place.join("file");
    let tree = fs::write(&path, content)
        .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o444)))
        .map_err(|e| io_error(format!("create {}", path.display()), &e))
        .and_then(|()| {
            let tree = copy_tree(&path, false)
                .map_err(|e| error(format!("open_tree {}", path.display()), e))?;
            set_attributes(&tree, libc::MOUNT_ATTR_RDONLY, 0)
                .map_err(|e| error(format!("mount_setattr {}", path.display()), e))?;
            Ok(tree)
        });
    detach_top(place)?;
    tree
}
