//! pyspawner's own failure: its exit status, and what it says.
//!
//! Runs on: any process.

use crate::logging;

/// The exit status if pyspawner itself failed.
pub(crate) const FAILED: u8 = 125;

/// Prints an error, once.
pub(crate) fn print_error(error: &anyhow::Error) {
    print_warning(&format!("error: {error:#}"));
}

/// What the init has to say while the host runs.
pub(crate) fn print_warning(text: &str) {
    let text = format!("pyspawner: {text}\n");
    logging::write(logging::without_controls(&text).as_bytes());
}
