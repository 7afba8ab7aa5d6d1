//! Reading and writing lines on descriptors that may be files, pipes or terminals.
//!
//! Runs on: the I/O thread.
//!
//! Descriptors that the host shares with other processes stay in blocking mode, since that
//! belongs to all of them; the runtime's word that one is ready makes a call that does not
//! block. Regular files are always ready, and epoll does not take them.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use tokio::io::unix::AsyncFd;

use crate::sys::files::{Interest, watch};

/// Bytes that a write to a pipe that is ready takes without blocking (`pipe(7)`, PIPE_BUF).
const AT_ONCE: usize = 4096;

enum Descriptor {
    Watched(AsyncFd<OwnedFd>),
    AlwaysReady(OwnedFd),
}

impl Descriptor {
    fn new(fd: OwnedFd, interest: Interest) -> std::io::Result<Self> {
        // Only a look at the type first: a descriptor cannot be taken back from a failed watch.
        let kind = nix::sys::stat::fstat(&fd)?.st_mode & libc::S_IFMT;
        let device_without_events = kind == libc::S_IFCHR && !nix::unistd::isatty(&fd)?;
        if kind == libc::S_IFREG || kind == libc::S_IFDIR || device_without_events {
            Ok(Self::AlwaysReady(fd))
        } else {
            Ok(Self::Watched(watch(fd, interest)?))
        }
    }

    async fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let result = match self {
                Self::AlwaysReady(fd) => {
                    // Nothing else would run for as long as there is more.
                    tokio::task::yield_now().await;
                    nix::unistd::read(fd, &mut *buffer)
                }
                Self::Watched(fd) => {
                    let mut ready = fd.readable().await?;
                    if !is_ready(fd.get_ref(), PollFlags::POLLIN)? {
                        ready.clear_ready();
                        continue;
                    }
                    nix::unistd::read(fd.get_ref(), buffer)
                }
            };
            match result {
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                other => return Ok(other?),
            }
        }
    }

    async fn write(&self, bytes: &[u8]) -> std::io::Result<usize> {
        loop {
            let result = match self {
                Self::AlwaysReady(fd) => {
                    tokio::task::yield_now().await;
                    nix::unistd::write(fd, bytes)
                }
                Self::Watched(fd) => {
                    let mut ready = fd.writable().await?;
                    if !is_ready(fd.get_ref(), PollFlags::POLLOUT)? {
                        ready.clear_ready();
                        continue;
                    }
                    nix::unistd::write(fd.get_ref(), &bytes[..bytes.len().min(AT_ONCE)])
                }
            };
            match result {
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                other => return Ok(other?),
            }
        }
    }
}

/// Whether a call would not block now. The runtime learns of changes alone (epoll's edge
/// mode), and a descriptor in blocking mode never says EAGAIN.
fn is_ready(fd: &OwnedFd, events: PollFlags) -> nix::Result<bool> {
    let mut poll = [PollFd::new(fd.as_fd(), events)];
    Ok(nix::poll::poll(&mut poll, PollTimeout::ZERO)? > 0)
}

/// A line of input, without its line feed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Text(Vec<u8>),
    /// Longer than the limit; the rest was skipped.
    TooLong,
}

/// How many bytes are read at once, at most.
const CHUNK: usize = 64 << 10;

/// Splits a descriptor's content into lines of a limited length.
pub(super) struct LineReader {
    source: Descriptor,
    splitter: Splitter,
    ended: bool,
    chunk: Box<[u8]>,
    /// Bytes read so far.
    pub position: u64,
}

impl LineReader {
    pub(super) fn new(fd: OwnedFd, limit: usize) -> std::io::Result<Self> {
        Ok(Self {
            source: Descriptor::new(fd, Interest::READABLE)?,
            splitter: Splitter::new(limit),
            ended: false,
            chunk: vec![0; CHUNK].into(),
            position: 0,
        })
    }

    /// The next line; `None` at the end. Loses nothing if dropped before it is done.
    pub(super) async fn next(&mut self) -> std::io::Result<Option<Line>> {
        loop {
            if let Some(line) = self.splitter.next() {
                return Ok(Some(line));
            }
            if self.ended {
                return Ok(self.splitter.rest());
            }
            let count = self.source.read(&mut self.chunk).await?;
            self.position += count as u64;
            self.ended = count == 0;
            self.splitter.add(&self.chunk[..count]);
        }
    }
}

/// The line splitting alone.
struct Splitter {
    pending: Vec<u8>,
    /// Where in `pending` the next line starts, and up to where no line feed was found.
    start: usize,
    searched: usize,
    limit: usize,
    /// Within a line that is too long already.
    skipping: bool,
}

impl Splitter {
    fn new(limit: usize) -> Self {
        Self {
            pending: Vec::new(),
            start: 0,
            searched: 0,
            limit,
            skipping: false,
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.pending.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.pending.extend_from_slice(bytes);
    }

    fn next(&mut self) -> Option<Line> {
        let found = self.pending[self.searched..]
            .iter()
            .position(|b| *b == b'\n');
        let Some(found) = found else {
            self.searched = self.pending.len();
            if self.searched - self.start > self.limit {
                self.skipping = true;
                self.start = self.searched;
            }
            return None;
        };
        let end = self.searched + found;
        let line = self.take(end);
        self.start = end + 1;
        self.searched = self.start;
        Some(line)
    }

    /// What follows the last line feed, at the end of the input.
    fn rest(&mut self) -> Option<Line> {
        let end = self.pending.len();
        if end == self.start && !self.skipping {
            return None;
        }
        let line = self.take(end);
        self.start = end;
        self.searched = end;
        Some(line)
    }

    fn take(&mut self, end: usize) -> Line {
        let line = &self.pending[self.start..end];
        if std::mem::take(&mut self.skipping) || line.len() > self.limit {
            return Line::TooLong;
        }
        Line::Text(line.strip_suffix(b"\r").unwrap_or(line).to_vec())
    }
}

/// Writes lines to a descriptor.
pub(super) struct LineWriter {
    target: Descriptor,
    pending: Vec<u8>,
    /// How much of it has been written. It is not moved up each time: that takes hours for what jobs may return at once.
    written: usize,
}

/// How much memory a writer keeps that has nothing to write, in bytes.
const KEPT: usize = 1 << 20;

impl LineWriter {
    pub(super) fn new(fd: OwnedFd) -> std::io::Result<Self> {
        Ok(Self {
            target: Descriptor::new(fd, Interest::WRITABLE)?,
            pending: Vec::new(),
            written: 0,
        })
    }

    /// Puts a line behind what is still to be written.
    pub(super) fn add(&mut self, line: &[u8]) {
        self.pending.extend_from_slice(line);
    }

    /// Writes all that was added, waiting for a reader that is slow. Loses nothing if dropped
    /// before it is done.
    pub(super) async fn flush(&mut self) -> std::io::Result<()> {
        while self.written < self.pending.len() {
            self.written += self.target.write(&self.pending[self.written..]).await?;
        }
        self.pending.clear();
        self.pending.shrink_to(KEPT);
        self.written = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splits `input`, handed over in pieces of `step` bytes.
    fn split(input: &[u8], step: usize, limit: usize) -> Vec<Line> {
        let mut splitter = Splitter::new(limit);
        let mut lines = Vec::new();
        for piece in input.chunks(step) {
            splitter.add(piece);
            lines.extend(std::iter::from_fn(|| splitter.next()));
        }
        lines.extend(splitter.rest());
        lines
    }

    #[test]
    fn lines_are_the_same_however_they_arrive() {
        let text = |text: &str| Line::Text(text.into());
        let expected = [text("a"), text(""), Line::TooLong, text("bc"), text("end")];
        for step in 1..20 {
            let lines = split(b"a\r\n\ntoo long\nbc\nend", step, 4);
            assert_eq!(lines, expected, "in pieces of {step}");
        }
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let mut splitter = Splitter::new(8);
        for _ in 0..1000 {
            splitter.add(&[b'x'; 64]);
            assert_eq!(splitter.next(), None);
        }
        assert!(splitter.pending.capacity() < 1024);
        assert_eq!(splitter.rest(), Some(Line::TooLong));
        assert_eq!(splitter.rest(), None);
    }
}
