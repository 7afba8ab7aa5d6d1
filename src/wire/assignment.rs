//! What the host hands to a child that waits in its sandbox: a job.
//!
//! Runs on: the I/O thread, a child.
//!
//! It is one message at the control socket: JSON, then the arguments, with the descriptors of the job's streams. The child takes it
//! in [`crate::child::assigned`].

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use super::payload::{Call, Payload};
use crate::sys::messages;

/// What the host says of a job. With it come the arguments, unless they are in a file, and the
/// descriptors of [`Handed`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Assignment {
    /// What `ps` shows for the child; the kernel cuts it at 15 bytes.
    pub process_name: Option<String>,
    pub call: Call,
}

/// The longest message in bytes: what a client may say, in some words more.
pub(crate) const LONGEST: usize = messages::LONGEST + (1 << 10);

/// The host's descriptors that become the job's. Numbers, not owners: a message holds copies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handed {
    pub stdin: RawFd,
    pub stdout: RawFd,
    pub stderr: RawFd,
    pub payload: Option<RawFd>,
    pub result: Option<RawFd>,
}

impl Handed {
    /// In the order in which they are sent.
    pub(crate) fn numbers(&self) -> Vec<RawFd> {
        let always = [self.stdin, self.stdout, self.stderr];
        let others = self.payload.into_iter().chain(self.result);
        always.into_iter().chain(others).collect()
    }
}

impl Assignment {
    pub(crate) fn encode(&self, payload: &Payload) -> Vec<u8> {
        let mut message = serde_json::to_vec(self).expect("an assignment is valid JSON");
        if let Payload::Inline(bytes) = payload {
            messages::attach(&mut message, bytes);
        }
        message
    }
}
