//! Sizes and durations, as people write them.
//!
//! Runs on: any process.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Accepts a number of bytes, or text with a binary suffix: `"64M"` is 64 × 2²⁰.
pub(super) fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "expected a size such as \"64M\", or a number of bytes"
    )]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    match Size::deserialize(deserializer)? {
        Size::Bytes(bytes) => Ok(bytes),
        Size::Text(text) => parse_size::Config::new()
            .with_binary()
            .parse_size(&text)
            .map_err(|_| {
                serde::de::Error::custom(format!(
                    "{text:?} is not a size: expected a number of bytes or one with K, M, G"
                ))
            }),
    }
}

/// A size that may be left out; `null` is how an absent one is written to the settings.
pub(super) fn optional_size<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    struct Visitor;
    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Option<u64>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a size such as \"64M\", or a number of bytes")
        }
        fn visit_none<E>(self) -> Result<Option<u64>, E> {
            Ok(None)
        }
        fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Option<u64>, D::Error> {
            size(d).map(Some)
        }
    }
    d.deserialize_option(Visitor)
}

pub(super) fn optional_duration<'de, D: Deserializer<'de>>(
    d: D,
) -> Result<Option<Duration>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "expected a duration such as \"30s\", or a number of seconds"
    )]
    enum Wall {
        Seconds(f64),
        Text(String),
        /// How an absent one is written to the settings.
        Absent(()),
    }
    let text = match Wall::deserialize(d)? {
        Wall::Seconds(seconds) => seconds.to_string(),
        Wall::Text(text) => text,
        Wall::Absent(()) => return Ok(None),
    };
    parse_duration(&text)
        .map(Some)
        .map_err(serde::de::Error::custom)
}

/// A duration that is always there.
pub(super) fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let duration = optional_duration(d)?;
    duration.ok_or_else(|| serde::de::Error::custom("expected a duration such as \"30s\""))
}

/// Writes it to the settings in a form that [`optional_duration`] reads.
pub(super) fn as_text<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let text = duration.map(|duration| humantime::format_duration(duration).to_string());
    text.serialize(serializer)
}

/// Far beyond any job, and far from where adding it to a clock overflows.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The longest text of a duration or a size, in bytes. Longer ones are not repeated in errors.
const LONGEST_TEXT: usize = 64;

/// `"30s"`, `"1m 30s"`, or plain seconds, which may have a fraction. Greater than zero.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    if text.len() > LONGEST_TEXT {
        return Err(format!("{} bytes are not a duration", text.len()));
    }
    let duration = match text.trim().parse::<f64>() {
        Ok(seconds) if seconds <= 0.0 => Ok(Duration::ZERO),
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string()),
        Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string()),
    };
    match duration {
        Ok(Duration::ZERO) => Err(format!("{text:?}: a duration must be greater than zero")),
        Ok(duration) if duration > LONGEST => Err(format!("{text:?} is longer than 100 years")),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!(
            "{text:?} is not a duration: expected seconds, or text such as \"30s\" ({error})"
        )),
    }
}
