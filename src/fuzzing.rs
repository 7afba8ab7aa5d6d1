//! What tests with random input share.
//!
//! Runs on: tests.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

pub(crate) type Verdict = Result<(), TestCaseError>;

/// Says after how many cases a property still holds: PROPTEST_CASES of them, or as many as there are in FUZZ_SECONDS.
pub(crate) fn holds<S: Strategy>(name: &str, inputs: S, property: impl Fn(S::Value) -> Verdict) {
    let seconds = std::env::var("FUZZ_SECONDS").map_or(0, |text| text.parse().expect("seconds"));
    let end = Instant::now() + Duration::from_secs(seconds);
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let mut cases = 0;
    loop {
        match TestRunner::new(config.clone()).run(&inputs, &property) {
            Ok(()) => cases += config.cases,
            Err(TestError::Fail(reason, input)) => {
                let (reason, input) = (reason.to_string(), format!("{input:?}"));
                panic!("{name}: {reason:.2000}\n{input:.2000}");
            }
            Err(error) => panic!("{name}: {error}"),
        }
        if Instant::now() >= end {
            return println!("{name}: {cases} cases");
        }
    }
}

/// A change to bytes that were right.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Byte(Index, u8),
    Piece(Index, &'static str),
    Cut(Index, Index),
    Again(Index, Index),
}

impl Change {
    /// Any change, or one that puts in a piece that means something to the reader.
    pub(crate) fn any(pieces: &'static [&'static str]) -> impl Strategy<Value = Self> {
        let place = any::<Index>;
        prop_oneof![
            (place(), any::<u8>()).prop_map(|(at, byte)| Self::Byte(at, byte)),
            (place(), select(pieces)).prop_map(|(at, piece)| Self::Piece(at, piece)),
            (place(), place()).prop_map(|(from, to)| Self::Cut(from, to)),
            (place(), place()).prop_map(|(from, to)| Self::Again(from, to)),
        ]
    }

    pub(crate) fn apply(&self, bytes: &mut Vec<u8>) {
        let place = |index: &Index| index.index(bytes.len() + 1);
        let span = |from, to| {
            let (from, to) = (place(from), place(to));
            from.min(to)..from.max(to)
        };
        match self {
            Self::Byte(at, byte) => {
                let at = place(at);
                bytes.splice(at..(at + 1).min(bytes.len()), [*byte]);
            }
            Self::Piece(at, piece) => {
                let at = place(at);
                bytes.splice(at..at, piece.bytes());
            }
            Self::Cut(from, to) => drop(bytes.drain(span(from, to))),
            Self::Again(from, to) => {
                let span = span(from, to);
                bytes.splice(span.end..span.end, bytes[span.clone()].to_vec());
            }
        }
    }
}
