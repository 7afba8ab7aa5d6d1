//! What a job said on its result channel: the word of code that nobody trusts.

use serde_json::value::RawValue;

use crate::record;

/// What a job said on its result channel.
pub struct Spoken {
    pub result: Result<Box<RawValue>, String>,
    /// The name of the system call that ended it.
    pub blocked: Option<String>,
}

impl Spoken {
    /// Reads the records of a channel, as far as they are whole.
    pub fn from(mut records: &[u8]) -> Self {
        let mut spoken = Self {
            result: Err("it ended before child_main returned".to_owned()),
            blocked: None,
        };
        while let Some((tag, payload, rest)) = record::split_first(records) {
            match tag {
                record::RESULT => spoken.result = checked_result(payload),
                record::BLOCKED if is_call_name(payload) => {
                    spoken.blocked = Some(String::from_utf8_lossy(payload).into_owned());
                }
                record::PROGRESS => log::info!("progress: {:?}", String::from_utf8_lossy(payload)),
                other => log::debug!("a child wrote an unknown record {other}"),
            }
            records = rest;
        }
        if !records.is_empty() {
            spoken.result = Err("the result is incomplete".to_owned());
        }
        spoken
    }
}

/// Whether it can be the name of a system call: no more than that is repeated to anybody.
fn is_call_name(name: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    (1..=32).contains(&name.len()) && name.iter().all(is_plain)
}

/// The child wrote it: it is passed on only if it is JSON, and on one line. JSON may have line
/// feeds between its tokens, and each would begin a line of output that is no job's.
fn checked_result(json: &[u8]) -> Result<Box<RawValue>, String> {
    if json.contains(&b'\n') || json.contains(&b'\r') {
        return Err("the result is not one line of JSON".to_owned());
    }
    let result =
        serde_json::from_slice(json).map_err(|error| format!("the result is not JSON: {error}"))?;
    match beyond_ordinary_readers(json) {
        Some(what) => Err(format!("the result has {what}")),
        None if has_lone_surrogate(json) => {
            Err("the result has text that is no Unicode".to_owned())
        }
        None => Ok(result),
    }
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

/// What ordinary JSON readers stop at, though the grammar allows it: Python's raises
/// RecursionError near 1,000 levels, and ValueError for a number of more than 4,300 digits.
fn beyond_ordinary_readers(json: &[u8]) -> Option<&'static str> {
    const LEVELS: usize = 900;
    const DIGITS: usize = 4300;
    let (mut level, mut digits, mut in_text, mut escaped) = (0, 0, false, false);
    for byte in json {
        if in_text {
            in_text = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
            continue;
        }
        digits = if byte.is_ascii_digit() { digits + 1 } else { 0 };
        match byte {
            b'"' => in_text = true,
            b'[' | b'{' => level += 1,
            b']' | b'}' => level -= 1,
            _ => {}
        }
        if level > LEVELS {
            return Some("more than 900 levels");
        }
        if digits > DIGITS {
            return Some("a number of more than 4,300 digits");
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{beyond_ordinary_readers as beyond, has_lone_surrogate};

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
        assert_eq!(beyond(nested(900).as_bytes()), None);
        assert!(beyond(nested(901).as_bytes()).is_some());
        assert_eq!(beyond("1".repeat(4300).as_bytes()), None);
        assert!(beyond("1".repeat(4301).as_bytes()).is_some());
        // In text, neither is anything but text.
        let text = format!(r#"["{}\"{}"]"#, "[".repeat(2000), "1".repeat(5000));
        assert_eq!(beyond(text.as_bytes()), None);
    }
}
