//! The results of an earlier `map`, of which those that are `ok` are not to be had again.
//!
//! Runs on: the I/O thread.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;

/// The jobs that were `ok`, and how many bytes of the file are whole lines.
pub(super) struct EarlierResults {
    pub done: Done,
    pub whole: u64,
}

/// Jobs that need not be run again.
///
/// A job without an id of its own has its line's number for one, which may be another line's own id. The two are told apart by the
/// line's number in the result. Where that does not tell, the job is run again.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Done {
    /// Those with ids of their own.
    by_id: HashSet<String>,
    /// Those whose id is the number of their line.
    by_number: HashSet<u64>,
}

impl Done {
    /// Whether the job of this line was `ok`.
    pub(super) fn has(&self, number: u64, id: &str) -> bool {
        match id == number.to_string() {
            true => self.by_number.contains(&number),
            false => self.by_id.contains(id),
        }
    }

    fn set(&mut self, line: Line, is_ok: bool) {
        match (line.id == line.number.to_string(), is_ok) {
            (true, true) => drop(self.by_number.insert(line.number)),
            (true, false) => drop(self.by_number.remove(&line.number)),
            (false, true) => drop(self.by_id.insert(line.id)),
            (false, false) => drop(self.by_id.remove(&line.id)),
        }
    }
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "line")]
    number: u64,
    id: String,
    outcome: String,
}

/// Reads a file of result lines. What follows the last line feed is the beginning of a line that was never finished.
///
/// # Errors
/// If a line is no result of `map`: its number, and what is wrong with it.
pub(super) fn read(file: &File) -> anyhow::Result<EarlierResults> {
    let mut done = Done::default();
    let mut whole = 0;
    let mut lines = BufReader::new(file);
    let mut text = Vec::new();
    for number in 1u64.. {
        text.clear();
        let length = lines.read_until(b'\n', &mut text)?;
        if text.last() != Some(&b'\n') {
            break;
        }
        let line: Line = serde_json::from_slice(&text)
            .map_err(|error| anyhow!("line {number} is no result of map: {error}"))?;
        whole += length as u64;
        // Run again with another result: the last one counts.
        let is_ok = line.outcome == "ok";
        done.set(line, is_ok);
    }
    Ok(EarlierResults { done, whole })
}

/// Makes the file ready for more lines, after those that are whole.
///
/// # Errors
/// Of `ftruncate(2)`.
pub(super) fn cut_unfinished_line(file: &File, whole: u64) -> anyhow::Result<()> {
    let length = file.metadata()?.len();
    if length < whole {
        bail!("it has become shorter meanwhile");
    }
    if length > whole {
        log::warn!("the earlier results end in the middle of a line, which is removed");
        file.set_len(whole).context("ftruncate")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    fn file(text: &str) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        file.rewind().expect("at its start");
        file
    }

    #[test]
    fn the_last_result_of_a_job_counts() {
        let text = "{\"line\":1,\"id\":\"1\",\"outcome\":\"exited\"}\n\
                    {\"line\":2,\"id\":\"a\",\"outcome\":\"ok\",\"more\":[]}\n\
                    {\"line\":1,\"id\":\"1\",\"outcome\":\"ok\"}\n\
                    {\"line\":3,\"id\":\"3\",\"outcome\":\"timed_out\"}\n";
        let earlier = read(&file(text)).expect("results");
        assert_eq!(earlier.whole, text.len() as u64);
        let done = earlier.done;
        assert!(done.has(1, "1") && done.has(7, "a"));
        assert!(!done.has(2, "2") && !done.has(3, "3"));
    }

    #[test]
    fn a_number_is_not_taken_for_another_lines_own_id() {
        let text = "{\"line\":1,\"id\":\"1\",\"outcome\":\"exited\"}\n{\"line\":2,\"id\":\"1\",\"outcome\":\"ok\"}\n";
        let done = read(&file(text)).expect("results").done;
        assert!(!done.has(1, "1"), "it was not ok");
        assert!(done.has(2, "1"));
        let text = "{\"line\":1,\"id\":\"1\",\"outcome\":\"ok\"}\n";
        let done = read(&file(text)).expect("results").done;
        assert!(done.has(1, "1") && !done.has(2, "1"));
    }

    #[test]
    fn a_line_that_was_never_finished_is_cut() {
        let whole = "{\"line\":1,\"id\":\"1\",\"outcome\":\"ok\"}\n";
        let file = file(&format!("{whole}{{\"line\":2,\"id\":\"2\",\"outc"));
        let earlier = read(&file).expect("results");
        assert_eq!(earlier.whole, whole.len() as u64);
        assert!(earlier.done.has(1, "1"));
        cut_unfinished_line(&file, earlier.whole).expect("it can be cut");
        assert_eq!(file.metadata().expect("a file").len(), earlier.whole);
    }

    #[test]
    fn another_file_is_refused() {
        let error = read(&file(
            "{\"line\":1,\"id\":\"1\",\"outcome\":\"ok\"}\n[1, 2]\n",
        ))
        .err();
        let error = error.expect("it is refused").to_string();
        assert!(error.starts_with("line 2 is no result of map: "), "{error}");
    }
}
