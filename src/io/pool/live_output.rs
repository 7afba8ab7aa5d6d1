//! What a job writes, told while it runs.
//!
//! Runs on: the I/O thread.

use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::untrusted_records::plain_text;
use crate::wire::record;

/// Somebody who is told what a job writes, as it comes. All of it is the word of code that nobody trusts.
pub(crate) trait Listener {
    /// More of a stream; in all no more than `limits.output`.
    fn output(&self, stream: Stream, bytes: &[u8]);
    /// How far the job says it is.
    fn progress(&self, progress: Progress);
}

/// One of the two streams that are listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// What a job passed to `pyspawner_host.progress(fraction, text)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// From 0 to 1 by convention; a job may say anything.
    pub fraction: f64,
    /// One line, in printable characters.
    pub text: String,
}

impl Progress {
    fn from_record(payload: &[u8]) -> Option<Self> {
        let said: Self = serde_json::from_slice(payload).ok()?;
        Some(Self {
            text: plain_text(said.text.as_bytes()),
            ..said
        })
    }
}

/// Tells a listener what has been added to a growing buffer.
pub(super) struct Teller {
    listener: Option<Rc<dyn Listener>>,
    /// How many bytes of the buffer it has been told.
    told: usize,
}

impl Teller {
    pub(super) fn new(listener: Option<&Rc<dyn Listener>>) -> Self {
        Self {
            listener: listener.cloned(),
            told: 0,
        }
    }

    /// `bytes` is all that a stream has brought.
    pub(super) fn tell_output(&mut self, stream: Stream, bytes: &[u8]) {
        if let Some(listener) = &self.listener
            && bytes.len() > self.told
        {
            listener.output(stream, &bytes[self.told..]);
            self.told = bytes.len();
        }
    }

    /// `bytes` is all that the result channel has brought. Of several progress records in it the last is told.
    pub(super) fn tell_progress(&mut self, bytes: &[u8]) {
        let Some(listener) = &self.listener else {
            return;
        };
        let mut latest = None;
        while let Some((tag, payload, rest)) = bytes.get(self.told..).and_then(record::split_first)
        {
            if tag == record::PROGRESS {
                latest = Some(payload);
            }
            self.told = bytes.len() - rest.len();
        }
        if let Some(progress) = latest.and_then(Progress::from_record) {
            listener.progress(progress);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[derive(Default)]
    struct Heard(RefCell<Vec<String>>);

    impl Listener for Heard {
        fn output(&self, stream: Stream, bytes: &[u8]) {
            let text = String::from_utf8_lossy(bytes);
            self.0.borrow_mut().push(format!("{stream:?} {text}"));
        }

        fn progress(&self, progress: Progress) {
            let Progress { fraction, text } = progress;
            self.0.borrow_mut().push(format!("{fraction} {text}"));
        }
    }

    fn progress_record(json: &str) -> Vec<u8> {
        let mut buffer = [0; 200];
        let length = record::frame_into(&mut buffer, record::PROGRESS, json.as_bytes());
        buffer[..length].to_vec()
    }

    #[test]
    fn each_byte_of_a_stream_is_told_once() {
        let heard = Rc::new(Heard::default());
        let listener: Rc<dyn Listener> = heard.clone();
        let mut teller = Teller::new(Some(&listener));
        for bytes in ["ab", "ab", "abc"] {
            teller.tell_output(Stream::Stdout, bytes.as_bytes());
        }
        assert_eq!(*heard.0.borrow(), ["Stdout ab", "Stdout c"]);
    }

    #[test]
    fn progress_is_told_once_its_record_is_whole_and_is_what_it_says() {
        let heard = Rc::new(Heard::default());
        let listener: Rc<dyn Listener> = heard.clone();
        let mut teller = Teller::new(Some(&listener));
        let records = [
            progress_record(r#"{"fraction": 0.25, "text": "a\u001b[2J"}"#),
            progress_record(r#"{"fraction": "much", "text": 5}"#),
        ]
        .concat();
        for length in 0..=records.len() {
            teller.tell_progress(&records[..length]);
        }
        assert_eq!(*heard.0.borrow(), [r"0.25 a\u{1b}[2J"]);
    }
}
