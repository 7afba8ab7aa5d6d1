//! pyspawner: import slow Python modules once, then run every job in a sandboxed clone of
//! the warm interpreter.
//!
//! # The story of one job
//!
//! 1. [`cli`] reads flags and configuration, and [`launch`] executes this program once more
//!    with exactly the configured environment.
//! 2. [`host`] starts the I/O thread on memory of its own ([`clone::private_memory`]), makes
//!    the interpreter warm ([`interpreter::warm`]) and prepares the sandbox
//!    ([`sandbox::Sandbox::prepare`]).
//! 3. A job arrives at the I/O thread ([`cli::map`], [`pool`]): its arguments go into a sealed
//!    memory file, and the main thread is asked for a clone.
//! 4. [`clone::Cloner`] makes it: fork handlers, `clone3`, fork handlers.
//! 5. The child goes through [`sandbox::enter`], reports, decodes its arguments and calls
//!    `child_main` ([`interpreter::call`]).
//! 6. The I/O thread collects what it wrote, reaps it, and says how it ended
//!    ([`pool::outcome`]).

pub mod activity;
pub mod api;
pub mod bench;
pub mod call;
pub mod cli;
pub mod clone;
pub mod config;
#[cfg(test)]
mod fuzzing;
pub mod host;
pub mod init;
pub mod interpreter;
pub mod launch;
pub mod logging;
pub mod network;
pub mod pool;
pub mod record;
pub mod result_channel;
pub mod sandbox;
pub mod sys;
pub mod unprivileged;
