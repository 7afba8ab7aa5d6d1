//! What a job said on its result channel: the word of code that nobody trusts.
//!
//! Runs on: the I/O thread.

use serde_json::value::RawValue;

use crate::logging::is_plain;
use crate::wire::record;

/// What a job said on its result channel.
pub(super) struct UntrustedRecords {
    pub returned: Returned,
    /// What the result does not tell of the value that was returned.
    pub note: Option<String>,
    /// The name of the system call that ended it.
    pub blocked: Option<String>,
}

/// What a job said that `child_main` returned.
#[derive(Debug)]
pub(super) enum Returned {
    /// It said nothing: it ended before.
    Nothing,
    Result(Box<RawValue>),
    /// Something that cannot be passed on, with the reason.
    Invalid(String),
}

impl UntrustedRecords {
    /// Reads the records of a channel, as far as they are whole.
    pub(super) fn from(mut records: &[u8]) -> Self {
        let mut spoken = Self {
            returned: Returned::Nothing,
            note: None,
            blocked: None,
        };
        let mut progress = None;
        while let Some((tag, payload, rest)) = record::split_first(records) {
            match tag {
                record::RESULT => spoken.returned = checked_result(payload),
                record::NO_FORM => spoken.returned = Returned::Invalid(plain_text(payload)),
                record::NOTE => spoken.note = Some(plain_text(payload)),
                record::BLOCKED if is_call_name(payload) => {
                    spoken.blocked = Some(String::from_utf8_lossy(payload).into_owned());
                }
                record::BLOCKED => {}
                record::PROGRESS => progress = Some(payload),
                // Only code of the job's writes such a record. It may have cut the result with it.
                _ => spoken.returned = Returned::Invalid(NO_RECORD.to_owned()),
            }
            records = rest;
        }
        // The last alone: a job writes as many as it likes.
        if let Some(progress) = progress {
            log::info!("progress: {}", plain_text(progress));
        }
        if !records.is_empty() {
            spoken.returned = Returned::Invalid("the result is incomplete".to_owned());
        }
        spoken
    }
}

/// Whether it can be the name of a system call: no more than that is repeated to anybody.
fn is_call_name(name: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    (1..=32).contains(&name.len()) && name.iter().all(is_plain)
}

const NO_RECORD: &str = "the job wrote to the result channel what is no record";

/// The longest text of a child's that is passed on, in characters.
const LONGEST_TEXT: usize = 1000;

/// Text that a child wrote, for people at a terminal: of bounded length, on one line, without characters
/// that do something there.
pub(crate) fn plain_text(bytes: &[u8]) -> String {
    // A character has four bytes at most; more of them need not be looked at.
    let bytes = &bytes[..bytes.len().min(4 * LONGEST_TEXT)];
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::new();
    for character in text.chars().take(LONGEST_TEXT) {
        match is_plain(character) {
            true => plain.push(character),
            false => plain.extend(character.escape_unicode()),
        }
    }
    plain
}

/// The child wrote it: it is passed on only if it is JSON as the child's own encoder writes it, on one line
/// and in printable ASCII. JSON may have line feeds between its tokens, and each would begin a line of
/// output that is no job's; some readers also end a line at U+0085 or U+2028.
fn checked_result(json: &[u8]) -> Returned {
    let is_one_line = json.iter().all(|byte| matches!(byte, b' '..=b'~'));
    let reason = match serde_json::from_slice(json) {
        _ if !is_one_line => "the result is not one line of JSON in ASCII".to_owned(),
        Err(error) => format!("the result is not JSON: {error}"),
        Ok(result) => match beyond_ordinary_readers(json) {
            Some(what) => format!("the result has {what}"),
            None if has_lone_surrogate(json) => "the result has text that is no Unicode".to_owned(),
            None => return Returned::Result(result),
        },
    };
    Returned::Invalid(reason)
}

/// Whether an escape of valid JSON is half of a pair (`"\ud800"`): Python writes and reads it,
/// stricter readers refuse the line.
fn has_lone_surrogate(json: &[u8]) -> bool {
    let mut wants_low = false;
    let mut rest = json;
    while let [byte, after @ ..] = rest {
        let unit = match (byte, after) {
            (b'\\', [b'u', digits @ ..]) => {
                let digits = digits
                    .get(..4)
                    .and_then(|four| std::str::from_utf8(four).ok());
                digits.and_then(|four| u16::from_str_radix(four, 16).ok())
            }
            _ => None,
        };
        if wants_low != matches!(unit, Some(0xDC00..=0xDFFF)) {
            return true;
        }
        wants_low = matches!(unit, Some(0xD800..=0xDBFF));
        let length = match (byte, unit) {
            (_, Some(_)) => 6,
            (b'\\', None) => 2,
            _ => 1,
        };
        rest = rest.get(length..).unwrap_or_default();
    }
    wants_low
}

/// What ordinary JSON readers stop at, though the grammar allows it: Python's raises RecursionError near 1,000 levels, those of its caller included, and
/// ValueError for a number of more than 4,300 digits; many refuse a number that becomes infinite, or pass that on.
fn beyond_ordinary_readers(json: &[u8]) -> Option<&'static str> {
    const LEVELS: usize = 200;
    const DIGITS: usize = 4300;
    let mut level = 0;
    for piece in outside_texts(json) {
        for byte in piece {
            match byte {
                b'[' | b'{' => level += 1,
                b']' | b'}' => level -= 1,
                _ => {}
            }
            if level > LEVELS {
                return Some("more than 200 levels");
            }
        }
        if piece
            .split(|byte| !byte.is_ascii_digit())
            .any(|digits| digits.len() > DIGITS)
        {
            return Some("a number of more than 4,300 digits");
        }
        let is_of_number =
            |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
        if piece
            .split(|byte| !is_of_number(byte))
            .any(is_beyond_floats)
        {
            return Some("a number with a fraction or an exponent above 1.7976931348623157e308");
        }
    }
    None
}

/// The pieces of valid JSON between its texts.
fn outside_texts(json: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(json);
    std::iter::from_fn(move || {
        let from = rest.take()?;
        let Some(quote) = from.iter().position(|byte| *byte == b'"') else {
            return Some(from);
        };
        let mut escaped = false;
        let end = from[quote + 1..].iter().position(|byte| {
            let is_end = !escaped && *byte == b'"';
            escaped = !escaped && *byte == b'\\';
            is_end
        });
        rest = end.map(|end| &from[quote + 1 + end + 1..]);
        Some(&from[..quote])
    })
}

fn is_beyond_floats(number: &[u8]) -> bool {
    let is_float = number.iter().any(|byte| matches!(byte, b'.' | b'e' | b'E'));
    let text = std::str::from_utf8(number).ok().filter(|_| is_float);
    text.and_then(|text| text.parse().ok())
        .is_some_and(f64::is_infinite)
}

#[cfg(test)]
mod tests {
    use super::{
        LONGEST_TEXT, Returned, UntrustedRecords, beyond_ordinary_readers as beyond,
        has_lone_surrogate, plain_text,
    };
    use crate::wire::record::{BLOCKED, NO_FORM, NOTE, PROGRESS, RESULT, header};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    fn records(parts: &[(u8, &[u8])]) -> Vec<u8> {
        let whole =
            |(tag, payload): &(u8, &[u8])| [&header(*tag, payload.len() as u32), *payload].concat();
        parts.iter().flat_map(whole).collect()
    }

    /// The result, or "-" for nothing, or "!" and the reason.
    fn returned(bytes: &[u8]) -> String {
        match UntrustedRecords::from(bytes).returned {
            Returned::Nothing => "-".to_owned(),
            Returned::Result(json) => json.get().to_owned(),
            Returned::Invalid(reason) => format!("!{reason}"),
        }
    }

    #[test]
    fn a_result_comes_with_its_note() {
        let spoken = UntrustedRecords::from(&records(&[
            (PROGRESS, b"{}"),
            (NOTE, b"a note"),
            (RESULT, b"[1]"),
        ]));
        assert!(matches!(spoken.returned, Returned::Result(json) if json.get() == "[1]"));
        assert_eq!(spoken.note.as_deref(), Some("a note"));
    }

    #[test]
    fn a_job_that_said_nothing_of_a_result_has_not_returned() {
        assert_eq!(returned(b""), "-");
        assert_eq!(
            returned(&records(&[
                (PROGRESS, b"{}"),
                (BLOCKED, b"mount"),
                (NOTE, b"x")
            ])),
            "-"
        );
    }

    #[test]
    fn a_value_without_a_form_is_told_with_its_reason() {
        assert_eq!(
            returned(&records(&[(NO_FORM, b"result: object")])),
            "!result: object"
        );
    }

    #[test]
    fn a_result_that_is_cut_anywhere_is_none() {
        let whole = records(&[(NOTE, b"note"), (RESULT, b"[1, 2]")]);
        assert_eq!(returned(&whole), "[1, 2]");
        for cut in 1..whole.len() {
            let is_between_records = cut == records(&[(NOTE, b"note")]).len();
            let expected = if is_between_records {
                "-"
            } else {
                "!the result is incomplete"
            };
            assert_eq!(returned(&whole[..cut]), expected, "{cut} bytes");
        }
    }

    #[test]
    fn what_is_no_record_makes_a_result_before_it_invalid() {
        let garbage = records(&[(RESULT, b"1"), (b'?', b"")]);
        assert!(returned(&garbage).starts_with("!the job wrote"));
        assert_eq!(returned(&records(&[(b'?', b""), (RESULT, b"1")])), "1");
    }

    #[test]
    fn a_malformed_result_is_invalid() {
        for json in [
            &b""[..],
            b"not json",
            b"[1,\n2]",
            b"1\r",
            b"NaN",
            b"\xff",
            "\"\u{2028}\"".as_bytes(),
            b"\"\x7f\"",
            b"1 2",
            b"\"\\ud800\"",
        ] {
            assert!(
                returned(&records(&[(RESULT, json)])).starts_with("!the result "),
                "{json:?}"
            );
        }
    }

    #[test]
    fn text_of_a_child_is_bounded_and_does_nothing_at_a_terminal() {
        let hostile = "a\u{1b}[31m\n\u{7f}\u{85}\u{2028}\u{202e}é";
        assert_eq!(
            plain_text(hostile.as_bytes()),
            r"a\u{1b}[31m\u{a}\u{7f}\u{85}\u{2028}\u{202e}é"
        );
        assert_eq!(plain_text(b"\xffa"), "\u{fffd}a");
        assert_eq!(
            plain_text("é".repeat(5000).as_bytes()),
            "é".repeat(LONGEST_TEXT)
        );
        assert!(plain_text(&[b'\n'; 10_000]).len() <= 5 * LONGEST_TEXT);
    }

    proptest! {
        /// Whatever is on the channel: a result is one line of JSON, and text is plain.
        #[test]
        fn any_bytes_are_read(
            parts in vec((select(&b"RXNBP?"[..]), any::<Vec<u8>>()), 0..5),
            end in any::<Vec<u8>>(),
        ) {
            let parts: Vec<(u8, &[u8])> = parts.iter().map(|(tag, payload)| (*tag, &payload[..])).collect();
            let spoken = UntrustedRecords::from(&[records(&parts), end].concat());
            let texts = [spoken.note, spoken.blocked];
            let reason = match spoken.returned {
                Returned::Result(json) => {
                    prop_assert!(serde_json::from_str::<serde_json::Value>(json.get()).is_ok());
                    prop_assert!(json.get().bytes().all(|byte| matches!(byte, b' '..=b'~')));
                    None
                }
                Returned::Invalid(reason) => Some(reason),
                Returned::Nothing => None,
            };
            for text in texts.into_iter().chain([reason]).flatten() {
                prop_assert!(!text.contains(char::is_control) && text.chars().count() <= 8 * LONGEST_TEXT);
            }
        }
    }

    #[test]
    fn halves_of_surrogate_pairs_are_found() {
        for whole in [
            r#""\ud83d\ude00""#,
            r#"["a", "\\ud800", "\u00e9"]"#,
            "\"é\"",
        ] {
            assert!(!has_lone_surrogate(whole.as_bytes()), "{whole}");
        }
        for half in [
            r#""\ud83d""#,
            r#""\ude00""#,
            r#""\ud83dx\ude00""#,
            r#""\ud83d\ud83d\ude00""#,
        ] {
            assert!(has_lone_surrogate(half.as_bytes()), "{half}");
        }
    }

    #[test]
    fn only_what_readers_stop_at_is_beyond_them() {
        let nested = |levels| "[".repeat(levels) + &"]".repeat(levels);
        assert_eq!(beyond(nested(200).as_bytes()), None);
        assert!(beyond(nested(201).as_bytes()).is_some());
        assert_eq!(beyond("1".repeat(4300).as_bytes()), None);
        assert!(beyond("1".repeat(4301).as_bytes()).is_some());
        for number in ["1e999", "[-1.5E+400,1]", r#"{"a\\": 1e309}"#] {
            assert!(beyond(number.as_bytes()).is_some(), "{number}");
        }
        for number in ["1e308", "[1e-999,true,false]", &"9".repeat(400)] {
            assert_eq!(beyond(number.as_bytes()), None, "{number}");
        }
        // In text, none is anything but text.
        let text = format!(r#"["{}\"{} 1e999"]"#, "[".repeat(2000), "1".repeat(5000));
        assert_eq!(beyond(text.as_bytes()), None);
    }
}
