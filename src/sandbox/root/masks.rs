//! What children must not see: folders of which they see only chosen parts, and hidden names.
//!
//! Runs on: the main thread, a child.
//!
//! A mount hides a file, not a name. A host that saves a file by renaming another over it shows
//! it again, and so does one that makes a hidden path only later; so [`Masks::renew`] looks before
//! each clone at every hidden name that may lead elsewhere than before.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::fs::{self, Metadata, Permissions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::Mode;

use super::BoundTree;
use super::steps::{check_failed, create_link, create_mount_point, error, io_error};
use crate::layer::SetupError;
use crate::sys::files::FileId;
use crate::sys::mounts::{
    attach_to, attach_tree, copy_tree, copy_within, make_read_only, new_tmpfs,
};
use crate::sys::name_watch::NameWatch;

/// What children see instead.
pub(super) struct Masks {
    /// `None` where there is nothing to hide.
    shelf: Option<EmptyMounts>,
    /// The folders that cover others. They stay writable, for mount points to be made, until
    /// [`Masks::seal`].
    folders: Vec<OwnedFd>,
    /// The file systems that the covers are of (`st_dev`).
    devices: HashSet<u64>,
    hidden: Vec<Name>,
    /// `None`: the kernel does not tell what becomes of names.
    watch: Option<NameWatch>,
    /// The places of the names that are looked at the next time, news or not.
    due: Vec<usize>,
    /// Where jobs may have made links: what binds show as writable, at its source.
    untrusted: Vec<PathBuf>,
    /// What is meant to be seen, under whatever name: what children need, and what is bound.
    shown: HashSet<FileId>,
    /// The folders above that. They are covered with it left open, or not at all.
    above: HashSet<FileId>,
}

/// A name that must stay out of sight, whatever is found there.
struct Name {
    /// The bind that it lies in. A job may have made the links there, and a name is not followed
    /// out of it.
    within: Option<Rc<OwnedFd>>,
    path: PathBuf,
    /// The whole path, as the host knows it.
    on_host: PathBuf,
    /// What the shelf has in its place; by default something empty.
    stand_in: Option<CString>,
}

impl Name {
    /// What it leads to, if to anything.
    fn find(&self) -> Result<Option<fs::File>, SetupError> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let found = match &self.within {
            None => open(&self.path, flags, Mode::empty()),
            Some(bind) => {
                let how = OpenHow::new()
                    .flags(flags)
                    .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
                openat2(bind.as_fd(), &self.path, how)
            }
        };
        match found {
            Ok(found) => Ok(Some(found.into())),
            // A host without privilege may be kept out itself, and then its children, who are the
            // same user or less, are too. EXDEV and EAGAIN: out of the bind, or moved meanwhile.
            Err(
                Errno::ENOENT
                | Errno::ENOTDIR
                | Errno::EACCES
                | Errno::ELOOP
                | Errno::EXDEV
                | Errno::EAGAIN,
            ) => Ok(None),
            Err(errno) => Err(error(format!("look at {}", self.path.display()), errno)),
        }
    }

    /// A job may rename the folders of a writable bind, and a later run would not find the name;
    /// but not a folder that is a mount point (EBUSY, `rename(2)`).
    fn pin_folders_above(&self) -> Result<(), SetupError> {
        let mut above: Vec<&Path> = self.path.ancestors().skip(1).collect();
        above.pop(); // the bind itself
        for folder in above.into_iter().rev() {
            let folder = Name {
                within: self.within.clone(),
                path: folder.to_owned(),
                on_host: self.on_host.clone(),
                stand_in: None,
            };
            let Some(found) = folder.find()? else {
                return Ok(());
            };
            let found = OwnedFd::from(found);
            copy_within(&found, c"")
                .and_then(|tree| attach_to(&tree, &found))
                .map_err(|e| error(format!("pin {}", folder.path.display()), e))?;
        }
        Ok(())
    }
}

/// An empty file and an empty folder, to be mounted where something is to be hidden, and files that
/// are to be seen in the place of others. They lie on a file system that is mounted where it will be
/// mounted over: a mount can only be copied from within a namespace.
pub(super) struct EmptyMounts(OwnedFd);

impl EmptyMounts {
    pub(super) fn new(place: &Path, files: &[(&str, String)]) -> Result<Self, SetupError> {
        let shelf = tmpfs()?;
        let create = |name: &str| {
            let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            openat(&shelf, name, flags, Mode::from_bits_truncate(0o444))
                .map_err(|e| error(format!("create the file {name} of a tmpfs"), e))
        };
        create("file")?;
        for (name, content) in files {
            let mut file = fs::File::from(create(name)?);
            file.write_all(content.as_bytes())
                .and_then(|()| file.set_permissions(Permissions::from_mode(0o444)))
                .map_err(|e| io_error(format!("write the file {name} of a tmpfs"), &e))?;
        }
        nix::sys::stat::mkdirat(&shelf, "folder", Mode::from_bits_truncate(0o755))
            .map_err(|e| error("create an empty folder".into(), e))?;
        make_read_only(&shelf).map_err(|e| error("mount_setattr of a tmpfs".into(), e))?;
        attach_tree(&shelf, place)
            .map_err(|e| error(format!("move_mount a tmpfs on {}", place.display()), e))?;
        Ok(Self(shelf))
    }

    /// Mounts something empty over what was found.
    pub(super) fn cover(&self, found: fs::File, is_folder: bool) -> Result<(), Errno> {
        self.cover_by(if is_folder { c"folder" } else { c"file" }, found)
    }

    fn cover_by(&self, name: &CStr, found: fs::File) -> Result<(), Errno> {
        attach_to(&copy_within(&self.0, name)?, &found.into())
    }
}

impl Masks {
    /// Begins, in the children's root. `needed` are the paths that they must see, `untrusted` those in
    /// which jobs may have made links.
    pub(super) fn new(needed: &[PathBuf], untrusted: Vec<PathBuf>) -> Self {
        let mut masks = Self {
            shelf: None,
            folders: Vec::new(),
            devices: HashSet::new(),
            hidden: Vec::new(),
            watch: None,
            due: Vec::new(),
            untrusted,
            shown: HashSet::new(),
            above: HashSet::new(),
        };
        needed.iter().for_each(|path| masks.show(path));
        masks
    }

    /// Makes it possible to hide files, and to have these in the place of others. `place` is a folder
    /// that will be mounted over.
    pub(super) fn keep_shelf_at(
        &mut self,
        place: &Path,
        files: &[(&str, String)],
    ) -> Result<(), SetupError> {
        let shelf = EmptyMounts::new(place, files)?;
        self.devices.insert(device_of(&shelf.0)?);
        self.shelf = Some(shelf);
        Ok(())
    }

    /// Shows a file of the shelf by the name of another, whatever is found there: a program that
    /// renames a new file over that one takes a mount away, as it does from what is hidden.
    pub(super) fn replace(&mut self, path: &Path, stand_in: &str) {
        self.hidden.push(Name {
            within: None,
            path: path.to_owned(),
            on_host: path.to_owned(),
            stand_in: Some(CString::new(stand_in).expect("a file's name")),
        });
    }

    /// What is there now is meant to be seen.
    pub(super) fn show(&mut self, path: &Path) {
        let Ok(real) = fs::canonicalize(path) else {
            return; // nothing to be covered
        };
        let identities = |path: &Path| FileId::at(path).ok();
        self.shown.extend(identities(&real));
        let above = real.ancestors().skip(1).filter_map(identities);
        self.above.extend(above);
    }

    /// Masks a folder by an empty one, in which only the needed paths are bound again.
    pub(super) fn cover(&mut self, closed: &Path, needed: &[PathBuf]) -> Result<(), SetupError> {
        // Both the name that is used and what it leads to are wanted; the latter is bound.
        let mut real: Vec<PathBuf> = Vec::new();
        let mut links: Vec<(&Path, PathBuf)> = Vec::new();
        for path in needed {
            let Ok(target) = fs::canonicalize(path) else {
                continue;
            };
            if target != *path && path.starts_with(closed) {
                links.push((path, target.clone()));
            }
            if target.starts_with(closed) && target != closed {
                real.push(target);
            }
        }
        // One bind shows all below it.
        real.sort();
        real.dedup_by(|path, above| path.starts_with(above));
        let mut trees = Vec::new();
        for path in real {
            let tree = copy_tree(&path, true)
                .map_err(|e| error(format!("open_tree {}", path.display()), e))?;
            trees.push((path.is_dir(), path, tree));
        }

        let folder = tmpfs()?;
        attach_tree(&folder, closed)
            .map_err(|e| error(format!("cover {}", closed.display()), e))?;
        self.adopt(folder)?;
        for (is_folder, path, tree) in &trees {
            create_mount_point(path, *is_folder)?;
            attach_tree(tree, path)
                .map_err(|e| error(format!("move_mount {}", path.display()), e))?;
        }
        for (path, target) in links {
            create_link(path, &target)?;
        }
        // The folders above what is needed are new ones.
        trees.iter().for_each(|(_, path, _)| self.show(path));
        Ok(())
    }

    /// Masks a mount of the kernel's, which may be on a single file (as `ip netns` makes them).
    pub(super) fn cover_mount(&mut self, place: &Path) -> Result<(), SetupError> {
        let failed = |e| error(format!("cover {}", place.display()), e);
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let found = fs::File::from(open(place, flags, Mode::empty()).map_err(failed)?);
        if metadata(&found, place)?.is_dir() {
            return self.cover(place, &[]);
        }
        self.cover_found(found, false).map_err(failed)
    }

    /// Takes a path out of sight: a folder becomes empty (but for what is needed of it), a file
    /// reads as empty. A path that does not exist is hidden once it does.
    pub(super) fn hide(&mut self, path: &Path, needed: &[PathBuf]) -> Result<(), SetupError> {
        let name = self.name(path)?;
        let hidden = match name.find()? {
            Some(found) => self.hide_found(&name, found, path, needed)?,
            None => true,
        };
        if hidden {
            self.hidden.push(name);
        }
        Ok(())
    }

    fn name(&self, path: &Path) -> Result<Name, SetupError> {
        for place in &self.untrusted {
            if let Ok(rest) = path.strip_prefix(place)
                && !rest.as_os_str().is_empty()
            {
                let failed = |e| error(format!("open {}", place.display()), e);
                let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
                let folder = open(place, flags, Mode::empty()).map_err(failed)?;
                return Ok(Name {
                    within: Some(Rc::new(folder)),
                    path: rest.to_owned(),
                    on_host: path.to_owned(),
                    stand_in: None,
                });
            }
        }
        Ok(Name {
            within: None,
            path: path.to_owned(),
            on_host: path.to_owned(),
            stand_in: None,
        })
    }

    /// Masks what a name leads to; not what is meant to be seen.
    fn hide_found(
        &mut self,
        name: &Name,
        found: fs::File,
        path: &Path,
        needed: &[PathBuf],
    ) -> Result<bool, SetupError> {
        let seen = metadata(&found, path)?;
        if self.shown.contains(&FileId::from(&seen)) {
            log::warn!(
                "children need {}, so all of it is shown but for known secrets",
                path.display()
            );
            return Ok(false);
        }
        if self.devices.contains(&seen.dev()) {
            return Ok(true);
        }
        if seen.is_dir() && name.within.is_none() {
            let real = fs::canonicalize(path)
                .map_err(|e| io_error(format!("hide {}", path.display()), &e))?;
            self.cover(&real, needed)?;
        } else {
            self.cover_found(found, seen.is_dir())
                .map_err(|e| error(format!("hide {}", path.display()), e))?;
        }
        Ok(true)
    }

    /// Masks what was found for good by something empty.
    fn cover_found(&self, found: fs::File, is_folder: bool) -> Result<(), Errno> {
        let shelf = self.shelf.as_ref().ok_or(Errno::EOPNOTSUPP)?;
        shelf.cover(found, is_folder)
    }

    /// Makes the needed paths reachable for users whom the folders above them keep out.
    ///
    /// A folder that others may not pass (a home of mode 0700, say) is covered by an empty
    /// one: the needed paths in it become reachable, the rest stays as closed as it was.
    pub(super) fn open_the_way_to(&mut self, needed: &[PathBuf]) -> Result<(), SetupError> {
        while let Some(closed) = needed.iter().find_map(|path| closed_folder_above(path)) {
            self.cover(&closed, needed)?;
            self.hidden.push(Name {
                within: None,
                on_host: closed.clone(),
                path: closed,
                stand_in: None,
            });
        }
        Ok(())
    }

    /// Counts a folder of pyspawner's own making among them.
    pub(super) fn adopt(&mut self, folder: OwnedFd) -> Result<(), SetupError> {
        self.devices.insert(device_of(&folder)?);
        self.folders.push(folder);
        Ok(())
    }

    /// What a bind shows is meant to be seen, but for the hidden names that lie in it, here or where
    /// it comes from.
    pub(super) fn hide_in_bind(
        &mut self,
        bind: BoundTree,
        hidden: &[PathBuf],
    ) -> Result<(), SetupError> {
        let tree = Rc::new(bind.tree);
        self.hidden
            .retain(|name| !name.path.starts_with(&bind.target));
        let ways = [&bind.source, &bind.target];
        for path in hidden
            .iter()
            .flat_map(|path| ways.map(|way| path.strip_prefix(way)))
            .flatten()
        {
            if path.as_os_str().is_empty() {
                continue; // the bind itself
            }
            let name = Name {
                within: Some(tree.clone()),
                path: path.to_owned(),
                on_host: bind.source.join(path),
                stand_in: None,
            };
            if bind.writable {
                name.pin_folders_above()?;
            }
            self.hidden.push(name);
        }
        self.show(&bind.target);
        Ok(())
    }

    /// Makes them read-only: nothing is to be mounted in them any more.
    pub(super) fn seal(&mut self, hosts_proc: &OwnedFd) -> Result<(), SetupError> {
        for folder in std::mem::take(&mut self.folders) {
            make_read_only(&folder).map_err(|e| error("mount_setattr of a cover".into(), e))?;
        }
        // Below a cover nothing can come to be any more.
        let devices = &self.devices;
        self.hidden.retain(|name| {
            let mut above = name.path.ancestors().skip(1);
            let nearest = above.find_map(|folder| fs::metadata(folder).ok());
            name.within.is_some() || nearest.is_none_or(|folder| !devices.contains(&folder.dev()))
        });
        self.watch = watch_names(hosts_proc)
            .inspect_err(|errno| log::info!("hidden names are looked at each time: {errno}"))
            .ok();
        self.look_at_all()
    }

    /// The names that are looked at before each clone, as the host knows them.
    pub(super) fn names_on_host(&self) -> Vec<PathBuf> {
        let names = self.hidden.iter();
        names.map(|name| name.on_host.clone()).collect()
    }

    /// Hides what is in sight: what binds have shown, and what the host has replaced or made since.
    pub(super) fn renew(&mut self) -> Result<(), SetupError> {
        if self.watch.as_ref().is_none_or(|watch| watch.news().any()) {
            return self.look_at_all();
        }
        let mut due = self.due.iter();
        due.try_for_each(|&place| self.renew_name(&self.hidden[place]))
    }

    fn look_at_all(&mut self) -> Result<(), SetupError> {
        let all = || 0..self.hidden.len();
        self.due = all().collect();
        // First: what happens between that and the look is news the next time.
        let due = self.watch.as_ref().map(|watch| {
            watch.clear();
            // A job may move what lies in a bind, and the way to it is no path here.
            let is_watched = |name: &Name| name.within.is_none() && watch.watch(&name.path);
            all()
                .filter(|&place| !is_watched(&self.hidden[place]))
                .collect()
        });
        let mut names = self.hidden.iter();
        names.try_for_each(|name| self.renew_name(name))?;
        self.due = due.unwrap_or_default();
        Ok(())
    }

    fn renew_name(&self, name: &Name) -> Result<(), SetupError> {
        // A host that replaces it at this very moment is overtaken at last.
        const ATTEMPTS: u32 = 100;
        for _ in 0..ATTEMPTS {
            let Some(found) = name.find()? else {
                return Ok(());
            };
            let seen = metadata(&found, &name.path)?;
            if self.devices.contains(&seen.dev()) || self.shown.contains(&FileId::from(&seen)) {
                return Ok(());
            }
            let path = name.path.display();
            if self.above.contains(&FileId::from(&seen)) {
                let step = format!("hide {path}, which leads to a folder above what children need");
                return Err(check_failed(step));
            }
            let covered = match (&name.stand_in, &self.shelf) {
                (Some(stand_in), Some(shelf)) => shelf.cover_by(stand_in, found),
                _ => self.cover_found(found, seen.is_dir()),
            };
            match covered {
                Ok(()) => log::debug!("hiding {path}"),
                Err(Errno::ENOENT) => {} // replaced again
                Err(errno) => return Err(error(format!("hide {path}"), errno)),
            }
        }
        Err(check_failed(format!(
            "hide {}, which is replaced all the time",
            name.path.display()
        )))
    }
}

/// Watches names in the calling thread's mount namespace.
fn watch_names(hosts_proc: &OwnedFd) -> nix::Result<NameWatch> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mounts = openat(hosts_proc, "thread-self/mountinfo", flags, Mode::empty())?;
    NameWatch::start(mounts.into())
}

/// A folder to cover others with, or to begin an empty tree with.
pub(super) fn tmpfs() -> Result<OwnedFd, SetupError> {
    new_tmpfs(&[(c"mode", c"755"), (c"size", c"1m")]).map_err(|e| error("fsopen tmpfs".into(), e))
}

fn device_of(mount: &OwnedFd) -> Result<u64, SetupError> {
    let found = nix::sys::stat::fstat(mount).map_err(|e| error("fstat of a tmpfs".into(), e))?;
    Ok(found.st_dev)
}

fn metadata(found: &fs::File, path: &Path) -> Result<Metadata, SetupError> {
    found
        .metadata()
        .map_err(|e| io_error(format!("stat {}", path.display()), &e))
}

const OTHERS_MAY_PASS: u32 = 0o001;

/// Whether others cannot enter a folder: for its own mode, or for that of one above it.
pub(super) fn is_closed(folder: &Path) -> bool {
    closed_folder_above(folder).is_some()
        || fs::metadata(folder).is_ok_and(|found| found.mode() & OTHERS_MAY_PASS == 0)
}

/// The uppermost folder above `path` that others may not pass, in the root as it is now.
fn closed_folder_above(path: &Path) -> Option<PathBuf> {
    let real = fs::canonicalize(path).ok()?;
    let above: Vec<&Path> = real.ancestors().skip(1).collect();
    let is_closed = |folder: &&&Path| {
        fs::metadata(folder).is_ok_and(|found| found.mode() & OTHERS_MAY_PASS == 0)
    };
    above
        .iter()
        .rev()
        .find(is_closed)
        .map(|folder| folder.to_path_buf())
}
