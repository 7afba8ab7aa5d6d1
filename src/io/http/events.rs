//! What happens to a job, as server-sent events.
//!
//! Runs on: the I/O thread.
//!
//! Nothing is kept of an event: a stream's place is how much of each output it has told, and that place is the event's
//! id. So a reader that is slow, or comes back with `Last-Event-ID`, costs no more than its connection, and gets what
//! came meanwhile in fewer and longer events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use base64::Engine;
use futures_util::Stream;
use tokio::sync::watch;

use super::jobs::{Entry, Live, Phase};

/// An event has no more than so many bytes of output.
const AT_ONCE: usize = 64 << 10;
/// Without events a comment is sent this often, so that a reader that is gone is noticed.
const BETWEEN_COMMENTS: Duration = Duration::from_secs(15);

/// How much of a job a stream has told. Its text is an event's id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    step: Step,
    stdout: usize,
    stderr: usize,
    progress: u64,
}

/// The last of the events that come once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    #[default]
    Nothing,
    Queued,
    Started,
    Result,
}

const STEPS: [Step; 4] = [Step::Nothing, Step::Queued, Step::Started, Step::Result];

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            step,
            stdout,
            stderr,
            progress,
        } = self;
        write!(f, "{}-{stdout}-{stderr}-{progress}", *step as u8)
    }
}

impl std::str::FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let numbers: Vec<u64> = text
            .split('-')
            .map(|part| part.parse().map_err(|_| ()))
            .collect::<Result<_, ()>>()?;
        let [step, stdout, stderr, progress] = numbers[..] else {
            return Err(());
        };
        let length = |number| usize::try_from(number).map_err(|_| ());
        Ok(Self {
            step: *STEPS.get(length(step)?).ok_or(())?,
            stdout: length(stdout)?,
            stderr: length(stderr)?,
            progress,
        })
    }
}

/// The events of a job from a place on, until it has ended. `guard` is held for as long as the stream.
pub(super) fn stream<G: Send + 'static>(
    entry: Arc<Entry>,
    from: Place,
    guard: G,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = entry.changes();
    let state = (entry, changes, from, guard);
    let events = futures_util::stream::unfold(state, async |(entry, mut changes, place, guard)| {
        let (event, place) = next(&entry, &mut changes, place).await?;
        Some((Ok(event), (entry, changes, place, guard)))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(BETWEEN_COMMENTS))
}

async fn next(
    entry: &Entry,
    changes: &mut watch::Receiver<()>,
    place: Place,
) -> Option<(Event, Place)> {
    if place.step == Step::Result {
        return None;
    }
    loop {
        // Before the look, so that what changes after it is not missed.
        changes.mark_unchanged();
        let told = tell(&entry.name, &entry.live(), place);
        if let Some((name, data, place)) = told {
            let event = Event::default()
                .event(name)
                .id(place.to_string())
                .data(data);
            return Some((event, place));
        }
        changes.changed().await.ok()?;
    }
}

/// The next event of what is known: its name, its data, and the place after it.
fn tell(name: &str, live: &Live, place: Place) -> Option<(&'static str, String, Place)> {
    if place.step < Step::Queued {
        let data = serde_json::json!({ "job": name }).to_string();
        let step = Step::Queued;
        return Some(("queued", data, Place { step, ..place }));
    }
    if place.step < Step::Started && live.was_started {
        let step = Step::Started;
        return Some(("started", "{}".to_owned(), Place { step, ..place }));
    }
    let has_ended = live.phase == Phase::Ended;
    if let Some((data, stdout)) = output(&live.stdout, place.stdout, has_ended) {
        return Some(("stdout", data, Place { stdout, ..place }));
    }
    if let Some((data, stderr)) = output(&live.stderr, place.stderr, has_ended) {
        return Some(("stderr", data, Place { stderr, ..place }));
    }
    if let Some((count, said)) = &live.progress
        && *count > place.progress
    {
        let data = serde_json::to_string(said).expect("progress is valid JSON");
        let progress = *count;
        return Some(("progress", data, Place { progress, ..place }));
    }
    let record = live.record.as_ref()?;
    let data = String::from_utf8_lossy(record).trim_end().to_owned();
    let step = Step::Result;
    Some(("result", data, Place { step, ..place }))
}

/// What is there of a stream behind `from`: as text, or as base64 where it is no UTF-8. A character of which only a
/// part has come waits for the rest, if there may be more.
fn output(bytes: &[u8], from: usize, has_ended: bool) -> Option<(String, usize)> {
    let rest = bytes.get(from..).filter(|rest| !rest.is_empty())?;
    let rest = &rest[..rest.len().min(AT_ONCE)];
    let is_last = has_ended && from + rest.len() == bytes.len();
    let text = match std::str::from_utf8(rest) {
        Ok(text) => Some(text),
        Err(error) => {
            let (valid, _) = rest.split_at(error.valid_up_to());
            let is_cut = error.error_len().is_none() && !is_last;
            match valid {
                [] if is_cut => return None,
                [] => None,
                _ => std::str::from_utf8(valid).ok(),
            }
        }
    };
    let (data, length) = match text {
        Some(text) => (serde_json::json!({ "text": text }), text.len()),
        None => {
            let base64 = base64::engine::general_purpose::STANDARD.encode(rest);
            (serde_json::json!({ "base64": base64 }), rest.len())
        }
    };
    Some((data.to_string(), from + length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::http::Keeping;
    use crate::io::http::jobs::Jobs;
    use crate::io::pool::live_output::{Progress, Stream};

    const KEEPING: Keeping = Keeping {
        ttl: Duration::MAX,
        bytes: usize::MAX,
    };

    fn told(entry: &Entry, place: &mut Place) -> Vec<String> {
        let mut events = Vec::new();
        while let Some((name, data, next)) = tell("J", &entry.live(), *place) {
            events.push(format!("{name} {data}"));
            *place = next;
            if name == "result" {
                break;
            }
        }
        events
    }

    #[test]
    fn events_tell_everything_once_and_go_on_from_any_place() {
        let entry = Jobs::new(KEEPING).entry(None, 0, None, true);
        let mut place = Place::default();
        assert_eq!(told(&entry, &mut place), [r#"queued {"job":"J"}"#]);
        entry.start();
        entry.add_output(Stream::Stdout, "é".as_bytes());
        entry.add_output(Stream::Stderr, b"\xffa");
        let expected = [
            "started {}",
            r#"stdout {"text":"é"}"#,
            r#"stderr {"base64":"/2E="}"#,
        ];
        assert_eq!(told(&entry, &mut place), expected);
        let middle = place;
        entry.add_output(Stream::Stdout, b"b");
        for fraction in [0.25, 0.5] {
            entry.set_progress(Progress {
                fraction,
                text: "x".to_owned(),
            });
        }
        let expected = [
            r#"stdout {"text":"b"}"#,
            r#"progress {"fraction":0.5,"text":"x"}"#,
        ];
        assert_eq!(told(&entry, &mut place), expected);
        let mut again: Place = middle.to_string().parse().expect("a place");
        assert_eq!(told(&entry, &mut again), expected);
    }

    #[test]
    fn a_character_that_is_cut_waits_for_its_rest() {
        let text = "aé".as_bytes();
        assert_eq!(output(&text[..2], 0, false).expect("some").1, 1);
        assert_eq!(output(&text[..2], 1, false), None);
        assert_eq!(output(text, 1, false).expect("some").1, 3);
        let (data, end) = output(&text[..2], 1, true).expect("the last of it");
        assert_eq!((data.as_str(), end), (r#"{"base64":"ww=="}"#, 2));
        assert_eq!(output(text, 99, true), None);
    }

    #[test]
    fn an_id_that_is_none_is_refused() {
        for text in [
            "",
            "1",
            "1-2-3",
            "9-0-0-0",
            "1-2-3-x",
            "1-2-3-4-5",
            "-1-0-0-0",
        ] {
            assert_eq!(text.parse::<Place>(), Err(()), "{text}");
        }
    }
}
