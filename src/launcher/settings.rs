//! Flags and configuration, merged into what the host is told.
//!
//! Runs on: the launcher.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use anyhow::Context;

use super::flags::JobOptions;
use super::{default_hidden_paths, own_files, paths, python};
use crate::config::{self, Callable, HostSettings, Profile};
use crate::io::commands::progress;
use crate::io::{Command, IoSettings};
use crate::logging;

/// All that a host is told.
pub(super) struct Settings {
    /// What its main thread is told, and children may know.
    pub host: HostSettings,
    /// What its I/O thread is told.
    pub io: IoSettings,
    /// The environment of the host and of children.
    pub environment: BTreeMap<String, String>,
}

/// Merges flags and configuration. `command` has what is the command's own, from flags and file.
///
/// # Errors
/// With the flag or the setting that is wrong.
pub(super) fn merge(
    JobOptions {
        child_main,
        host: options,
    }: JobOptions,
    log: logging::Settings,
    is_quiet: bool,
    command: impl FnOnce(&config::File) -> anyhow::Result<Command>,
) -> anyhow::Result<Settings> {
    let file = match &options.config {
        Some(path) => config::File::read(path)?,
        None => config::File::default(),
    };
    let mut profile = config::choose_profile(&file, options.profile.as_deref())?;
    profile.limits.wall = options.timeout.or(profile.limits.wall);
    let home = std::env::home_dir();
    let homes = default_hidden_paths::homes(home.as_deref());
    profile
        .hide
        .extend(default_hidden_paths::by_default(&homes));
    let here = std::env::current_dir().ok();
    profile.hide.extend(here.map(|folder| folder.join(".env")));
    let command = command(&file)?;
    let named = options
        .config
        .iter()
        .map(|path| ("the configuration", path.as_path()));
    let named: Vec<_> = named.chain(command.files()).collect();
    profile.hide.extend(own_files::names(&named, &profile)?);
    let mut environment = own_environment(options.inherit_env)?;
    environment.extend(file.environment.clone());
    environment.extend(options.environment);
    let environment_of_jobs = take_those_of_jobs(&mut environment, &profile);
    let from_file = |text: &Option<String>, name: &str| {
        text.as_deref()
            .map(|text| {
                text.parse::<Callable>()
                    .map_err(|error| anyhow::anyhow!("{name}: {error}"))
            })
            .transpose()
    };
    let child_main = match child_main {
        Some(target) => target,
        None => from_file(&file.child_main, "child_main")?.with_context(|| {
            let hint = match &command {
                Command::Run(run) if run.arguments.iter().any(|word| word == "--child-main") => {
                    "options come before the job's first argument".to_owned()
                }
                _ => format!(
                    "--child-main {}",
                    command.likely_child_main().unwrap_or("MOD.FUNC")
                ),
            };
            format!("what should each child call? hint: {hint}")
        })?,
    };
    let warm_up = match options.warm_up {
        Some(target) => Some(target),
        None => from_file(&file.warm_up, "warm_up")?,
    };
    let host = HostSettings {
        child_main,
        preload: or_file(options.preload, &file.preload),
        warm_up,
        python: python::find(
            options.python.or_else(|| file.python.clone()),
            options.prefer_python,
            &profile,
        )?,
        path: or_file(options.path, &file.path)
            .iter()
            .map(|path| paths::import_path(path, &profile))
            .collect::<anyhow::Result<_>>()?,
        strict: options.strict || file.strict,
        rehearsal: file.rehearses() && !options.no_rehearsal,
        profile: profile.clone(),
        homes,
        environment_of_jobs,
        sets_home: !command.has_one_client(),
        log,
    };
    let io = IoSettings {
        spares: match command {
            Command::Run(_) => 0,
            _ => file.pool.spares.map_or_else(processors, Ok)?,
        },
        command,
        profile,
        cgroup: file.pool.cgroup.clone(),
        shows_progress: progress::is_wanted(is_quiet),
    };
    Ok(Settings {
        host,
        io,
        environment,
    })
}

/// Takes the variables out that name a place that jobs can write to. The loader, Python and libraries execute, or read as their
/// settings, what they find there (`ld.so(8)`, HOME for `site`, NUMBA_CACHE_DIR), and the host may be root.
fn take_those_of_jobs(
    environment: &mut BTreeMap<String, String>,
    profile: &Profile,
) -> BTreeMap<String, String> {
    if !profile.has_folders_of_jobs() {
        return BTreeMap::new();
    }
    // Relative to where the host starts, as the loader takes it; and it splits at blanks, too.
    let here = std::env::current_dir().unwrap_or_default();
    let is_of_jobs = |value: &str| {
        let places = value.split(|c: char| ":,;=".contains(c) || c.is_whitespace());
        let mut places = places.filter(|place| place.contains('/'));
        places.any(|place| profile.folder_of_jobs(&here.join(place)).is_some())
    };
    let of_jobs: BTreeMap<_, _> = environment
        .extract_if(.., |_, value| is_of_jobs(value))
        .collect();
    if !of_jobs.is_empty() {
        let names: Vec<_> = of_jobs.keys().map(String::as_str).collect();
        log::info!(
            "jobs alone have the variables that name places which jobs can write to: {}",
            names.join(", ")
        );
    }
    of_jobs
}

/// How many processors this process may use.
pub(super) fn processors() -> anyhow::Result<usize> {
    let number = std::thread::available_parallelism().context("how many processors are there?")?;
    Ok(number.into())
}

/// This process's environment, if it is wanted.
fn own_environment(wanted: bool) -> anyhow::Result<BTreeMap<String, String>> {
    let variables = std::env::vars_os().filter(|_| wanted);
    let text = |name: &OsStr, text: &OsStr| {
        let text = text.to_str().map(str::to_owned);
        text.with_context(|| format!("the variable {} is not UTF-8", name.display()))
    };
    variables
        .map(|(name, value)| Ok((text(&name, &name)?, text(&name, &value)?)))
        .collect()
}

/// A list of the flags, else the file's.
pub(super) fn or_file<T: Clone>(flags: Vec<T>, file: &[T]) -> Vec<T> {
    if flags.is_empty() {
        file.to_vec()
    } else {
        flags
    }
}
