//! `POST /v1/map`: jobs as lines in, records as lines out, both streamed.
//!
//! Runs on: the I/O thread.
//!
//! The response is pulled: as long as its reader takes nothing, no further line is read and no further job begins. So a
//! slow reader slows its jobs, and costs no more than the records of those that ran already.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::stream::{FuturesOrdered, FuturesUnordered, StreamExt};
use futures_util::{Stream, TryStreamExt, stream};
use tokio::io::AsyncRead;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::codec::{AnyDelimiterCodec, AnyDelimiterCodecError, FramedRead};
use tokio_util::io::StreamReader;

use super::jobs::Entry;
use super::room::{NoRoom, Taken};
use super::service::{Asking, EndedWithReader, Service, State};
use crate::io::pool::{JobReport, Outcome};

/// So many jobs of a stream are under way for each that may run, so that the next is ready when one ends.
const PER_PLACE: usize = 2;

/// The records of the jobs whose lines are in `body`, as they end, or in the lines' order. `guard` is held for as long as
/// the stream.
pub(super) fn records(
    service: Arc<Service>,
    tenant: usize,
    body: Body,
    is_ordered: bool,
    guard: OwnedSemaphorePermit,
) -> impl Stream<Item = std::io::Result<Bytes>> {
    let most = PER_PLACE * service.places_of(tenant);
    let map = Map {
        lines: Lines::new(body, service.bounds.body),
        running: match is_ordered {
            true => Running::Ordered(FuturesOrdered::new()),
            false => Running::Unordered(FuturesUnordered::new()),
        },
        service,
        tenant,
        most,
        read: 0,
        held: None,
        _guard: guard,
    };
    stream::unfold(map, async |mut map| {
        let record = map.next().await?;
        Some((record, map))
    })
}

type Ending = Pin<Box<dyn Future<Output = Bytes> + Send>>;

/// The jobs of a stream that have been begun.
enum Running {
    Ordered(FuturesOrdered<Ending>),
    Unordered(FuturesUnordered<Ending>),
}

impl Running {
    fn push(&mut self, ending: Ending) {
        match self {
            Self::Ordered(all) => all.push_back(ending),
            Self::Unordered(all) => all.push(ending),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Ordered(all) => all.len(),
            Self::Unordered(all) => all.len(),
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        match self {
            Self::Ordered(all) => all.next().await,
            Self::Unordered(all) => all.next().await,
        }
    }
}

struct Map {
    service: Arc<Service>,
    tenant: usize,
    lines: Lines,
    running: Running,
    most: usize,
    read: u64,
    /// A line that waits for room in the queue.
    held: Option<Bytes>,
    _guard: OwnedSemaphorePermit,
}

impl Map {
    /// The next record; `None` after the last.
    async fn next(&mut self) -> Option<std::io::Result<Bytes>> {
        loop {
            let has_some = self.running.len() > 0;
            let may_read = self.held.is_none() && !self.lines.have_ended;
            tokio::select! {
                biased;
                Some(record) = self.running.next(), if has_some => return Some(Ok(record)),
                () = tokio::time::sleep(RETRY), if self.held.is_some() => {
                    let line = self.held.take().expect("looked at");
                    self.begin(line);
                }
                line = self.lines.next(), if may_read && self.running.len() < self.most => {
                    self.read += u64::from(line.is_some());
                    match line {
                        Some(Read::Line(line)) => self.begin(line),
                        Some(Read::Refused(reason)) => self.say(Outcome::InvalidJob, reason),
                        // The jobs that run end with the stream.
                        Some(Read::BrokenOff(error)) => return Some(Err(error)),
                        None => {}
                    }
                }
                else => return None,
            }
        }
    }

    /// Begins the job of a line. One that is none, or that cannot be taken any more, has its record at once.
    fn begin(&mut self, line: Bytes) {
        if self.service.state() != State::Ready {
            let detail = "the service is about to end, and takes no more jobs";
            return self.say(Outcome::Cancelled, detail.to_owned());
        }
        let asking = Asking {
            line: Some(self.read),
            ..Asking::of(self.tenant)
        };
        let mut room = Taken::default();
        let taken = match self.service.room.extend(&mut room, line.len()) {
            Ok(()) => self.service.take(asking, &line),
            Err(NoRoom) => return self.held = Some(line),
        };
        match taken {
            Ok((entry, _)) => self.running.push(Box::pin(ending(entry, room))),
            Err(problem) if problem.is_for_now() => self.held = Some(line),
            Err(problem) => self.say(Outcome::InvalidJob, problem.detail),
        }
    }

    fn say(&mut self, outcome: Outcome, detail: String) {
        let report = JobReport::not_run(outcome, detail);
        let record = report.to_line(self.read, &self.read.to_string());
        self.running
            .push(Box::pin(std::future::ready(record.into())));
    }
}

/// A line that waits for room is offered again after so long.
const RETRY: Duration = Duration::from_millis(20);

async fn ending(entry: Arc<Entry>, _room: Taken) -> Bytes {
    let guard = EndedWithReader::new(entry.clone());
    let record = entry.ended().await;
    drop(guard);
    record
}

/// What has been read of a body.
enum Read {
    Line(Bytes),
    /// A line that cannot be taken, for this reason.
    Refused(String),
    /// The client has gone, or sends what is no HTTP.
    BrokenOff(std::io::Error),
}

/// The lines of a body that still comes.
struct Lines {
    lines: FramedRead<Pin<Box<dyn AsyncRead + Send>>, AnyDelimiterCodec>,
    longest: usize,
    have_ended: bool,
}

impl Lines {
    fn new(body: Body, longest: usize) -> Self {
        let bytes = body.into_data_stream().map_err(std::io::Error::other);
        let codec = AnyDelimiterCodec::new_with_max_length(b"\n".to_vec(), Vec::new(), longest);
        Self {
            lines: FramedRead::new(Box::pin(StreamReader::new(bytes)), codec),
            longest,
            have_ended: false,
        }
    }

    /// The next line that is not empty; `None` at the end. What has come is kept if this is dropped.
    async fn next(&mut self) -> Option<Read> {
        loop {
            match self.lines.next().await {
                Some(Ok(line)) if line.trim_ascii().is_empty() => {}
                Some(Ok(line)) => return Some(Read::Line(line)),
                Some(Err(AnyDelimiterCodecError::MaxChunkLengthExceeded)) => {
                    // After an error a `None` comes, and then what is behind the line.
                    self.lines.next().await;
                    let longest = self.longest;
                    let reason = format!("the line is longer than {longest} bytes (serve.body)");
                    return Some(Read::Refused(reason));
                }
                Some(Err(AnyDelimiterCodecError::Io(error))) => {
                    self.have_ended = true;
                    return Some(Read::BrokenOff(error));
                }
                None => {
                    self.have_ended = true;
                    return None;
                }
            }
        }
    }
}
