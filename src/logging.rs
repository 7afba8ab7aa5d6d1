//! The log: lines on standard error, each one `write(2)`.
//!
//! Runs on: any process.
//!
//! Not through `std::io::stderr`, whose lock a clone could inherit as taken.

use std::borrow::Cow;
use std::cell::Cell;
use std::io::Write;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use log::{LevelFilter, Log, Metadata, Record};

use crate::sys::files;

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
        let mut line = Vec::with_capacity(160);
        let level = record.level().as_str().to_ascii_lowercase();
        let elapsed = self.start.elapsed().as_secs_f64();
        // Writing to a vector cannot fail.
        let text = record.args().to_string();
        let text = without_controls(&text);
        let _ = writeln!(line, "pyspawner: {level}: {text} [{elapsed:.3}s]");
        write(&line);
    }

    fn flush(&self) {}
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
        text.extend_from_slice(
            format!("pyspawner: warn: {lost} lines of the log were lost\n").as_bytes(),
        );
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
pub(crate) fn install(filter: &str) -> anyhow::Result<()> {
    let filter = env_filter::Builder::new()
        .try_parse(filter)
        .map_err(|error| anyhow::anyhow!("PYSPAWNER_LOG: {error}"))?
        .build();
    log::set_max_level(filter.filter());
    let start = Instant::now();
    log::set_boxed_logger(Box::new(Lines { filter, start }))?;
    // std's own hook takes the lock of its standard error.
    std::panic::set_hook(Box::new(|panic| {
        write(format!("pyspawner: internal error: {panic}\n").as_bytes());
    }));
    Ok(())
}
