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

mod activity;
mod api;
mod bench;
mod call;
mod cli;
mod clone;
mod config;
#[cfg(test)]
mod fuzzing;
mod host;
mod init;
mod interpreter;
mod launch;
mod logging;
mod network;
mod pool;
mod record;
mod result_channel;
mod sandbox;
mod sys;
mod unprivileged;

use std::process::ExitCode;

fn main() -> ExitCode {
    let done = match launch::host_descriptors() {
        Some(descriptors) => cli::become_host(descriptors),
        None => cli::start(),
    };
    done.unwrap_or_else(|error| {
        cli::print_error(&error);
        ExitCode::from(cli::FAILED)
    })
}
