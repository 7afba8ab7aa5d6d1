//! The children's root file system.
//!
//! Runs on: the main thread, a child.
//!
//! Prepared once, in a mount namespace that only the cloning thread is in: the host's tree
//! read-only, a chroot, or nothing, with what the profile binds into it and without what it
//! hides. A clone inherits it, locked by the kernel since the child's user namespace is a
//! lesser one (`mount_namespaces(7)`), and adds what must be its own: `/proc`, `/tmp`,
//! `/dev/shm`. There is no old root to detach in the child: it was detached before the first
//! clone.

mod account;
mod client_chroot;
mod kernel_filesystems;
mod masks;
mod mountinfo;
mod resolver;
mod steps;
mod way;

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, fchdir, mkdir};

pub(crate) use self::client_chroot::{Folder, OwnRoot, enter_own};
pub(crate) use self::kernel_filesystems::DEVICES;
use self::kernel_filesystems::Devices;
use self::masks::{Masks, is_closed};
use self::resolver::Resolver;
use self::steps::{check_failed, create_link, create_mount_point, error, mount_tmpfs, proc_error};
use self::way::{ANYTHING, FOLDER, open_kept};
use crate::config::{Proc, Profile, Root};
use crate::layer::{Layer, Layers, SetupError};
use crate::sys::mounts::{
    attach_tree, copy_found, copy_tree, pivot_to_working_directory, set_attributes,
};
use crate::sys::process::unshare;

/// Where each child has a tmpfs of its own, if the profile gives it one.
pub(crate) const PRIVATE_PLACES: &[&str] = &["/tmp", "/dev/shm"];

const UNTRUSTED: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
const READ_ONLY: u64 = UNTRUSTED | libc::MOUNT_ATTR_RDONLY;

/// The children's root, prepared, and what each child has still to do in it.
pub(crate) struct PreparedRoot {
    proc: Proc,
    /// Where the child mounts a tmpfs, and its options.
    private_places: Vec<PathBuf>,
    tmpfs_options: String,
    /// Paths that a private `/tmp` would hide.
    kept: Kept,
    /// A folder that each child makes for itself.
    home: Option<PathBuf>,
    /// Where children start.
    working_directory: PathBuf,
    /// The caller's working directory, where children do not start in it, but can reach it.
    import_directory: Option<PathBuf>,
    masks: Masks,
}

/// A bind of the profile, taken from the host's tree.
struct BoundTree {
    source: PathBuf,
    target: PathBuf,
    writable: bool,
    is_folder: bool,
    tree: OwnedFd,
}

impl PreparedRoot {
    /// Moves the calling thread, and so all later clones, into the children's root.
    ///
    /// # Errors
    /// With the mount call that failed and its operand.
    pub(crate) fn prepare(profile: &Profile, needed: &[PathBuf]) -> Result<Self, SetupError> {
        let working_directory = std::env::current_dir().unwrap_or_else(|_| "/".into());
        let hidden = by_all_names(profile);
        leave_host_mount_namespace()?;
        let binds = take_binds(profile)?;
        let home = profile.has_home().then(|| free_home(needed, &binds));
        let account = home.as_deref().map(account::files);
        let account = account.as_ref().map_or(&[][..], |files| files);
        // Nothing is imported from where a job may have left it, nor looked for in what is empty.
        let is_for_import = |path: &Path| {
            let mut writable = profile.binds.iter().filter(|bind| bind.writable);
            !hidden.iter().any(|hidden| hidden == path)
                && !writable.any(|bind| path.starts_with(bind.target()))
        };
        let resolver = Resolver::take(profile)?;
        let hosts_proc =
            copy_tree(Path::new("/proc"), true).map_err(|e| proc_error("open_tree /proc", e))?;
        let writable = binds.iter().filter(|bind| bind.writable);
        let untrusted = writable.map(|bind| bind.source.clone()).collect();
        let mut masks = match &profile.root {
            Root::ReadOnly => {
                let needed = with_working_directory(needed, &working_directory, &hidden);
                enter_host_tree(&hidden, &needed, untrusted, account, &hosts_proc)?
            }
            Root::Chroot(folder) => {
                enter_tree(
                    &take_tree(folder, FOLDER, UNTRUSTED)?,
                    &folder.display().to_string(),
                )?;
                let mut folders = binds.iter().filter(|bind| bind.is_folder);
                let place = folders.next().map(|bind| bind.target.as_path());
                let mut masks = Masks::new(&[], Vec::new());
                if let Some(place) = place {
                    masks.keep_shelf_at(place, &[])?;
                }
                kernel_filesystems::remove_from_chroot(&mut masks, &hosts_proc, profile.proc())?;
                masks
            }
            Root::Empty => enter_empty_tree(home.as_deref())?,
        };
        if profile.proc() == Proc::Private {
            kernel_filesystems::mount_visible_proc(&hosts_proc)?;
        }
        // A chroot is the operator's own folder, and a job may have left links in it.
        let may_create = !matches!(profile.root, Root::Chroot(_));
        mount_binds(&binds, may_create)?;
        resolver.mount(may_create)?;
        let targets: Vec<_> = binds.iter().map(|bind| bind.target.as_path()).collect();
        kernel_filesystems::remove_from_binds(&targets, &mut masks, &hosts_proc)?;
        if profile.shows_host_tree() && profile.proc() == Proc::None {
            masks.cover(Path::new("/proc"), &[])?;
        }
        let kept = Kept::find(needed, &binds);
        let reached = reached_directory(profile, working_directory, &kept);
        for bind in binds {
            masks.hide_in_bind(bind, &hidden)?;
        }
        masks.seal(&hosts_proc)?;

        let (starting, import_directory) = match &home {
            Some(home) if profile.starts_in_home() => {
                (home.clone(), reached.filter(|path| is_for_import(path)))
            }
            _ => (reached.unwrap_or_else(|| "/".into()), None),
        };
        Ok(Self {
            proc: profile.proc(),
            private_places: private_places(profile)?,
            tmpfs_options: tmpfs_options(profile.tmp().unwrap_or(0)),
            working_directory: starting,
            import_directory,
            kept,
            home,
            masks,
        })
    }

    /// The names that each clone hides anew if need be, as the host knows them.
    pub(crate) fn hidden_names(&self) -> Vec<PathBuf> {
        self.masks.names_on_host()
    }

    /// The folder that each child has for itself, in its private `/tmp`.
    pub(crate) fn home(&self) -> Option<&Path> {
        self.home.as_deref()
    }

    /// Where children import modules from besides, since they do not start there.
    pub(crate) fn import_directory(&self) -> Option<&Path> {
        self.import_directory.as_deref()
    }

    /// Before each clone: hides again what the host has shown since, by replacing a file or
    /// making one.
    pub(crate) fn renew(&mut self) -> Result<(), SetupError> {
        self.masks.renew()
    }
}

/// The names of what is to be hidden, and what they lead to now: a bind may show it by that name.
/// Where jobs can write, they choose what a name leads to, and only the name counts.
pub(crate) fn by_all_names(profile: &Profile) -> Vec<PathBuf> {
    let is_jobs = |path: &Path| {
        let mut binds = profile.binds.iter();
        binds.any(|bind| bind.writable && path.starts_with(&bind.source))
    };
    let mut names = Vec::new();
    for path in &profile.hide {
        names.push(path.clone());
        if !is_jobs(path) {
            names.extend(fs::canonicalize(path));
        }
    }
    // The outer ones first: what lies in them is then out of sight already.
    names.sort();
    names.dedup();
    names
}

/// Modules are imported from the working directory too (`python -c`), so it is needed where others
/// may pass to it; but what is hidden is not shown because pyspawner was started there.
fn with_working_directory(needed: &[PathBuf], own: &Path, hidden: &[PathBuf]) -> Vec<PathBuf> {
    let mut needed = needed.to_vec();
    if hidden.iter().any(|hidden| hidden == own) && !needed.iter().any(|path| path == own) {
        log::warn!(
            "the working directory {} is hidden from children, as homes are: hint: to import from \
             it, use --path .; for its files, a bind or another working directory",
            own.display()
        );
        return needed;
    }
    if own != Path::new("/") && !is_in_private_place(own) && !is_closed(own) {
        needed.push(own.to_owned());
    }
    needed
}

/// A mount namespace of this thread alone, cut off from the host's in both directions.
fn leave_host_mount_namespace() -> Result<(), SetupError> {
    unshare(libc::CLONE_NEWNS).map_err(|e| error("unshare(CLONE_NEWNS)".into(), e))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(|e| error("mount / private".into(), e))
}

/// Copies what is to be bound, while the host's tree is in sight.
fn take_binds(profile: &Profile) -> Result<Vec<BoundTree>, SetupError> {
    let mut binds = Vec::new();
    for bind in &profile.binds {
        let attributes = if bind.writable { UNTRUSTED } else { READ_ONLY };
        let tree = take_tree(&bind.source, ANYTHING, attributes)?;
        binds.push(BoundTree {
            source: bind.source.clone(),
            target: bind.target().to_owned(),
            writable: bind.writable,
            is_folder: is_folder(&tree)?,
            tree,
        });
    }
    // The outer ones first, or they would cover the inner ones.
    binds.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(binds)
}

/// A copy of what a path of the profile leads to. In that path there may be links of others.
fn take_tree(path: &Path, wanted: OFlag, attributes: u64) -> Result<OwnedFd, SetupError> {
    copy_restricted(&open_kept(path, wanted)?, path, attributes)
}

/// A detached copy of what was found, with all mounts in it: restricted, and cut off from the host's.
fn copy_restricted(found: &OwnedFd, path: &Path, attributes: u64) -> Result<OwnedFd, SetupError> {
    let step = |what: &str| {
        let step = format!("{what} {}", path.display());
        move |errno| error(step, errno)
    };
    let tree = copy_found(found).map_err(step("open_tree"))?;
    set_attributes(&tree, attributes, 0).map_err(step("mount_setattr"))?;
    Ok(tree)
}

/// The host's tree, read-only, without the kernel's file systems and what is hidden.
fn enter_host_tree(
    hidden: &[PathBuf],
    needed: &[PathBuf],
    untrusted: Vec<PathBuf>,
    account: &[(&str, String)],
    hosts_proc: &OwnedFd,
) -> Result<Masks, SetupError> {
    let devices = Devices::take()?;
    enter_tree(&take_tree(Path::new("/"), FOLDER, READ_ONLY)?, "/")?;
    let mut masks = Masks::new(needed, untrusted);
    cover_tmp(&mut masks, needed, account)?;
    kernel_filesystems::remove_from_host_tree(&mut masks, hosts_proc)?;
    devices.mount()?;
    masks.open_the_way_to(needed)?;
    for path in hidden {
        masks.hide(path, needed)?;
    }
    for (name, _) in account {
        masks.replace(&Path::new("/etc").join(name), name);
    }
    Ok(masks)
}

/// An empty tree with `/dev`, `/proc`, `/tmp`, and the names of its user.
fn enter_empty_tree(home: Option<&Path>) -> Result<Masks, SetupError> {
    let devices = Devices::take()?;
    let root = masks::tmpfs()?;
    enter_tree(&root, "an empty tree")?;
    for folder in ["/dev", "/proc", "/tmp"] {
        create_mount_point(Path::new(folder), true)?;
    }
    home.map_or(Ok(()), account::create_files)?;
    devices.mount()?;
    let mut masks = Masks::new(&[], Vec::new());
    cover_tmp(&mut masks, &[], &[])?;
    masks.adopt(root)?;
    Ok(masks)
}

/// Each child mounts its own over it. Covered here too, the host's is never in sight.
fn cover_tmp(
    masks: &mut Masks,
    needed: &[PathBuf],
    files: &[(&str, String)],
) -> Result<(), SetupError> {
    masks.cover(Path::new("/tmp"), needed)?;
    let shelf = Path::new("/tmp/.shelf");
    create_mount_point(shelf, true)?;
    masks.keep_shelf_at(shelf, files)
}

/// Makes a detached tree the root and detaches the old one.
fn enter_tree(tree: &OwnedFd, name: &str) -> Result<(), SetupError> {
    let step = |what: &str| {
        let step = format!("{what} {name}");
        move |errno| error(step, errno)
    };
    // On the old root itself: whatever that has, or has not, it is gone at once.
    attach_tree(tree, Path::new("/")).map_err(step("move_mount"))?;
    fchdir(tree).map_err(step("fchdir"))?;
    pivot_to_working_directory().map_err(|errno| {
        step("pivot_root")(errno).hinting_if(
            Errno::EINVAL,
            "the root file system is the kernel's initial one, which cannot be pivoted away from",
        )
    })?;
    umount2(".", MntFlags::MNT_DETACH).map_err(step("detach the old root of"))?;
    chdir("/").map_err(step("chdir"))
}

fn mount_binds(binds: &[BoundTree], may_create: bool) -> Result<(), SetupError> {
    for bind in binds {
        if may_create && !bind.target.exists() {
            create_mount_point(&bind.target, bind.is_folder)?;
        }
        attach_tree(&bind.tree, &bind.target)
            .map_err(|e| error(format!("bind on {}", bind.target.display()), e))?;
    }
    Ok(())
}

/// The kernel counts files apart from bytes (`tmpfs(5)`): one for each page, at least 1,024.
fn tmpfs_options(size: u64) -> String {
    let files = (size / 4096).max(1024);
    format!("mode=1777,size={size},nr_inodes={files}")
}

/// Where children mount a tmpfs. A chroot that is to have one must have the folder.
fn private_places(profile: &Profile) -> Result<Vec<PathBuf>, SetupError> {
    if profile.tmp().is_none() {
        return Ok(Vec::new());
    }
    let places: Vec<PathBuf> = PRIVATE_PLACES
        .iter()
        .map(PathBuf::from)
        .filter(|place| place.is_dir())
        .collect();
    if places.is_empty() {
        let found = check_failed("tmpfs on /tmp: the root has no folder of this name");
        return Err(
            found.hinting("make that folder in the chroot, or leave tmp out of the profile")
        );
    }
    Ok(places)
}

/// The paths that lie in a place which each child mounts anew.
struct Kept {
    /// Bound there again. None lies in another.
    trees: Vec<PathBuf>,
    /// Names of some of them that lead to where they are, and where that is.
    links: Vec<(PathBuf, PathBuf)>,
}

impl Kept {
    /// `needed` paths may be links, or lie behind some.
    fn find(needed: &[PathBuf], binds: &[BoundTree]) -> Self {
        let mut trees: Vec<_> = binds.iter().map(|bind| bind.target.clone()).collect();
        let mut links = Vec::new();
        for path in needed {
            let Ok(real) = fs::canonicalize(path) else {
                continue;
            };
            if real != *path && is_in_private_place(path) {
                links.push((path.clone(), real.clone()));
            }
            trees.push(real);
        }
        trees.retain(|path| is_in_private_place(path));
        trees.sort();
        trees.dedup_by(|path, above| path.starts_with(above));
        // The outer ones first: a name in another's folder is in that already.
        links.sort();
        links.dedup();
        Self { trees, links }
    }

    fn has(&self, path: &Path) -> bool {
        self.trees.iter().any(|tree| path.starts_with(tree))
    }
}

/// A home that is none of the paths which will be in a child's `/tmp`. Looked for in the host's tree,
/// where all names of them are in sight.
fn free_home(needed: &[PathBuf], binds: &[BoundTree]) -> PathBuf {
    let real: Vec<PathBuf> = needed.iter().flat_map(fs::canonicalize).collect();
    let targets = binds.iter().map(|bind| &bind.target);
    let taken = needed.iter().chain(&real).chain(targets);
    account::choose_home(taken.map(PathBuf::as_path))
}

fn is_in_private_place(path: &Path) -> bool {
    PRIVATE_PLACES.iter().any(|place| path.starts_with(place))
}

/// The caller's working directory, if children can reach it.
fn reached_directory(profile: &Profile, directory: PathBuf, kept: &Kept) -> Option<PathBuf> {
    if profile.root != Root::ReadOnly {
        return None; // what has its path there is another folder, if anything
    }
    let is_hidden = is_in_private_place(&directory) && !kept.has(&directory);
    if !is_hidden && directory.is_dir() && !is_closed(&directory) {
        return Some(directory);
    }
    let start = match profile.starts_in_home() {
        true => "",
        false => " and start in /",
    };
    // A home that is closed to others is out of reach by intent, and nobody's surprise; a folder below /tmp looks open.
    let level = match is_hidden || !profile.starts_in_home() {
        true => log::Level::Warn,
        false => log::Level::Info,
    };
    let why = match is_hidden {
        true => ", since they have a /tmp of their own",
        false => "",
    };
    log::log!(
        level,
        "children cannot reach the working directory {}{why}{start}; hint: --path shows a folder of modules, a bind one of data",
        directory.display()
    );
    None
}

/// Mounts what must be a child's own: in the child, as the sandbox's user, while it still
/// holds its capabilities.
///
/// `is_for_tests` is a child whose client leaves layers out.
pub(crate) fn mount_private_places(
    root: &PreparedRoot,
    layers: &Layers,
    is_for_tests: bool,
) -> Result<(), SetupError> {
    let mut kept = Vec::new();
    for path in &root.kept.trees {
        let tree =
            copy_tree(path, true).map_err(|e| error(format!("open_tree {}", path.display()), e))?;
        kept.push((path, tree));
    }
    if root.proc == Proc::Private {
        mount_own_proc(layers)?;
    }
    for place in &root.private_places {
        mount_tmpfs(place, &root.tmpfs_options)?;
    }
    for (path, tree) in kept {
        create_mount_point(path, is_folder(&tree)?)?;
        attach_tree(&tree, path).map_err(|e| error(format!("move_mount {}", path.display()), e))?;
    }
    for (path, target) in &root.kept.links {
        create_link(path, target)?;
    }
    if root.home.is_some() && is_for_tests {
        account::take_names_away()?;
    }
    if let Some(home) = &root.home {
        mkdir(home, Mode::S_IRWXU).map_err(|e| error(format!("mkdir {}", home.display()), e))?;
    }
    // By its path: the folder itself may be one that was just mounted over, through which the
    // host's files would be in reach.
    let directory = &root.working_directory;
    chdir(directory).map_err(|e| error(format!("chdir {}", directory.display()), e))
}

fn is_folder(tree: &OwnedFd) -> Result<bool, SetupError> {
    let stat = nix::sys::stat::fstat(tree).map_err(|e| error("fstat".into(), e))?;
    Ok(stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// Read-only: nothing in it needs writing, and much in it has been written to in attacks
/// (/proc/sys, /proc/self/attr, uid_map). Who keeps the capabilities could mount it again, so for
/// them it is writable, and what is refused is refused by the files themselves (EPERM, not EROFS).
fn mount_own_proc(layers: &Layers) -> Result<(), SetupError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mount_with = |flags| mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>);
    let mounted = match layers.has(Layer::DropCapabilities) {
        true => mount_with(flags | MsFlags::MS_RDONLY),
        // The kernel refuses it where the host has been given a read-only one.
        false => mount_with(flags).or_else(|_| mount_with(flags | MsFlags::MS_RDONLY)),
    };
    mounted.map_err(|e| proc_error("mount /proc", e))
}
