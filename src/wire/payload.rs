//! How a job's arguments reach its child: as bytes that the child alone decodes, in one of two forms.
//!
//! Runs on: the I/O thread, a child.

use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use nix::unistd::{Whence, lseek};
use serde::{Deserialize, Serialize};

use crate::sys::files;

/// The form of the arguments.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Call {
    /// JSON, with what `pyspawner_host` tells about the job.
    #[default]
    Json,
    /// What a client sends. What `pyspawner_host` tells about the job comes separately.
    Client {
        form: ClientForm,
        id: String,
        /// Seconds since the epoch.
        deadline: Option<f64>,
    },
}

/// How a client encodes a call's arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ClientForm {
    /// Python's pickle of a list of arguments, or of a tuple: such a list, and a dict of keyword arguments.
    #[default]
    Pickle,
    /// A JSON array of arguments, or an object with any of `args` and `kwargs`.
    Json,
}

/// The arguments' bytes.
#[derive(Debug)]
pub(crate) enum Payload {
    /// At most [`LONGEST_INLINE`]: they go with the message that tells of the job.
    Inline(Vec<u8>),
    /// In a sealed memory file.
    File(OwnedFd),
}

/// Up to so many bytes it is cheaper to copy them twice than to make a file.
pub(crate) const LONGEST_INLINE: usize = 16 << 10;

impl Payload {
    /// Keeps bytes, the concatenation of `parts`, in the way that suits their number.
    ///
    /// # Errors
    /// Of `memfd_create(2)` and `write(2)`.
    pub(crate) fn new(parts: &[&[u8]]) -> std::io::Result<Self> {
        if parts.iter().map(|part| part.len()).sum::<usize>() <= LONGEST_INLINE {
            return Ok(Self::Inline(parts.concat()));
        }
        files::sealed_memfd("pyspawner-job", parts).map(Self::File)
    }

    /// All of it, once.
    ///
    /// # Errors
    /// Of `read(2)`.
    pub(crate) fn read(self) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Inline(bytes) => Ok(bytes),
            Self::File(file) => files::read_to_end(file),
        }
    }

    /// Makes it readable from its start for another child.
    ///
    /// # Errors
    /// Of `lseek(2)`.
    pub(crate) fn rewind(&self) -> nix::Result<()> {
        match self {
            Self::Inline(_) => Ok(()),
            Self::File(file) => lseek(file, 0, Whence::SeekSet).map(drop),
        }
    }
}

/// When a time from now will be: seconds since 1970, as `pyspawner_host.deadline()` has it. `None` if that is beyond all clocks.
pub(crate) fn deadline(from_now: Duration) -> Option<f64> {
    let end = SystemTime::now().checked_add(from_now)?;
    let end = end.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(end.as_secs_f64())
}
