//! Tells whose code a thread runs: the library that the return addresses on its stack lie in.
//!
//! Runs on: the main thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::sys::memory::{self, Mapping};

/// Libraries that all others call: they tell nothing.
const COMMON: &[&str] = &[
    "libc.so",
    "libc-",
    "ld-linux",
    "ld-",
    "libpthread",
    "libstdc++",
    "libgcc_s",
    "libpython",
    "pyspawner",
];
/// How far up a stack is looked, in bytes.
const FARTHEST: usize = 64 << 10;

/// The executable mappings of this process, and a way to read its memory that cannot fail by a signal.
pub(super) struct CodeMap {
    code: Vec<Mapping>,
    memory: File,
}

impl CodeMap {
    /// # Errors
    /// If `/proc/self/smaps` or `/proc/self/mem` cannot be read.
    pub(super) fn read() -> io::Result<Self> {
        let mut code = memory::mappings()?;
        code.retain(|mapping| mapping.modes.contains('x') && mapping.name.starts_with('/'));
        Ok(Self {
            code,
            memory: File::open("/proc/self/mem")?,
        })
    }

    /// The library that a sleeping thread runs, by its line of `/proc/PID/task/TID/syscall`, which
    /// ends with its stack pointer and instruction.
    pub(super) fn library_of(&self, call: &str) -> Option<String> {
        let mut from_end = call.trim_end().rsplit(' ').skip(1);
        let stack = usize::from_str_radix(from_end.next()?.strip_prefix("0x")?, 16).ok()?;
        let mut bytes = vec![0; FARTHEST];
        // A stack may end before that.
        let length = self.memory.read_at(&mut bytes, stack as u64).ok()?;
        let words = bytes[..length].chunks_exact(size_of::<usize>());
        let mut addresses =
            words.map(|word| usize::from_ne_bytes(word.try_into().unwrap_or_default()));
        addresses.find_map(|address| self.library_at(address))
    }

    fn library_at(&self, address: usize) -> Option<String> {
        let mapping = self
            .code
            .iter()
            .find(|mapping| mapping.range.contains(&address))?;
        let name = mapping.name.rsplit('/').next()?;
        let is_common = COMMON.iter().any(|common| name.starts_with(common));
        (!is_common).then(|| within_packages(&mapping.name).unwrap_or(name).to_owned())
    }
}

/// The path below the folder of installed packages: it begins with the package's name.
fn within_packages(path: &str) -> Option<&str> {
    let folders = ["/site-packages/", "/dist-packages/"];
    let mut below = folders.iter().filter_map(|folder| path.rsplit_once(folder));
    below.next().map(|(_, path)| path)
}
