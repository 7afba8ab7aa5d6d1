//! `[profile.NAME]`: how a sandbox is built, and what may not be combined.
//!
//! Runs on: any process.

use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, ensure};
use serde::{Deserialize, Deserializer, Serialize};

use super::child_ids::children_have_their_own;
use super::egress::Egress;
use super::units::{as_text, optional_duration, optional_size, size};
use crate::layer::{Layer, Layers};

/// `[profile.NAME]`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Profile {
    pub root: Root,
    /// Ask [`Profile::proc`], which knows the default.
    proc: Option<Proc>,
    /// Ask [`Profile::tmp`], which knows the default.
    #[serde(deserialize_with = "optional_size")]
    tmp: Option<u64>,
    /// Ask [`Profile::starts_in_home`], which knows the default.
    cwd: Option<Cwd>,
    /// Further files and folders of the host that children see.
    pub binds: Vec<Bind>,
    /// What children must not see, besides what is hidden by default.
    pub hide: Vec<PathBuf>,
    pub network: Network,
    /// Whether limits may be enforced without control groups, as far as that goes.
    pub cgroups: Cgroups,
    pub limits: Limits,
    /// Layers that are left out. For tests: each makes the sandbox weaker.
    pub skip_layers: Vec<Layer>,
}

/// What a child sees as `/`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Root {
    /// The host's tree, read-only, with places of the child's own.
    #[default]
    ReadOnly,
    /// Exactly this folder.
    Chroot(PathBuf),
    /// Nothing but what the profile adds.
    Empty,
}

impl<'de> Deserialize<'de> for Root {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            chroot: Option<PathBuf>,
            empty: Option<bool>,
        }
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Root;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("\"read-only\", { chroot = \"/path\" } or { empty = true }")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Root, E> {
                match text {
                    "read-only" => Ok(Root::ReadOnly),
                    // As this type writes it to the settings.
                    "empty" => Ok(Root::Empty),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Root, A::Error> {
                let table = Table::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                match (table.chroot, table.empty) {
                    (Some(folder), None) => Ok(Root::Chroot(folder)),
                    (None, Some(true)) => Ok(Root::Empty),
                    _ => Err(serde::de::Error::custom(
                        "root: expected \"read-only\", { chroot = \"/path\" } or { empty = true }",
                    )),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// `/proc` in the child: its own processes, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Proc {
    Private,
    None,
}

/// Where children start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cwd {
    /// In a writable folder of the child's own.
    Private,
    /// In the caller's working directory, which is read-only.
    Caller,
}

/// A file or folder of the host in the child's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bind {
    pub source: PathBuf,
    /// By default the same path.
    target: Option<PathBuf>,
    #[serde(default)]
    pub writable: bool,
}

impl Bind {
    pub(crate) fn target(&self) -> &Path {
        self.target.as_deref().unwrap_or(&self.source)
    }
}

/// The child's network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Network {
    #[default]
    None,
    /// An interface of the job's own that leads to the job alone.
    Loopback,
    /// What is public, or what is named.
    Egress(Egress),
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            egress: Egress,
        }
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Network;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("\"none\", \"loopback\", \"egress\" or { egress = { allow = [...] } }")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Network, E> {
                match text {
                    "none" => Ok(Network::None),
                    "loopback" => Ok(Network::Loopback),
                    "egress" => Ok(Network::Egress(Egress::default())),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Network, A::Error> {
                let map = serde::de::value::MapAccessDeserializer::new(map);
                Table::deserialize(map).map(|table| Network::Egress(table.egress))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// What is good enough for `memory`, `cpu` and `pids`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cgroups {
    /// Without cgroup v2 nothing runs.
    Required,
    /// Without it, resource limits of the process enforce what they can.
    #[default]
    IfAvailable,
}

/// `[profile.NAME.limits]`. What is absent is not limited.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// From the start of a job to its forced end.
    #[serde(deserialize_with = "optional_duration", serialize_with = "as_text")]
    pub wall: Option<Duration>,
    /// Bytes each of standard output, standard error and result.
    #[serde(deserialize_with = "size")]
    pub output: u64,
    /// Bytes of memory that the job adds to what the clone shares with the host.
    #[serde(deserialize_with = "optional_size")]
    pub memory: Option<u64>,
    /// Processors' worth of time.
    pub cpu: Option<f64>,
    /// Processes and threads.
    pub pids: u64,
    /// Open descriptors of one process; by default 1024, and more if preloaded modules hold many. What a job has open at its end,
    /// and has locked, takes the kernel time to close.
    pub open_files: Option<u64>,
    /// Bytes of one file.
    #[serde(deserialize_with = "optional_size")]
    pub file_size: Option<u64>,
    /// Bytes of all files that come back with the record.
    #[serde(deserialize_with = "size")]
    pub collect: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wall: None,
            output: 1 << 20,
            memory: None,
            cpu: None,
            pids: 1024,
            open_files: None,
            file_size: None,
            collect: 4 << 20,
        }
    }
}

impl Limits {
    /// These limits with those of a request laid over them, if it has any.
    ///
    /// # Errors
    /// As for a configuration file.
    pub(crate) fn overlaid(
        &self,
        changes: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Option<Self>, String> {
        if changes.is_empty() {
            return Ok(None);
        }
        let mut value = serde_json::to_value(self).expect("limits are valid JSON");
        let all = value.as_object_mut().expect("limits are an object");
        all.extend(changes.clone());
        let limits: Self =
            serde_path_to_error::deserialize(value).map_err(|error| format!("limits.{error}"))?;
        limits.check().map_err(|error| error.to_string())?;
        Ok(Some(limits))
    }

    /// The first limit that lets a job have more than `others` do.
    pub(crate) fn wider_than(&self, others: &Self) -> Option<&'static str> {
        // An absent limit is the widest.
        fn is_wider<T: PartialOrd>(own: Option<T>, other: Option<T>) -> bool {
            match (own, other) {
                (_, None) => false,
                (None, Some(_)) => true,
                (Some(own), Some(other)) => own > other,
            }
        }
        let wider = [
            ("wall", is_wider(self.wall, others.wall)),
            ("output", self.output > others.output),
            ("memory", is_wider(self.memory, others.memory)),
            ("cpu", is_wider(self.cpu, others.cpu)),
            ("pids", self.pids > others.pids),
            ("open_files", is_wider(self.open_files, others.open_files)),
            ("file_size", is_wider(self.file_size, others.file_size)),
            ("collect", self.collect > others.collect),
        ];
        wider
            .into_iter()
            .find_map(|(name, is_wider)| is_wider.then_some(name))
    }
}

impl Profile {
    pub(crate) fn layers(&self) -> Layers {
        Layers::all_but(&self.skip_layers)
    }

    /// Whether children see the host's files at all.
    pub(crate) fn shows_host_tree(&self) -> bool {
        self.root == Root::ReadOnly
    }

    /// Whether there are places that all children may write to.
    pub(crate) fn has_common_places(&self) -> bool {
        matches!(self.root, Root::Chroot(_)) || self.binds.iter().any(|bind| bind.writable)
    }

    /// What is mounted on `/proc`: nothing in a chroot, unless the profile says so.
    pub(crate) fn proc(&self) -> Proc {
        match (self.proc, &self.root) {
            (Some(proc), _) => proc,
            (None, Root::Chroot(_)) => Proc::None,
            (None, _) => Proc::Private,
        }
    }

    /// The size of the child's own `/tmp` and `/dev/shm` in bytes. In a chroot there are none
    /// unless the profile says so.
    pub(crate) fn tmp(&self) -> Option<u64> {
        match (self.tmp, &self.root) {
            (None, Root::Chroot(_)) => None,
            (size, _) => Some(size.unwrap_or(64 << 20)),
        }
    }

    /// Whether each child has a writable folder of its own, which is its user's home. In a chroot
    /// nothing is added, and without the layer `root` there is no private place.
    pub(crate) fn has_home(&self) -> bool {
        self.layers().has(Layer::Root) && !matches!(self.root, Root::Chroot(_))
    }

    /// Whether children start there.
    pub(crate) fn starts_in_home(&self) -> bool {
        self.has_home() && self.cwd != Some(Cwd::Caller)
    }

    /// Whether there is a place of the host that jobs can write to.
    pub(crate) fn has_folders_of_jobs(&self) -> bool {
        matches!(self.root, Root::Chroot(_)) || self.binds.iter().any(|bind| bind.writable)
    }

    /// The folder in which jobs may have made, or put a link in the place of, what a path of the host leads to: a writable
    /// bind's source, or a chroot.
    pub(crate) fn folder_of_jobs(&self, path: &Path) -> Option<&Path> {
        let writable = self.binds.iter().filter(|bind| bind.writable);
        let sources = writable.map(|bind| bind.source.as_path());
        let chroot = match &self.root {
            Root::Chroot(folder) => Some(folder.as_path()),
            Root::ReadOnly | Root::Empty => None,
        };
        // By any way that leads there: the name itself, or what its folder is.
        let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
        let mut folders = sources.chain(chroot);
        folders.find(|folder| {
            path.starts_with(folder)
                || is_within(path, folder)
                || parent.as_deref().is_some_and(|parent| {
                    folder
                        .canonicalize()
                        .is_ok_and(|folder| parent.starts_with(folder))
                })
        })
    }

    /// The same for code that the host may execute. In a chroot, what nobody but root and the host's user can have put in its place is
    /// theirs.
    pub(crate) fn folder_of_code_of_jobs(&self, path: &Path) -> Option<&Path> {
        let folder = self.folder_of_jobs(path)?;
        let is_chroots = matches!(&self.root, Root::Chroot(chroot) if chroot == folder);
        let is_kept = is_chroots && is_kept_from_jobs(folder, path).unwrap_or(false);
        (!is_kept).then_some(folder)
    }

    /// Whether children start where others than they may have left modules: not in a folder of their own, nor in one that
    /// the host has for all.
    pub(crate) fn starts_among_others(&self) -> bool {
        matches!(self.root, Root::Chroot(_)) && !self.starts_in_home()
    }

    pub(super) fn check(&self) -> anyhow::Result<()> {
        self.check_layers()?;
        self.check_root()?;
        self.check_cwd()?;
        self.check_network()?;
        self.limits.check()
    }

    fn check_layers(&self) -> anyhow::Result<()> {
        for layer in &self.skip_layers {
            if !Layer::SKIPPABLE.contains(layer) {
                bail!("skip_layers: {:?} cannot be skipped", layer.name());
            }
        }
        let layers = self.layers();
        if layers.has(Layer::Seccomp)
            && !layers.has(Layer::NoNewPrivs)
            && layers.has(Layer::DropCapabilities)
        {
            bail!(
                "skip_layers: without \"no_new_privs\" and without capabilities a filter cannot \
                 be installed; skip \"seccomp\" or \"drop_capabilities\" too"
            );
        }
        Ok(())
    }

    fn check_cwd(&self) -> anyhow::Result<()> {
        let Some(cwd) = self.cwd else {
            return Ok(());
        };
        ensure!(
            !matches!(self.root, Root::Chroot(_)),
            "cwd: children start in the folder that is their root, since nothing is added to a \
             chroot; leave cwd out"
        );
        match cwd {
            Cwd::Private => ensure!(
                self.has_home(),
                "cwd: without the layer \"root\" children have no private folder; expected \
                 \"caller\""
            ),
            Cwd::Caller => ensure!(
                self.root != Root::Empty,
                "cwd: an empty root does not have the caller's working directory; expected \
                 \"private\""
            ),
        }
        Ok(())
    }

    fn check_network(&self) -> anyhow::Result<()> {
        ensure!(
            self.network == Network::None || self.layers().has(Layer::NetworkNamespace),
            "network: without the layer \"network_namespace\" children have the machine's own"
        );
        let Network::Egress(egress) = &self.network else {
            return Ok(());
        };
        egress.check()?;
        if let Some(path) = &egress.resolv_conf
            && let Some(folder) = self.folder_of_jobs(path)
        {
            bail!(
                "network: resolv_conf: {} lies in {}, which jobs can write to: by a link there the host would show them any file",
                path.display(),
                folder.display()
            );
        }
        let has_resolver = egress.resolv_conf.is_some() || !egress.nameservers.is_empty();
        ensure!(
            !has_resolver || self.layers().has(Layer::Root),
            "network: without the layer \"root\" children have the machine's own resolv.conf"
        );
        Ok(())
    }

    fn check_root(&self) -> anyhow::Result<()> {
        if let Root::Chroot(folder) = &self.root {
            check_path("chroot", folder)?;
            ensure!(
                folder.is_dir(),
                "root: the chroot {} is not a folder",
                folder.display()
            );
        }
        ensure!(
            self.tmp != Some(0),
            "tmp: 0 would mean a tmpfs without limit; expected a size such as \"64M\""
        );
        for bind in &self.binds {
            check_path("binds: source", &bind.source)?;
            check_path("binds: target", bind.target())?;
            ensure!(
                bind.source.exists(),
                "binds: source {} does not exist",
                bind.source.display()
            );
            // A job could move what is between them, and put a link in its place.
            let above = self.binds.iter().find(|above| {
                above.writable
                    && bind.target() != above.target()
                    && bind.target().starts_with(above.target())
            });
            if let Some(above) = above {
                bail!(
                    "binds: target {} lies in {}, which jobs can write to",
                    bind.target().display(),
                    above.target().display()
                );
            }
            // And it could put a link in the place of what is to be bound.
            let around = self.binds.iter().find(|around| {
                around.writable
                    && bind.source != around.source
                    && (bind.source.starts_with(&around.source)
                        || is_within(&bind.source, &around.source))
            });
            if let Some(around) = around {
                bail!(
                    "binds: source {} lies in {}, which jobs can write to",
                    bind.source.display(),
                    around.source.display()
                );
            }
            for place in ["/", "/proc", "/dev", "/sys"] {
                ensure!(
                    bind.target() != Path::new(place),
                    "binds: target {place} is made by pyspawner; choose root for the whole tree"
                );
            }
        }
        for path in &self.hide {
            check_path("hide", path)?;
            if std::fs::symlink_metadata(path).is_err() {
                let is_pattern = path.to_string_lossy().contains(['*', '?', '[']);
                ensure!(
                    !is_pattern,
                    "hide: {} is a pattern; expected a path: hide the folder",
                    path.display()
                );
                log::warn!(
                    "hide: there is no {}; it is hidden once it is made",
                    path.display()
                );
            }
            ensure!(
                !self.binds.iter().any(|bind| *path == bind.source),
                "hide: {} is bound, which shows it; leave one of them out",
                path.display()
            );
            let is_shown = self.shows_host_tree()
                || self.binds.iter().any(|bind| path.starts_with(&bind.source));
            ensure!(
                is_shown,
                "hide: children do not see {} anyway: it lies in no bind, and root is not \
                 \"read-only\"",
                path.display()
            );
        }
        Ok(())
    }
}

/// Whether one folder lies in another, whatever their names say; not if they are the same.
fn is_within(path: &Path, folder: &Path) -> bool {
    let (Ok(path), Ok(folder)) = (path.canonicalize(), folder.canonicalize()) else {
        return false;
    };
    path != folder && path.starts_with(folder)
}

pub(super) fn check_path(key: &str, path: &Path) -> anyhow::Result<()> {
    ensure!(
        path.is_absolute() && !path.components().any(|part| part == Component::ParentDir),
        "{key}: expected an absolute path without \"..\", not {}",
        path.display()
    );
    Ok(())
}

impl Limits {
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(self.output > 0, "limits.output: expected more than 0 bytes");
        ensure!(
            self.memory.is_none_or(|bytes| bytes >= 1 << 20),
            "limits.memory: expected at least \"1M\""
        );
        ensure!(
            self.cpu.is_none_or(|cpu| (0.01..=4096.0).contains(&cpu)),
            "limits.cpu: expected a number of processors from 0.01 up"
        );
        // The kernel's PID_MAX_LIMIT.
        ensure!(
            (1..=4 << 20).contains(&self.pids),
            "limits.pids: expected at least 1, at most 4194304"
        );
        ensure!(
            self.open_files.is_none_or(|files| files >= 16),
            "limits.open_files: expected at least 16"
        );
        Ok(())
    }
}

/// Whether only root and the host's user can change a file, or what is in a folder, of this owner and mode. A job is neither, and in no
/// group of theirs. In a user namespace root has another number, that of the owner of `/`, which is `root`.
pub(crate) fn is_kept_from_others(owner: u32, mode: u32, root: u32) -> bool {
    let owners = [root, nix::unistd::geteuid().as_raw()];
    owners.contains(&owner) && mode & libc::S_IWOTH == 0
}

/// Whether nobody but root and the host's user can have put a file in its place below `top`, or changed it.
fn is_kept_from_jobs(top: &Path, path: &Path) -> std::io::Result<bool> {
    // Where jobs are this user outside, and keep this user's groups, what is this user's is theirs.
    if !children_have_their_own()? {
        return Ok(false);
    }
    let root = std::fs::metadata("/")?.uid();
    let (top, path) = (top.canonicalize()?, path.canonicalize()?);
    for part in path.ancestors().take_while(|part| part.starts_with(&top)) {
        let found = std::fs::symlink_metadata(part)?;
        if !is_kept_from_others(found.uid(), found.mode(), root) {
            return Ok(false);
        }
    }
    Ok(path.starts_with(&top))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_their_own_format() {
        let full = Profile {
            root: Root::Chroot("/srv".into()),
            proc: Some(Proc::None),
            tmp: Some(5),
            cwd: Some(Cwd::Caller),
            binds: vec![Bind {
                source: "/a".into(),
                target: None,
                writable: true,
            }],
            limits: Limits {
                wall: Some(Duration::from_millis(1500)),
                output: 7,
                memory: Some(1 << 30),
                cpu: Some(0.5),
                ..Limits::default()
            },
            ..Profile::default()
        };
        let empty = Profile {
            root: Root::Empty,
            ..Profile::default()
        };
        let networked = Profile {
            network: Network::Egress(Egress {
                allow: vec!["[2001:db8::/32]:443".parse().expect("valid")],
                nameservers: vec!["192.0.2.53".parse().expect("valid")],
                ipv6: None,
                ..Egress::default()
            }),
            ..Profile::default()
        };
        let looped = Profile {
            network: Network::Loopback,
            ..Profile::default()
        };
        for profile in [Profile::default(), full, empty, networked, looped] {
            let text = serde_json::to_string(&profile).expect("serialises");
            let back: Profile = serde_json::from_str(&text).expect("parses");
            assert_eq!(format!("{back:?}"), format!("{profile:?}"));
        }
    }

    #[test]
    fn combinations_that_cannot_work_are_refused() {
        let skip = |layers: &[Layer]| Profile {
            skip_layers: layers.to_vec(),
            ..Profile::default()
        };
        assert!(skip(&[Layer::NoNewPrivs]).check().is_err());
        assert!(skip(&[Layer::Descriptors]).check().is_err());
        assert!(skip(&[Layer::Seccomp]).check().is_ok());
    }

    #[test]
    fn a_chroot_has_nothing_added_unless_asked_for() {
        let mut profile = Profile {
            root: Root::Chroot("/srv".into()),
            ..Profile::default()
        };
        assert_eq!((profile.proc(), profile.tmp()), (Proc::None, None));
        profile.tmp = Some(1 << 20);
        assert_eq!(profile.tmp(), Some(1 << 20));
    }

    #[test]
    fn what_others_can_replace_is_not_kept() {
        use std::os::unix::fs::{PermissionsExt, symlink};

        let top = tempfile::tempdir().expect("a folder");
        let inner = top.path().join("code/package");
        std::fs::create_dir_all(&inner).expect("made");
        let file = inner.join("module.py");
        std::fs::write(&file, "").expect("written");
        let is_kept = || is_kept_from_jobs(top.path(), &file).expect("it is there");
        assert!(is_kept());
        let code = top.path().join("code");
        for (path, before) in [(&file, 0o644), (&inner, 0o755), (&code, 0o755)] {
            let set = |mode| {
                let modes = std::fs::Permissions::from_mode(mode);
                std::fs::set_permissions(path, modes).expect("our own");
            };
            set(before | 0o002);
            assert!(!is_kept(), "{}", path.display());
            set(before);
            assert!(is_kept());
        }
        // A link in the way leads elsewhere.
        std::fs::remove_file(&file).expect("our own");
        symlink("/etc/hostname", &file).expect("made");
        assert!(!is_kept());
    }
}
