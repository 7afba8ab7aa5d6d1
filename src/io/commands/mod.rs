//! The commands, as the I/O thread carries them out.
//!
//! Runs on: the I/O thread.

pub(crate) mod bench;
mod earlier_results;
mod lines;
pub(crate) mod map;
pub(crate) mod progress;
pub(crate) mod run;
pub(crate) mod serve;
mod terminal;
