//! The record of a job, as the API's description has it.
//!
//! Runs on: the I/O thread.
//!
//! The record itself is written in [`crate::io::pool::outcome`]; a test compares the two.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

/// How a job ended.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what is written elsewhere")]
pub(super) struct Record {
    /// Of `/v1/map`: the number of its line, from 1.
    #[schema(required = false)]
    line: u64,
    /// The request's `id`, or the job's name.
    id: String,
    /// `ok`, `exited`, `invalid_result`, `signaled`, `blocked_syscall`, `timed_out`, `out_of_memory`, `output_limit`,
    /// `invalid_job`, `setup_failed` or `cancelled`.
    outcome: String,
    /// The exit status, unless a signal ended it.
    exit_code: Option<i32>,
    /// The signal that ended it.
    signal: Option<i32>,
    /// What `child_main` returned.
    result: Option<Value>,
    /// Standard output, if it is UTF-8.
    #[schema(required = false)]
    stdout: String,
    /// Standard output, if it is not.
    #[schema(required = false)]
    stdout_base64: String,
    /// Standard error, if it is UTF-8.
    #[schema(required = false)]
    stderr: String,
    /// Standard error, if it is not.
    #[schema(required = false)]
    stderr_base64: String,
    /// Whether output was thrown away.
    truncated: bool,
    /// Milliseconds from the request to the job's turn.
    queued_ms: f64,
    /// Milliseconds from the job's turn to its end.
    wall_ms: f64,
    /// Milliseconds of processor time.
    cpu_ms: f64,
    /// Memory that the job added to the warm image, at most.
    peak_memory_bytes: u64,
    /// What there is to say about the outcome.
    detail: Option<String>,
    /// The limits that were not in force.
    #[schema(required = false)]
    unenforced: Vec<String>,
    /// If files were to come back: `{"text": …}` or `{"base64": …}` by path.
    #[schema(required = false)]
    files: BTreeMap<String, Value>,
    /// What has not come back, and why.
    #[schema(required = false)]
    files_left: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use utoipa::PartialSchema;
    use utoipa::openapi::RefOr;
    use utoipa::openapi::schema::Schema;

    use super::*;
    use crate::io::pool::files::Collected;
    use crate::io::pool::{JobReport, Outcome};

    #[test]
    fn the_schema_has_what_records_have() {
        let mut keys = BTreeSet::new();
        for bytes in [b"text".to_vec(), vec![0xff]] {
            let mut report = JobReport::not_run(Outcome::Ok, "x");
            report.stdout = bytes.clone();
            report.stderr = bytes;
            report.unenforced = vec!["cpu"];
            report.files = Some(Collected::default());
            let left = report.files.as_mut().map(|files| &mut files.left);
            left.expect("set").insert("x".to_owned(), "y".to_owned());
            let record = report.to_queued_line(Some(1), "a", Duration::ZERO);
            let record: serde_json::Map<String, Value> =
                serde_json::from_slice(&record).expect("an object");
            keys.extend(record.keys().cloned());
        }
        let RefOr::T(Schema::Object(object)) = Record::schema() else {
            panic!("an object");
        };
        let described: BTreeSet<String> = object.properties.keys().cloned().collect();
        assert_eq!(described, keys);
    }
}
