//! Landlock (`landlock(7)`), on top of the mounts: a mistake in a mount alone does not open the
//! host. Writing is confined to the child's own places, FIFOs of the host included, and where
//! the kernel knows how, so are signals and Unix sockets.
//!
//! Runs on: the main thread, a child.

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::root::{DEVICES, PRIVATE_PLACES};
use crate::config::{Profile, Root};
use crate::layer::{LANDLOCK_HINT, Layer, Layers, SetupError};
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd,
    PathFdError, RestrictSelfAttr, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope,
};

/// The newest interface that this code knows; an older kernel enforces what it has.
const KNOWN: ABI = ABI::V10;

/// The rules of a profile's children: what is allowed below each path. Only paths that pyspawner
/// made itself are named, since a job could have put anything at others.
pub(crate) struct Rules(Vec<(PathBuf, BitFlags<AccessFs>)>);

impl Rules {
    pub(crate) fn new(profile: &Profile) -> Self {
        let all = AccessFs::from_all(KNOWN);
        let root = PathBuf::from("/");
        if matches!(profile.root, Root::Chroot(_)) {
            return Self::of_chroot();
        }
        let read = AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir;
        let mut rules = vec![(root, read)];
        for place in PRIVATE_PLACES {
            rules.push((place.into(), all));
        }
        for bind in profile.binds.iter().filter(|bind| bind.writable) {
            let of_kind = match bind.source.is_dir() {
                true => all,
                false => all & AccessFs::from_file(KNOWN),
            };
            rules.push((bind.target().to_owned(), of_kind));
        }
        // It is on a mount of its own (`crate::launcher::execute`), which is below no other rule's path.
        rules.push((
            "/proc/self/exe".into(),
            AccessFs::Execute | AccessFs::ReadFile,
        ));
        for device in DEVICES {
            let access = AccessFs::ReadFile | AccessFs::WriteFile;
            rules.push((Path::new("/dev").join(device), access));
        }
        Self(rules)
    }

    /// A chroot is as writable as its modes say.
    pub(crate) fn of_chroot() -> Self {
        Self(vec![("/".into(), AccessFs::from_all(KNOWN))])
    }

    /// Restricts the calling child. Needs CAP_SYS_ADMIN in its user namespace, or
    /// `no_new_privs`.
    pub(crate) fn restrict(&self, layers: &Layers) -> Result<(), SetupError> {
        if !layers.has(Layer::Landlock) {
            return Ok(());
        }
        let status = self.apply().map_err(|failure| {
            let errno = Errno::from_raw(failure.errno);
            SetupError::new(Layer::Landlock, failure.step, errno)
        })?;
        if status.ruleset == RulesetStatus::NotEnforced {
            let why = match status.landlock {
                LandlockStatus::NotEnabled => "the kernel was started without it",
                _ => "the kernel does not have it",
            };
            return Err(SetupError::found(Layer::Landlock, why).hinting(LANDLOCK_HINT));
        }
        Ok(())
    }

    fn apply(&self) -> Result<RestrictionStatus, Failure> {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(KNOWN))?
            .scope(Scope::from_all(KNOWN))?
            .create()?
            .no_new_privs(false)
            // Each denial would be a record of the machine's audit log, which a job could flood until others' records are lost.
            .log_same_exec(false)?
            .log_subdomains(false)?;
        for (path, access) in &self.0 {
            let place = match PathFd::new(path) {
                Ok(place) => place,
                // Nothing there, nothing to allow.
                Err(PathFdError::OpenCall { source, .. })
                    if source.raw_os_error() == Some(libc::ENOENT) =>
                {
                    continue;
                }
                Err(error) => return Err(Failure::new("open", &error)),
            };
            (&mut ruleset).add_rule(PathBeneath::new(place, *access))?;
        }
        Ok(ruleset.restrict_self()?)
    }
}

/// The call that failed, in the words of the library, and its errno.
struct Failure {
    step: String,
    errno: i32,
}

impl Failure {
    fn new(step: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut source = Some(error);
        let mut errno = libc::EINVAL;
        while let Some(error) = source {
            if let Some(io) = error.downcast_ref::<std::io::Error>() {
                errno = io.raw_os_error().unwrap_or(errno);
            }
            source = error.source();
        }
        Self {
            step: format!("{step}: {error}"),
            errno,
        }
    }
}

impl From<RulesetError> for Failure {
    fn from(error: RulesetError) -> Self {
        Self::new("landlock", &error)
    }
}

/// What this kernel's Landlock lacks of what children are to get, for the log.
pub(crate) fn missing_here() -> Option<String> {
    match crate::sys::process::landlock_abi() {
        Ok(6..) => None,
        Ok(abi) => Some(format!(
            "this kernel's Landlock (ABI {abi}, 6 is complete) confines no signals and no abstract \
             sockets; the namespaces do"
        )),
        Err(errno) => Some(format!("this kernel has no Landlock: {errno}")),
    }
}
