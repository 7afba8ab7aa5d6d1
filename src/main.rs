//! The `pyspawner` command. See the library for its story.

use std::process::ExitCode;

fn main() -> ExitCode {
    let error = match pyspawner::launch::host_descriptors() {
        Some(descriptors) => pyspawner::cli::become_host(descriptors),
        None => pyspawner::cli::start(),
    };
    match error {
        Ok(code) => code,
        Err(error) => {
            pyspawner::cli::print_error(&error);
            ExitCode::from(pyspawner::cli::FAILED)
        }
    }
}
