//! The command line: what the user may type.
//!
//! Runs on: the launcher.

pub(super) mod bench;
pub(super) mod map;
pub(super) mod run;
pub(super) mod serve;

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::config::{self, Callable};
use crate::logging::Format;

/// Import slow Python modules once, then run every job in a sandboxed clone of the warm
/// interpreter.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub command: Subcommands,
    /// Say more on standard error: -v what the host does, -vv each job, -vvv all.
    ///
    /// PYSPAWNER_LOG takes a filter as the env_logger crate does, and outranks this.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Say less: -q errors only, -qq nothing.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub quiet: u8,
    /// The form of what is logged: lines for people, or an object a line.
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    pub log_format: Format,
}

#[derive(Subcommand)]
pub(super) enum Subcommands {
    Run(run::Arguments),
    Map(map::Arguments),
    Serve(serve::Arguments),
    Bench(bench::Arguments),
}

/// What to run and how, for all commands that run jobs of the user's.
#[derive(Args)]
#[command(next_help_heading = "Job options")]
pub(super) struct JobOptions {
    /// What each child calls.
    #[arg(long, value_name = "MOD.FUNC")]
    pub child_main: Option<Callable>,
    #[command(flatten)]
    pub host: HostOptions,
}

/// The interpreter and the sandbox.
#[derive(Args)]
#[command(next_help_heading = "Job options")]
pub(super) struct HostOptions {
    /// Modules to import before the first clone, separated by commas. Repeatable.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub preload: Vec<String>,
    /// Called once, after the imports: touch lazy imports, build caches.
    #[arg(long, value_name = "MOD.FUNC")]
    pub warm_up: Option<Callable>,
    /// The interpreter whose environment to use: a venv's or an installation's.
    ///
    /// By default the active virtual environment's, else the one pyspawner was built with.
    #[arg(long, value_name = "PATH")]
    pub python: Option<PathBuf>,
    /// Added to sys.path: a folder, or an archive that Python imports from. Repeatable.
    #[arg(long = "path", value_name = "DIR")]
    pub path: Vec<PathBuf>,
    /// A variable of the children's environment, which holds these and nothing else.
    /// Repeatable.
    #[arg(long = "env", value_name = "K=V", value_parser = parse_variable)]
    pub environment: Vec<(String, String)>,
    /// Give children this command's own environment, before --env.
    #[arg(long)]
    pub inherit_env: bool,
    /// Like --python, but only if it is the build that pyspawner is linked to.
    #[arg(long, value_name = "PATH", hide = true)]
    pub prefer_python: Option<PathBuf>,
    /// Which sandbox profile of the configuration to use.
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// End a job after this time: seconds, or text such as "1m 30s".
    #[arg(long, value_name = "TIME", value_parser = config::parse_duration)]
    pub timeout: Option<Duration>,
    /// Refuse to start if preloaded modules leave threads running.
    #[arg(long)]
    pub strict: bool,
    /// Do not call the warm-up once more in a clone before the first job.
    ///
    /// That call shows what hangs or fails in a clone, such as a library whose threads were used in the warm-up.
    #[arg(long)]
    pub no_rehearsal: bool,
    /// The configuration file. Flags outrank it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}
