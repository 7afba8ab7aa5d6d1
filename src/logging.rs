//! The log: lines on standard error, each one `write(2)`.
//!
//! Runs on: any process.
//!
//! Not through `std::io::stderr`, whose lock a clone could inherit as taken.

use std::borrow::Cow;
use std::cell::Cell;
use std::io::Write;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Instant, SystemTime};

use log::kv::{Key, Source, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::{Deserialize, Serialize};

use crate::sys::files;

/// What is logged, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// For `env_filter`.
    pub filter: String,
    pub format: Format,
}

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// An object with `time`, `level`, `message`, and what else there is to say by name.
    Json,
}

/// Whether lines are objects. Set once, before there are threads.
static IS_JSON: AtomicBool = AtomicBool::new(false);

struct Lines {
    filter: env_filter::Filter,
    start: Instant,
}

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.filter.matches(record) {
            return;
        }
        let text = record.args().to_string();
        if IS_JSON.load(Relaxed) {
            return write(&object(record.level(), &text, record.key_values()));
        }
        let mut line = Vec::with_capacity(160);
        let level = record.level().as_str().to_ascii_lowercase();
        let elapsed = self.start.elapsed().as_secs_f64();
        // Writing to a vector cannot fail.
        let text = without_controls(&text);
        let _ = write!(line, "pyspawner: {level}: {text}");
        let mut named = Named(serde_json::Map::new());
        let _ = record.key_values().visit(&mut named);
        for (name, value) in named.0 {
            let value = value.to_string();
            let _ = write!(line, " {name}={}", without_controls(&value));
        }
        let _ = writeln!(line, " [{elapsed:.3}s]");
        write(&line);
    }

    fn flush(&self) {}
}

/// A line as an object.
fn object(level: Level, text: &str, values: &dyn Source) -> Vec<u8> {
    let mut named = Named(serde_json::Map::new());
    let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    named.0.insert("time".to_owned(), time.into());
    let level = level.as_str().to_ascii_lowercase();
    named.0.insert("level".to_owned(), level.into());
    named.0.insert("message".to_owned(), text.into());
    // One that cannot be told is left out.
    let _ = values.visit(&mut named);
    let mut line = serde_json::to_vec(&named.0).unwrap_or_default();
    line.push(b'\n');
    line
}

/// What a record has by name.
struct Named(serde_json::Map<String, serde_json::Value>);

impl<'kvs> VisitSource<'kvs> for Named {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        let value = serde_json::to_value(value).unwrap_or_default();
        self.0.insert(key.to_string(), value);
        Ok(())
    }
}

/// Writes what is no record of the log, such as the error with which this program ends.
pub(crate) fn say(level: Level, text: &str) {
    let line = match IS_JSON.load(Relaxed) {
        true => object(level, text, &None::<(&str, &str)>),
        false => {
            let level = level.as_str().to_ascii_lowercase();
            let text = format!("pyspawner: {level}: {text}\n");
            without_controls(&text).into_owned().into_bytes()
        }
    };
    write(&line);
}

thread_local! {
    /// Whether the terminal's last line is a progress bar, which the next text takes the place of. The thread that draws it knows;
    /// children do not, whose standard error is another.
    static HAS_BAR: Cell<bool> = const { Cell::new(false) };
}

/// Says whether the terminal's last line is a progress bar.
pub(crate) fn set_bar(is_there: bool) {
    HAS_BAR.set(is_there);
}

/// How many lines nobody had room for since the last that was written.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Writes a line of this program's to standard error, or drops it: a pipe that nobody reads, or a stopped terminal, must not stop
/// the host. The next line that is written tells how many were dropped.
pub(crate) fn write(line: &[u8]) {
    const CLEAR: &[u8] = b"\r\x1b[2K"; // ECMA-48, EL
    let lost = LOST.load(Relaxed);
    // A reader may be slow; one who has been waited for once is not waited for again.
    let patience = match lost {
        0 => PATIENCE,
        _ => 0,
    };
    if !files::has_room(libc::STDERR_FILENO, patience) {
        LOST.fetch_add(1, Relaxed);
        return;
    }
    LOST.fetch_sub(lost, Relaxed);
    let mut text = Vec::with_capacity(line.len() + 80);
    if HAS_BAR.replace(false) {
        text.extend_from_slice(CLEAR);
    }
    if lost > 0 {
        let words = format!("{lost} lines of the log were lost");
        let line = match IS_JSON.load(Relaxed) {
            true => object(Level::Warn, &words, &None::<(&str, &str)>),
            false => format!("pyspawner: warn: {words}\n").into_bytes(),
        };
        text.extend_from_slice(&line);
    }
    text.extend_from_slice(line);
    // What a pipe with room takes without waiting (`pipe(7)`, PIPE_BUF).
    for part in text.chunks(libc::PIPE_BUF) {
        if !files::has_room(libc::STDERR_FILENO, PATIENCE) {
            LOST.fetch_add(1, Relaxed);
            return;
        }
        files::write_once(libc::STDERR_FILENO, part);
    }
}

/// How long a line waits for room, in milliseconds.
const PATIENCE: u8 = 200;

/// Whether a character neither controls a terminal, nor ends a line, nor turns the direction of writing, nor stays out of sight.
pub(crate) fn is_plain(character: char) -> bool {
    let is_format = matches!(character, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !character.is_control() && !is_format
}

/// A text that a job, a client or a file may have a part in, without what a terminal obeys.
pub(crate) fn without_controls(text: &str) -> Cow<'_, str> {
    let is_obeyed = |c: char| !is_plain(c) && c != '\n' && c != '\t';
    match text.contains(is_obeyed) {
        false => Cow::Borrowed(text),
        true => {
            let escaped = text.chars().map(|c| match is_obeyed(c) {
                true => c.escape_default().to_string(),
                false => c.to_string(),
            });
            Cow::Owned(escaped.collect())
        }
    }
}

/// The filter for a verbosity (`-v` counts up, `-q` down) unless `PYSPAWNER_LOG` has one.
pub(crate) fn filter(verbose: u8, quiet: u8) -> String {
    let level = match i16::from(verbose) - i16::from(quiet) {
        i16::MIN..=-2 => LevelFilter::Off,
        -1 => LevelFilter::Error,
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        3.. => LevelFilter::Trace,
    };
    std::env::var("PYSPAWNER_LOG").unwrap_or_else(|_| level.to_string())
}

/// Installs the log. Once, before the I/O thread exists.
///
/// # Errors
/// With what is wrong with the filter.
pub(crate) fn install(settings: &Settings) -> anyhow::Result<()> {
    IS_JSON.store(settings.format == Format::Json, Relaxed);
    let filter = env_filter::Builder::new()
        .try_parse(&settings.filter)
        .map_err(|error| anyhow::anyhow!("PYSPAWNER_LOG: {error}"))?
        .build();
    log::set_max_level(filter.filter());
    let start = Instant::now();
    log::set_boxed_logger(Box::new(Lines { filter, start }))?;
    // std's own hook takes the lock of its standard error.
    std::panic::set_hook(Box::new(|panic| {
        say(Level::Error, &format!("internal error: {panic}"));
    }));
    Ok(())
}
