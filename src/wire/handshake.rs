//! The words that host and child exchange over the control socket, one a message, before any of
//! the job's code runs. The child closes its end then, so a job cannot speak here.
//!
//! Runs on: the I/O thread, a child.

use crate::layer::SetupError;
use crate::sys::messages::LONGEST;

/// The exit status of a child that did not get as far as its job. Its report says why.
pub(crate) const NEVER_STARTED: i32 = 125;

/// What the host says once it has done its half.
pub(crate) const GO: &[u8] = b"g";

/// What the child says last. Nothing at all means that it ended on its way in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ChildReport {
    /// The sandbox is complete, and the child waits for its job.
    Ready,
    /// The job's code runs now. Nothing follows.
    Started,
    /// A layer could not be applied.
    SetupFailed(SetupError),
    /// A hook of the host's operator raised, or anything else that is not a layer.
    HookFailed(String),
    /// The arguments could not be decoded.
    InvalidJob(String),
}

impl ChildReport {
    /// The report as bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, text) = match self {
            Self::Ready => (b'R', String::new()),
            Self::Started => (b'S', String::new()),
            Self::SetupFailed(error) => {
                let error = serde_json::to_string(&error.fitting(LONGEST / 2));
                (b'F', error.expect("an error is valid JSON"))
            }
            Self::HookFailed(text) => (b'H', text.clone()),
            Self::InvalidJob(text) => (b'I', text.clone()),
        };
        let text = &text.as_bytes()[..text.len().min(LONGEST - 1)];
        [&[kind], text].concat()
    }

    /// Reads a report; `None` if it is not one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, text) = bytes.split_first()?;
        let text = String::from_utf8_lossy(text).into_owned();
        match kind {
            b'R' => Some(Self::Ready),
            b'S' => Some(Self::Started),
            b'H' => Some(Self::HookFailed(text)),
            b'I' => Some(Self::InvalidJob(text)),
            b'F' => serde_json::from_str(&text).ok().map(Self::SetupFailed),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::layer::Layer;

    #[test]
    fn every_report_survives_the_socket() {
        let reports = [
            ChildReport::Ready,
            ChildReport::Started,
            ChildReport::SetupFailed(SetupError::new(Layer::Root, "mount /proc", Errno::EPERM)),
            ChildReport::SetupFailed(SetupError::found(Layer::Root, "nothing").hinting("look")),
            ChildReport::HookFailed("Traceback\nValueError: x".to_owned()),
            ChildReport::InvalidJob("too deep".to_owned()),
        ];
        for report in reports {
            assert_eq!(ChildReport::decode(&report.encode()), Some(report));
        }
    }

    #[test]
    fn bytes_that_are_no_report_are_none() {
        for bytes in [&b""[..], b"X", b"F", b"F\"root\"", b"F{\"layer\":\"none\"}"] {
            assert_eq!(ChildReport::decode(bytes), None, "{bytes:?}");
        }
    }
}
