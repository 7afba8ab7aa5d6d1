//! The flags of `pyspawner run`.
//!
//! Runs on: the launcher.

use std::ffi::OsString;

use clap::Args;

use super::JobOptions;
use crate::io::commands::run::Command;

/// Run one job, with its standard input, output and error connected to this terminal's.
///
/// What child_main returns is printed as JSON on standard output, after what the job itself wrote there; None is not.
///
/// Exits with the child's status; with 1 if what child_main returned has no JSON form, 128+N if signal N ended the child, 124 if
/// it timed out, 125 if pyspawner itself failed.
#[derive(Args)]
pub(in crate::launcher) struct Arguments {
    #[command(flatten)]
    options: JobOptions,
    /// Do not print what child_main returns.
    #[arg(long)]
    no_result: bool,
    /// The job's arguments: child_main gets them as strings. Options come before the first of them; -- before one that
    /// begins with a hyphen.
    #[arg(
        trailing_var_arg = true,
        allow_negative_numbers = true,
        value_name = "ARG"
    )]
    arguments: Vec<OsString>,
}

impl Arguments {
    pub(in crate::launcher) fn into_command(self) -> anyhow::Result<(JobOptions, Command)> {
        let arguments = self
            .arguments
            .into_iter()
            .map(|argument| {
                argument
                    .into_string()
                    .map_err(|argument| anyhow::anyhow!("argument {argument:?} is not UTF-8"))
            })
            .collect::<anyhow::Result<_>>()?;
        let command = Command {
            arguments,
            wants_result: !self.no_result,
        };
        Ok((self.options, command))
    }
}
