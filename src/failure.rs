//! pyspawner's own failure: its exit status, and what it says.
//!
//! Runs on: any process.

use log::Level;

use crate::logging;

/// The exit status if pyspawner itself failed.
pub(crate) const FAILED: u8 = 125;

/// Prints an error, once.
pub(crate) fn print_error(error: &anyhow::Error) {
    logging::say(Level::Error, &format!("{error:#}"));
}

/// What the init has to say while the host runs.
pub(crate) fn print_warning(text: &str) {
    logging::say(Level::Warn, text);
}
