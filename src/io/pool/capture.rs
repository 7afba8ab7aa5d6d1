//! Collecting what a child writes, up to a limit.
//!
//! Runs on: the I/O thread.

use std::cell::Cell;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::Notify;

/// Tells that a stream has brought more than its limit.
#[derive(Default)]
pub(crate) struct Overflow {
    notify: Notify,
    stream: Cell<Option<&'static str>>,
}

impl Overflow {
    /// Waits for the first stream of which there is too much. Returns its name.
    pub(crate) async fn of_any(&self) -> &'static str {
        loop {
            if let Some(stream) = self.stream.get() {
                return stream;
            }
            self.notify.notified().await;
        }
    }

    /// The first stream of which there was too much, if there was one.
    pub(crate) fn stream(&self) -> Option<&'static str> {
        self.stream.get()
    }

    fn tell(&self, stream: &'static str) {
        if self.stream.get().is_none() {
            self.stream.set(Some(stream));
            self.notify.notify_one();
        }
    }
}

/// How many bytes are read at once, at least.
const AT_ONCE: usize = 16 << 10;

/// What one stream has brought so far.
#[derive(Debug, Default)]
pub(crate) struct Capture {
    pub bytes: Vec<u8>,
    /// Whether there was more than the limit.
    pub truncated: bool,
}

impl Capture {
    /// Reads to the stream's end. What goes beyond `limit` bytes is read and thrown away, so
    /// that the writer does not wait, and `overflow` is told the stream's `name`. After each read
    /// `heard` gets all that was kept so far.
    pub(crate) async fn collect(
        &mut self,
        source: Option<pipe::Receiver>,
        name: &'static str,
        limit: u64,
        overflow: &Overflow,
        mut heard: impl FnMut(&[u8]),
    ) -> std::io::Result<()> {
        let Some(mut source) = source else {
            return Ok(());
        };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        loop {
            // Not into a buffer of the future's own: each move of one, and there are many, would copy it on the stack.
            self.bytes.reserve(AT_ONCE);
            if source.read_buf(&mut self.bytes).await? == 0 {
                return Ok(());
            }
            if self.bytes.len() > limit {
                self.bytes.truncate(limit);
                self.truncated = true;
                overflow.tell(name);
            }
            heard(&self.bytes);
        }
    }
}
