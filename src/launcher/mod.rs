//! The command as the user started it: flags and configuration become settings, and this process becomes a host.
//!
//! Runs on: the launcher.

mod default_hidden_paths;
mod execute;
mod flags;
mod own_files;
mod paths;
mod python;
mod settings;
mod user_namespace;

use std::process::ExitCode;

use clap::Parser;

use self::flags::{Cli, Subcommands};
use self::settings::{Settings, merge};
use crate::failure::FAILED;
use crate::io::Command;
use crate::{config, init, logging};

/// The command as the user started it: read, check, execute the host.
pub(crate) fn start() -> anyhow::Result<ExitCode> {
    crate::sys::process::keep_child_statuses();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => {
            message.print()?;
            let failed = message.use_stderr();
            return Ok(ExitCode::from(if failed { FAILED } else { 0 }));
        }
    };
    let log = logging::Settings {
        filter: logging::filter(cli.verbose, cli.quiet),
        format: cli.log_format,
    };
    logging::install(&log)?;
    let is_quiet = cli.quiet > 0;
    match cli.command {
        Subcommands::Run(arguments) => {
            let (options, command) = arguments.into_command()?;
            let command = |_: &config::File| Ok(Command::Run(command));
            become_host(merge(options, log, is_quiet, command)?)
        }
        Subcommands::Map(arguments) => {
            let (options, arguments) = arguments.split();
            let command = |file: &config::File| Ok(Command::Map(arguments.into_command(file)?));
            become_host(merge(options, log, is_quiet, command)?)
        }
        Subcommands::Serve(arguments) => {
            let (options, arguments) = arguments.split();
            let client = arguments.client_fd();
            let profile = options.host.profile.clone();
            let profile = profile.unwrap_or_else(|| "default".to_owned());
            let command = |file: &config::File| {
                let command = arguments.into_command(file, profile)?;
                Ok(Command::Serve(Box::new(command)))
            };
            let executed = merge(options, log, is_quiet, command).and_then(become_host);
            if let (Some(client), Err(error)) = (client, &executed) {
                flags::serve::tell_refusal(client, error);
            }
            executed
        }
        Subcommands::Bench(arguments) => {
            let (options, arguments) = arguments.split();
            let preload = options.host.preload.clone();
            let command = |file: &config::File| {
                let preload = settings::or_file(preload, &file.preload);
                Ok(Command::Bench(arguments.into_command(preload)))
            };
            become_host(merge(options, log, is_quiet, command)?)
        }
    }
}

/// Replaces this process by a host, behind an init.
fn become_host(settings: Settings) -> anyhow::Result<ExitCode> {
    user_namespace::gain_capabilities()?;
    let init = init::step_aside()?;
    match execute::execute_host(&settings.host, &settings.io, &settings.environment, &init)? {}
}
