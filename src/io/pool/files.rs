//! Files that a job brings along, and files that come back from its working folder.
//!
//! Runs on: the I/O thread.
//!
//! What a job brings is written by the child itself; the host looks at the names alone. What comes back is read by the host
//! after the child's end, through a descriptor of the folder that the child passed on before any of its job's code ran.
//! The folder is on a tmpfs of the job's own, and every name in it is the job's: nothing is opened by way of a link or a
//! mount (`openat2(2)`), nothing but regular files is read, and what is read is bounded.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::fstat;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::untrusted_records::plain_text;

/// More names than this are not asked for, or given, at once.
const MOST_NAMES: usize = 256;
/// More entries than this are not looked at.
const MOST_ENTRIES: usize = 10_000;
/// Folders below folders are looked into so far.
const DEEPEST: usize = 8;
/// After so many bytes other tasks have their turn.
const AT_ONCE: u64 = 256 << 10;

/// What is said of files where there is no place for them.
pub(crate) const NO_FOLDER: &str =
    "files, collect: the profile's jobs do not start in a folder of their own";

/// Checks the files that a job brings along: their number and their names. The content is decoded in the child.
///
/// # Errors
/// With the name, and what was expected.
pub(crate) fn check_brought(files: &RawValue) -> Result<(), String> {
    let files: BTreeMap<String, &RawValue> =
        serde_json::from_str(files.get()).map_err(|error| format!("files: {error}"))?;
    if files.len() > MOST_NAMES {
        let count = files.len();
        return Err(format!("files: {count} files, at most {MOST_NAMES} may be"));
    }
    files.keys().try_for_each(|name| check_name(name))
}

/// Checks a relative path, which leads down.
fn check_name(name: &str) -> Result<(), String> {
    const LONGEST: usize = 1024;
    let parts: Vec<_> = Path::new(name).components().collect();
    let leads_down = parts
        .iter()
        .all(|part| matches!(part, Component::Normal(_)));
    let is_plain = !name.is_empty() && !name.ends_with('/') && !name.contains('\0');
    match leads_down && is_plain && name.len() <= LONGEST && parts.len() <= DEEPEST {
        true => Ok(()),
        false => Err(format!(
            "files: {:?}: expected a path below the job's working folder, such as \"data/a.csv\"",
            plain_text(name.as_bytes())
        )),
    }
}

/// The files that are to come back, by names and patterns.
#[derive(Debug)]
pub(crate) struct WantedFiles {
    names: Vec<String>,
    patterns: Option<GlobSet>,
}

/// What has come back.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub content: BTreeMap<String, Content>,
    /// What was asked for or found and has not come back, with the reason.
    pub left: BTreeMap<String, String>,
}

/// A file's content.
#[derive(Debug, PartialEq)]
pub(crate) struct Content(Vec<u8>);

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let pair = match std::str::from_utf8(&self.0) {
            Ok(text) => ("text", text.into()),
            Err(_) => {
                let base64 = base64::engine::general_purpose::STANDARD.encode(&self.0);
                ("base64", std::borrow::Cow::from(base64))
            }
        };
        serializer.collect_map([pair])
    }
}

impl WantedFiles {
    /// The same as [`Self::new`], if anything is wanted.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn if_any(wanted: &[String]) -> Result<Option<Arc<Self>>, String> {
        match wanted {
            [] => Ok(None),
            wanted => Self::new(wanted).map(Arc::new).map(Some),
        }
    }

    /// Names, and patterns: `*` and `?` stand for what is in one name, `**` for folders, too.
    ///
    /// # Errors
    /// For a name or a pattern that is none.
    fn new(wanted: &[String]) -> Result<Self, String> {
        if wanted.len() > MOST_NAMES {
            let count = wanted.len();
            return Err(format!(
                "collect: {count} names, at most {MOST_NAMES} may be"
            ));
        }
        let (patterns, names): (Vec<_>, Vec<_>) = wanted
            .iter()
            .partition(|name| name.contains(['*', '?', '[', '{']));
        for name in &names {
            check_name(name).map_err(|error| error.replacen("files", "collect", 1))?;
        }
        let mut set = GlobSetBuilder::new();
        for pattern in &patterns {
            let glob = GlobBuilder::new(pattern).literal_separator(true).build();
            let glob = glob.map_err(|error| format!("collect: {pattern:?}: {}", error.kind()))?;
            set.add(glob);
        }
        let set = set.build().map_err(|error| format!("collect: {error}"))?;
        Ok(Self {
            names: names.into_iter().cloned().collect(),
            patterns: (!patterns.is_empty()).then_some(set),
        })
    }

    /// Reads them from a folder of a job that has ended, `limit` bytes in all.
    pub(crate) async fn collect(&self, folder: OwnedFd, limit: u64) -> Collected {
        let mut collected = Collected::default();
        let mut room = limit;
        let mut paths = self.names.clone();
        if let Some(patterns) = &self.patterns {
            match find(&folder, patterns).await {
                Ok(found) => paths.extend(found),
                Err(reason) => drop(collected.left.insert("*".to_owned(), reason)),
            }
        }
        for path in paths {
            // A pattern may match what was asked for by its name.
            if collected.content.contains_key(&path) || collected.left.contains_key(&path) {
                continue;
            }
            match read(&folder, &path, room).await {
                Ok(bytes) => {
                    room -= bytes.len() as u64;
                    collected.content.insert(path, Content(bytes));
                }
                Err(reason) => drop(collected.left.insert(path, reason)),
            }
        }
        collected
    }
}

/// Opens what is there below a folder, whatever that is.
fn open_below(folder: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    openat2(
        folder.as_fd(),
        path,
        OpenHow::new().flags(flags).resolve(resolve),
    )
}

/// A regular file's content, or why there is none.
async fn read(folder: &OwnedFd, path: &str, room: u64) -> Result<Vec<u8>, String> {
    // Not for reading yet: to open a FIFO or a device for that is to do something with it.
    let found = open_below(folder, Path::new(path), OFlag::O_PATH).map_err(explained)?;
    match fstat(&found).map_err(explained)?.st_mode & libc::S_IFMT {
        libc::S_IFREG => {}
        libc::S_IFLNK => return Err(explained(Errno::ELOOP)),
        _ => return Err("it is no regular file".to_owned()),
    }
    // It may be another by now.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = open_below(folder, Path::new(path), flags).map_err(explained)?;
    let stat = fstat(&file).map_err(explained)?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err("it is no regular file".to_owned());
    }
    let too_much = || format!("more than {room} bytes are left (limits.collect)");
    if u64::try_from(stat.st_size).is_ok_and(|size| size > room) {
        return Err(too_much());
    }
    let mut file = File::from(file);
    let mut bytes = Vec::new();
    loop {
        let read = (&mut file).take(AT_ONCE).read_to_end(&mut bytes);
        let read = read.map_err(|error| error.to_string())?;
        if bytes.len() as u64 > room {
            return Err(too_much());
        }
        if read == 0 {
            return Ok(bytes);
        }
        tokio::task::yield_now().await;
    }
}

fn explained(errno: Errno) -> String {
    match errno {
        Errno::ENOENT => "there is no such file".to_owned(),
        Errno::ELOOP => "a link is not followed".to_owned(),
        Errno::EXDEV => "it lies on another file system".to_owned(),
        errno => errno.desc().to_owned(),
    }
}

/// The paths of the regular files that match, in the order of their names.
async fn find(folder: &OwnedFd, patterns: &GlobSet) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    let mut entries = 0;
    while let Some(at) = folders.pop() {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let place = match at.as_os_str().is_empty() {
            true => Path::new("."),
            false => &at,
        };
        // One that has gone, or has become another thing, has nothing in it.
        let Ok(opened) = open_below(folder, place, flags) else {
            continue;
        };
        let mut dir = Dir::from_fd(opened).map_err(explained)?;
        for entry in dir.iter() {
            let entry = entry.map_err(explained)?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            if matches!(name, "." | "..") {
                continue;
            }
            entries += 1;
            if entries > MOST_ENTRIES {
                return Err(format!("the folder has more than {MOST_ENTRIES} entries"));
            }
            let path = at.join(name);
            match entry.file_type() {
                Some(Type::Directory) if path.components().count() < DEEPEST => folders.push(path),
                Some(Type::File) if patterns.is_match(&path) => {
                    found.extend(path.to_str().map(str::to_owned));
                }
                _ => {}
            }
        }
        tokio::task::yield_now().await;
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn collected(folder: &Path, wanted: &[&str], limit: u64) -> Collected {
        let wanted: Vec<String> = wanted.iter().map(|&name| name.to_owned()).collect();
        let wanted = WantedFiles::new(&wanted).expect("names and patterns");
        let folder = File::open(folder).expect("a folder").into();
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime
            .expect("a runtime")
            .block_on(wanted.collect(folder, limit))
    }

    fn names(collected: &Collected) -> Vec<&str> {
        collected.content.keys().map(String::as_str).collect()
    }

    #[test]
    fn files_come_by_name_and_by_pattern() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("out/deep")).expect("folders");
        for name in ["a.csv", "b.csv", "c.txt", "out/d.csv", "out/deep/e.csv"] {
            std::fs::write(at(name), name).expect("a file");
        }
        assert_eq!(names(&collected(folder.path(), &["c.txt"], 99)), ["c.txt"]);
        assert_eq!(
            names(&collected(folder.path(), &["*.csv"], 99)),
            ["a.csv", "b.csv"]
        );
        assert_eq!(
            names(&collected(folder.path(), &["**/*.csv", "a.csv"], 99)).len(),
            4
        );
        let none = collected(folder.path(), &["out", "x"], 99);
        assert_eq!(none.left["out"], "it is no regular file");
        assert_eq!(none.left["x"], "there is no such file");
    }

    #[test]
    fn nothing_leads_out_of_the_folder() {
        let outside = tempfile::tempdir().expect("a folder");
        std::fs::write(outside.path().join("secret"), "secret").expect("a file");
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        symlink(outside.path().join("secret"), at("link")).expect("a link");
        symlink(outside.path(), at("folder")).expect("a link");
        symlink("/proc/self/root/etc/passwd", at("magic")).expect("a link");
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRUSR).expect("a FIFO");
        let wanted = ["link", "folder/secret", "magic", "fifo", "**/*", "*"];
        let nothing = collected(folder.path(), &wanted, 1 << 20);
        assert_eq!(names(&nothing), [""; 0]);
        assert_eq!(nothing.left["link"], "a link is not followed");
        assert_eq!(nothing.left["folder/secret"], "a link is not followed");
        assert_eq!(nothing.left["fifo"], "it is no regular file");
        for name in ["../secret", "/etc/passwd", "a/../../b", "", "a/", "a\0b"] {
            assert!(WantedFiles::new(&[name.to_owned()]).is_err(), "{name:?}");
        }
    }

    #[test]
    fn what_is_read_is_bounded() {
        let folder = tempfile::tempdir().expect("a folder");
        let sparse = File::create(folder.path().join("sparse")).expect("a file");
        sparse.set_len(1 << 40).expect("a length");
        for name in ["a", "b", "c"] {
            std::fs::write(folder.path().join(name), "12345").expect("a file");
        }
        let some = collected(folder.path(), &["sparse", "*"], 11);
        assert_eq!(names(&some), ["a", "b"]);
        assert_eq!(
            some.left["sparse"],
            "more than 11 bytes are left (limits.collect)"
        );
        assert!(some.left["c"].contains("limits.collect"));
        for number in 0..=MOST_ENTRIES {
            std::fs::write(folder.path().join(format!("n{number}")), "").expect("a file");
        }
        let many = collected(folder.path(), &["*.png"], 11);
        assert_eq!(many.left["*"], "the folder has more than 10000 entries");
    }

    #[test]
    fn content_is_text_where_it_can_be() {
        let json = |bytes: &[u8]| serde_json::to_string(&Content(bytes.to_vec())).expect("JSON");
        assert_eq!(json("é".as_bytes()), r#"{"text":"é"}"#);
        assert_eq!(json(b"\xff"), r#"{"base64":"/w=="}"#);
    }
}
