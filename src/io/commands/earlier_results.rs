//! The results of an earlier `map`, of which those that are `ok` are not to be had again.
//!
//! Runs on: the I/O thread.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;

/// The ids of the jobs that were `ok`, and how many bytes of the file are whole lines.
pub(super) struct EarlierResults {
    pub done: HashSet<String>,
    pub whole: u64,
}

#[derive(Deserialize)]
struct Line {
    id: String,
    outcome: String,
}

/// Reads a file of result lines. What follows the last line feed is the beginning of a line that was never finished.
///
/// # Errors
/// If a line is no result of `map`: its number, and what is wrong with it.
pub(super) fn read(file: &File) -> anyhow::Result<EarlierResults> {
    let mut done = HashSet::new();
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
        match line.outcome.as_str() {
            "ok" => done.insert(line.id),
            // Run again with another result: the last one counts.
            _ => done.remove(&line.id),
        };
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
        let text = "{\"id\":\"1\",\"outcome\":\"exited\"}\n{\"id\":\"a\",\"outcome\":\"ok\",\"more\":[]}\n\
                    {\"id\":\"1\",\"outcome\":\"ok\"}\n{\"id\":\"2\",\"outcome\":\"timed_out\"}\n";
        let earlier = read(&file(text)).expect("results");
        assert_eq!(
            earlier.done,
            HashSet::from(["1".to_owned(), "a".to_owned()])
        );
        assert_eq!(earlier.whole, text.len() as u64);
    }

    #[test]
    fn a_line_that_was_never_finished_is_cut() {
        let whole = "{\"id\":\"1\",\"outcome\":\"ok\"}\n";
        let file = file(&format!("{whole}{{\"id\":\"2\",\"outc"));
        let earlier = read(&file).expect("results");
        assert_eq!((earlier.done.len(), earlier.whole), (1, whole.len() as u64));
        cut_unfinished_line(&file, earlier.whole).expect("it can be cut");
        assert_eq!(file.metadata().expect("a file").len(), earlier.whole);
    }

    #[test]
    fn another_file_is_refused() {
        let error = read(&file("{\"id\":\"1\",\"outcome\":\"ok\"}\n[1, 2]\n")).err();
        let error = error.expect("it is refused").to_string();
        assert!(error.starts_with("line 2 is no result of map: "), "{error}");
    }
}
