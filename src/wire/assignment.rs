//! What the host hands to a child that waits in its sandbox: a job.
//!
//! Runs on: the I/O thread, a child.
//!
//! It is one message at the control socket: JSON, then the arguments, with the descriptors of the job's streams. The child takes it
//! in [`crate::child::assigned`].

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::fd_set::{FdSet, Roles};
use super::payload::{Call, Payload};
use crate::sys::messages::{self, Message};

/// What the host says of a job. With it come the arguments, unless they are in a file, and the descriptors.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Assignment {
    /// What `ps` shows for the child; the kernel cuts it at 15 bytes.
    pub process_name: Option<String>,
    pub call: Call,
    /// Whether the child passes its working folder to the host, which looks into it after the child's end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shows_folder: bool,
}

/// The same as it is sent.
#[derive(Serialize, Deserialize)]
struct Head<A> {
    assignment: A,
    roles: Roles,
}

/// A job as its child takes it.
pub(crate) struct Received {
    pub assignment: Assignment,
    pub descriptors: FdSet<OwnedFd>,
    /// The arguments, if they are not in a file.
    pub arguments: Option<Vec<u8>>,
}

/// The longest message in bytes: what a client may say, in some words more.
pub(crate) const LONGEST: usize = messages::LONGEST + (1 << 10);

impl Assignment {
    /// As bytes, with which these descriptors are sent.
    pub(crate) fn encode(&self, payload: &Payload, roles: Roles) -> Vec<u8> {
        let head = Head {
            assignment: self,
            roles,
        };
        let mut message = serde_json::to_vec(&head).expect("an assignment is valid JSON");
        if let Payload::Inline(bytes) = payload {
            messages::attach(&mut message, bytes);
        }
        message
    }
}

impl Received {
    /// Reads a message.
    ///
    /// # Errors
    /// EBADMSG if it is none; EMFILE, EMSGSIZE if it was cut; EBADF if descriptors are missing.
    pub(crate) fn decode(message: Message) -> Result<Self, Errno> {
        if message.is_cut {
            return Err(match message.lost_descriptors() {
                true => Errno::EMFILE,
                false => Errno::EMSGSIZE,
            });
        }
        let (text, attached) = messages::split_attached(&message.bytes);
        let head: Head<Assignment> = serde_json::from_slice(text).map_err(|_| Errno::EBADMSG)?;
        let arguments = attached.map(<[u8]>::to_vec);
        let descriptors = FdSet::received(head.roles, message.descriptors);
        Ok(Self {
            assignment: head.assignment,
            descriptors: descriptors.map_err(|_| Errno::EBADF)?,
            arguments,
        })
    }
}
