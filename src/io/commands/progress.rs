//! What `map` and `bench` show on a terminal while they work, and `map`'s summary of what failed.
//!
//! Runs on: the I/O thread.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

use crate::io::pool::Outcome;
use crate::logging;
use crate::sys::files;

/// How often a bar is drawn at most, in a second.
const DRAWN: u8 = 10;
/// How often a bar is drawn at least: the time goes on while jobs run.
pub(super) const TICK: Duration = Duration::from_millis(500);
/// How many failures the summary tells.
const TOLD: usize = 10;
/// The longest id and reason in the summary, in characters.
const LONGEST_ID: usize = 40;
const LONGEST_REASON: usize = 160;

/// Whether there is a terminal on which a line can be drawn again. Asked by the command, since the host has the children's
/// environment.
pub(crate) fn is_wanted(quiet: bool) -> bool {
    let is_terminal = nix::unistd::isatty(std::io::stderr()).unwrap_or(false);
    let can_move = std::env::var_os("TERM").is_some_and(|name| !name.is_empty() && name != "dumb");
    !quiet && is_terminal && can_move
}

/// A bar on standard error.
pub(super) fn bar(length: Option<u64>, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("a valid template");
    let target = ProgressDrawTarget::term_like_with_hz(Box::new(Terminal::default()), DRAWN);
    ProgressBar::with_draw_target(length, target).with_style(style)
}

/// Takes a bar away.
pub(super) fn remove(bar: &ProgressBar) {
    bar.finish_and_clear();
    logging::set_bar(false);
}

/// The terminal behind standard error, written to by one system call for each drawing, which takes no lock, and is left out if
/// the terminal takes nothing.
#[derive(Debug, Default)]
struct Terminal {
    drawing: Mutex<String>,
}

impl Terminal {
    fn add(&self, text: std::fmt::Arguments<'_>) -> std::io::Result<()> {
        let mut drawing = self.drawing.lock().expect("nobody panics with it");
        drawing.write_fmt(text).expect("a string takes everything");
        Ok(())
    }

    /// By so many places; 0 would be 1 to a terminal.
    fn move_cursor(&self, places: usize, direction: char) -> std::io::Result<()> {
        match places {
            0 => Ok(()),
            _ => self.add(format_args!("\x1b[{places}{direction}")),
        }
    }

    /// One without lines or columns, as a pseudoterminal may be, is taken for an ordinary one.
    fn size() -> (u16, u16) {
        match Term::stderr().size() {
            (0, _) | (_, 0) => (24, 80),
            size => size,
        }
    }
}

/// The control sequences are those of ECMA-48.
impl TermLike for Terminal {
    fn width(&self) -> u16 {
        Self::size().1
    }

    fn height(&self) -> u16 {
        Self::size().0
    }

    fn move_cursor_up(&self, n: usize) -> std::io::Result<()> {
        self.move_cursor(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> std::io::Result<()> {
        self.move_cursor(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> std::io::Result<()> {
        self.move_cursor(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> std::io::Result<()> {
        self.move_cursor(n, 'D')
    }

    fn write_line(&self, text: &str) -> std::io::Result<()> {
        self.add(format_args!("{text}\r\n"))
    }

    fn write_str(&self, text: &str) -> std::io::Result<()> {
        self.add(format_args!("{text}"))
    }

    fn clear_line(&self) -> std::io::Result<()> {
        self.add(format_args!("\r\x1b[2K"))
    }

    fn flush(&self) -> std::io::Result<()> {
        let drawing = std::mem::take(&mut *self.drawing.lock().expect("nobody panics with it"));
        // A stopped terminal (Ctrl-S) must not stop jobs.
        if files::has_room(libc::STDERR_FILENO, 0) {
            files::write_once(libc::STDERR_FILENO, drawing.as_bytes());
            logging::set_bar(true);
        }
        Ok(())
    }
}

/// A job that is not `ok`, in a few words.
struct Failure {
    line: u64,
    id: String,
    outcome: Outcome,
    reason: String,
}

/// How far `map` is.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    start: Instant,
    counts: BTreeMap<Outcome, u64>,
    failures: Vec<Failure>,
    passed_over: u64,
}

impl Progress {
    /// `size` is that of the input in bytes, if it is known.
    pub(super) fn new(size: Option<u64>, is_wanted: bool) -> Self {
        let template = match size {
            Some(_) => "{bar:24} {percent:>3}%  {msg}  {elapsed_precise}, {eta_precise} to go",
            None => "{spinner} {msg}  {elapsed_precise}",
        };
        Self {
            bar: is_wanted.then(|| bar(size, template)),
            start: Instant::now(),
            counts: BTreeMap::new(),
            failures: Vec::new(),
            passed_over: 0,
        }
    }

    pub(super) fn is_shown(&self) -> bool {
        self.bar.is_some()
    }

    /// So many bytes of the input have been read.
    pub(super) fn has_read(&self, position: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(position);
        }
    }

    /// Counts a job. `reason` tells why it is not `ok`.
    pub(super) fn count(&mut self, line: u64, id: &str, outcome: Outcome, reason: Option<&str>) {
        *self.counts.entry(outcome).or_default() += 1;
        if outcome != Outcome::Ok && self.bar.is_some() && self.failures.len() < TOLD {
            self.failures.push(Failure {
                line,
                id: id.chars().take(LONGEST_ID).collect(),
                outcome,
                reason: reason
                    .unwrap_or_default()
                    .chars()
                    .take(LONGEST_REASON)
                    .collect(),
            });
        }
        if let Some(bar) = &self.bar {
            bar.set_message(self.counted());
        }
    }

    /// Counts a job that is left out.
    pub(super) fn pass_over(&mut self) {
        self.passed_over += 1;
    }

    /// Draws the time anew.
    pub(super) fn tick(&self) {
        if let Some(bar) = &self.bar {
            bar.tick();
        }
    }

    /// How many jobs were not `ok`.
    pub(super) fn failed(&self) -> u64 {
        self.total() - self.counts.get(&Outcome::Ok).unwrap_or(&0)
    }

    /// Takes the bar away and says what there was.
    pub(super) fn end(&self) {
        let took = self.start.elapsed().as_secs_f64();
        let mut counted = self.counted();
        if self.passed_over > 0 {
            counted += &format!("; {} were ok before", self.passed_over);
        }
        let Some(bar) = &self.bar else {
            log::info!("{counted} in {took:.1} s");
            return;
        };
        remove(bar);
        let mut text = format!("pyspawner: {counted} in {took:.1} s\n");
        for failure in &self.failures {
            let id = match failure.id == failure.line.to_string() {
                true => String::new(),
                false => format!(" {:?}", failure.id),
            };
            let Failure {
                line,
                outcome,
                reason,
                ..
            } = failure;
            text += &format!("  {:<15} line {line}{id}: {reason}\n", outcome.name());
        }
        let more = self.failed() - self.failures.len() as u64;
        if more > 0 {
            text += &format!("  and {more} more that are not ok\n");
        }
        let text = logging::without_controls(&text);
        files::write_once(libc::STDERR_FILENO, text.as_bytes());
    }

    fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// `400 jobs (32/s): 395 ok, 5 exited`.
    fn counted(&self) -> String {
        let total = self.total();
        let rate = total as f64 / self.start.elapsed().as_secs_f64().max(0.001);
        let counts: Vec<String> = self
            .counts
            .iter()
            .map(|(outcome, count)| format!("{count} {}", outcome.name()))
            .collect();
        match counts.is_empty() {
            true => "no job has ended".to_owned(),
            false => format!("{total} jobs ({rate:.0}/s): {}", counts.join(", ")),
        }
    }
}
