//! pyspawner: import slow Python modules once, then run every job in a sandboxed clone of
//! the warm interpreter.
//!
//! Runs on: every process, first of all.
//!
//! # The story of one job
//!
//! 1. The **launcher** ([`launcher`]) reads flags and configuration, leaves an **init** ([`init`]) in front, and executes
//!    this program once more with exactly the configured environment: the host.
//! 2. The host's **main thread** ([`main_thread`]) starts the **I/O thread** ([`io`]) on memory that clones do not receive
//!    ([`clone::private_memory`]). It makes the interpreter warm ([`interpreter::warm`]) and prepares the sandbox
//!    ([`sandbox::Sandbox::prepare`]). From then on it only clones.
//! 3. A job reaches the I/O thread as a line of input ([`io::commands::map`]) or as a client's request ([`io::api`]). If a spare
//!    child waits in a sandbox like the one that is wanted ([`io::pool`]), it gets the job at once: go on with step 6.
//! 4. Otherwise the I/O thread asks the main thread for a clone ([`wire::clone_channel`]). [`clone::Cloner`] makes it: fork
//!    handlers, `clone3`, fork handlers. The I/O thread gives it ids, a control group and a network.
//! 5. The **child** goes into its sandbox ([`child::enter`]), reads back from the kernel that it is there, and reports.
//! 6. It takes its job ([`child::assigned`]), decodes the arguments, closes the control socket and calls `child_main`
//!    ([`interpreter::call`]).
//! 7. The I/O thread collects what it writes, ends it at a limit, reaps it, and says how it ended ([`io::pool::outcome`]).
//!
//! Each file says in its first lines what it runs on, since the laws differ: `docs/architecture.md` has them.

mod child;
mod clone;
mod config;
mod failure;
#[cfg(test)]
mod fuzzing;
mod init;
mod interpreter;
mod io;
mod launcher;
mod layer;
mod logging;
mod main_thread;
mod sandbox;
mod stop_signals;
mod sys;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    let done = match wire::host_descriptors::host_descriptors() {
        Some(descriptors) => main_thread::become_host(descriptors),
        None => launcher::start(),
    };
    done.unwrap_or_else(|error| {
        failure::print_error(&error);
        ExitCode::from(failure::FAILED)
    })
}
