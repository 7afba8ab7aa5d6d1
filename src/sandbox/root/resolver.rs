//! The children's `/etc/resolv.conf`, where the profile has one of its own.

use std::path::Path;

use super::covers::small_file;
use super::steps::{create_mount_point, error, io_error};
use crate::config::{Network, Profile};
use crate::sandbox::layer::SetupError;
use crate::sys::mounts::attach_tree;

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
