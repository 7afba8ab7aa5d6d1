//! Properties of what comes from a child, whatever it says: on its way in, on its result channel, on its streams.
//!
//! Runs on: the I/O thread.

use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Value;

use super::outcome::{Outcome, Stop};
use super::run_job::classify;
use crate::fuzzing::{Change, Verdict, holds};
use crate::sys::process::{Ending, Reaped};
use crate::wire::handshake::ChildReport;
use crate::wire::record::header;

/// What means something to a reader of records, or of what is in them.
const PIECES: [&str; 14] = [
    "R\u{2}\0\0\0[]",
    "R\0\0\0\0",
    "X\u{1}\0\0\0x",
    "B\u{5}\0\0\0mount",
    "R\u{7f}\u{7f}\u{7f}\u{7f}",
    "P\u{2}\0\0\0{}",
    "[[[[[[[[",
    "\"\\ud800\"",
    "1e999",
    "NaN",
    "\u{2028}",
    "\n{\"outcome\":\"ok\"}",
    "\u{1b}[31m",
    "F\"root\"\0",
];

fn json() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,9}".prop_map(Value::from),
    ];
    let any_value = leaf.prop_recursive(4, 30, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            vec((".{0,5}", inner), 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    });
    any_value.prop_map(|value| value.to_string().into_bytes())
}

/// The records of a job, and changes to them.
fn channel() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        json(),
        any::<Vec<u8>>(),
        "[a-z_]{0,40}".prop_map(String::into_bytes)
    ];
    let record = (select(&b"RRRXNBP?"[..]), payload);
    let records = vec(record, 0..4).prop_map(|records| {
        let whole = |(tag, payload): (u8, Vec<u8>)| {
            [&header(tag, payload.len() as u32)[..], &payload].concat()
        };
        records.into_iter().flat_map(whole).collect::<Vec<u8>>()
    });
    changed(records)
}

fn changed(bytes: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (bytes, vec(Change::any(&PIECES), 0..4)).prop_map(|(mut bytes, changes)| {
        changes.iter().for_each(|change| change.apply(&mut bytes));
        bytes
    })
}

/// The bytes of a report, mostly.
fn said() -> impl Strategy<Value = Vec<u8>> {
    let kinds = select(vec![
        &b"R"[..],
        b"S",
        b"H",
        b"I",
        b"F\"root\"\x001\0mount",
        b"",
    ]);
    changed((kinds, ".{0,20}").prop_map(|(kind, text)| [kind, text.as_bytes()].concat()))
}

fn ending() -> impl Strategy<Value = Ending> {
    prop_oneof![
        Just(Ending::Exited(0)),
        Just(Ending::Exited(0)),
        any::<u8>().prop_map(|status| Ending::Exited(status.into())),
        (1..65).prop_map(Ending::Signaled),
        Just(Ending::Lost),
    ]
}

fn stop() -> impl Strategy<Value = Option<Stop>> {
    let stops = select(vec![
        Stop::Timeout(Duration::from_secs(1), "limits.wall"),
        Stop::OutputLimit("its result", 5),
        Stop::Cancelled,
        Stop::Killed,
    ]);
    option::weighted(0.2, stops)
}

#[test]
fn a_report_is_read_or_is_none() {
    holds("reports", said(), |bytes| {
        if let Some(report) = ChildReport::decode(&bytes) {
            let again = ChildReport::decode(&report.encode());
            prop_assert!(again.is_some(), "{report:?}");
        }
        Ok(())
    });
}

#[test]
fn whatever_a_job_says_its_line_is_one_and_its_outcome_the_hosts() {
    let streams = (
        changed(".{0,20}".prop_map(String::into_bytes)),
        any::<Vec<u8>>(),
    );
    let inputs = (said(), channel(), streams, ending(), stop(), any::<bool>());
    holds(
        "lines",
        inputs,
        |(said, channel, streams, ending, stop, wants_result)| {
            let said = ChildReport::decode(&said);
            let ran = said == Some(ChildReport::Started);
            let reaped = Reaped {
                ending,
                ..Reaped::LOST
            };
            let records = wants_result.then_some(&channel[..]);
            let mut report = classify(said, &reaped, stop, None, records);
            (report.stdout, report.stderr) = streams;
            check_outcome(report.outcome, ran, ending)?;
            check_line(&report.to_line(7, "7"))
        },
    );
}

/// By its word alone no job is better than it was.
fn check_outcome(outcome: Outcome, ran: bool, ending: Ending) -> Verdict {
    if matches!(outcome, Outcome::Ok | Outcome::InvalidResult) {
        prop_assert!(
            ran && ending == Ending::Exited(0),
            "{outcome:?}, {ending:?}"
        );
    }
    prop_assert!(outcome != Outcome::OutOfMemory);
    Ok(())
}

/// One line to every reader, with all keys.
fn check_line(line: &[u8]) -> Verdict {
    let text = std::str::from_utf8(line).map_err(|e| TestCaseError::fail(e.to_string()))?;
    let (last, before) = text.as_bytes().split_last().expect("it is not empty");
    prop_assert!(*last == b'\n' && before.iter().all(|byte| *byte >= b' '));
    let ends_another_line = text.contains(['\u{85}', '\u{2028}', '\u{2029}']);
    prop_assert!(!ends_another_line);
    let value: Value =
        serde_json::from_str(text).map_err(|e| TestCaseError::fail(format!("{e}: {text}")))?;
    for key in [
        "line",
        "id",
        "outcome",
        "exit_code",
        "signal",
        "result",
        "truncated",
        "wall_ms",
        "detail",
    ] {
        prop_assert!(value.get(key).is_some(), "{key}: {text}");
    }
    prop_assert!(
        value["outcome"] == "ok" || value["result"].is_null(),
        "{text}"
    );
    Ok(())
}
