//! JSON on one line, for readers that know more ends of a line than JSON does, and for terminals.
//!
//! Runs on: the I/O thread.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::Formatter;

/// What is escaped besides all below U+0020, as JSON has it. LINE SEPARATOR, PARAGRAPH SEPARATOR and NEXT LINE (U+0085): Python's
/// `str.splitlines` ends a line there, and JavaScript before 2019 did in a text (Unicode Standard Annex 14, class BK). U+0080 to
/// U+009F: a terminal obeys them as it does an escape and a letter (ECMA-48), and whoever looks at results has not written them.
fn is_escaped(character: char) -> bool {
    matches!(character, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}')
}

/// A value's JSON, with a line feed behind it and no other end of a line in it.
pub(super) fn to_json_line(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, OneLine);
    value
        .serialize(&mut serializer)
        .expect("text as its keys, and room in memory");
    bytes.push(b'\n');
    bytes
}

struct OneLine;

impl Formatter for OneLine {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(place) = rest.find(is_escaped) {
            let (before, from) = rest.split_at(place);
            let end = from.chars().next().map_or('\0', |end| end);
            write!(writer, "{before}\\u{:04x}", u32::from(end))?;
            rest = &from[end.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::to_json_line;

    #[test]
    fn only_the_last_character_ends_a_line() {
        let text = "a\u{85}b\u{2028}\u{2029}é\nc\u{b}\u{c}\u{1c}\u{9b}\u{7f}";
        let line = to_json_line(&[text]);
        let line = String::from_utf8(line).expect("text");
        assert_eq!(
            line,
            "[\"a\\u0085b\\u2028\\u2029é\\nc\\u000b\\f\\u001c\\u009b\\u007f\"]\n"
        );
        assert_eq!(serde_json::from_str::<Value>(&line).expect("JSON")[0], text);
    }

    proptest! {
        #[test]
        fn any_text_is_read_back(text: String, tail in "[\u{85}\u{9b}\u{2028}\u{2029}a]{0,9}") {
            let text = text + &tail;
            let line = to_json_line(&text);
            prop_assert_eq!(serde_json::from_slice::<String>(&line).expect("JSON"), text);
        }
    }
}
