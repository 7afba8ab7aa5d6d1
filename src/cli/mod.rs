//! The command line. `start` turns it into settings; `become_host` takes it from there.

pub(crate) mod bench;
mod earlier_results;
mod lines;
pub(crate) mod map;
mod own_files;
mod paths;
mod progress;
mod python;
pub(crate) mod run;
pub(crate) mod serve;
mod terminal;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use clap::{ArgAction, Args, Parser, Subcommand};
use serde::{Deserialize, Serialize};

use crate::config::{self, Callable, HostSettings, Profile};
use crate::host::IoDescriptors;
use crate::launch::{self, HostDescriptors};
use crate::network::Networks;
use crate::pool::Pool;
use crate::pool::clone_service::{CloneService, Failure, IoEnd, ToMain};
use crate::pool::interrupt::Interrupt;
use crate::sandbox::cgroup::Cgroups;
use crate::sandbox::hidden;
use crate::{activity, host, init, logging, unprivileged};

/// The exit status if pyspawner itself failed.
pub(crate) const FAILED: u8 = 125;

/// Import slow Python modules once, then run every job in a sandboxed clone of the warm
/// interpreter.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
    /// Say more on standard error: -v what the host does, -vv each job, -vvv all.
    ///
    /// PYSPAWNER_LOG takes a filter as the env_logger crate does, and outranks this.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Say less: -q errors only, -qq nothing.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    quiet: u8,
}

#[derive(Subcommand)]
enum Subcommands {
    Run(run::Arguments),
    Map(map::Arguments),
    Serve(serve::Arguments),
    Bench(bench::Arguments),
}

/// What to run and how, for all commands that run jobs of the user's.
#[derive(Args)]
#[command(next_help_heading = "Job options")]
struct JobOptions {
    /// What each child calls.
    #[arg(long, value_name = "MOD.FUNC")]
    child_main: Option<Callable>,
    #[command(flatten)]
    host: HostOptions,
}

/// The interpreter and the sandbox.
#[derive(Args)]
#[command(next_help_heading = "Job options")]
struct HostOptions {
    /// Modules to import before the first clone, separated by commas. Repeatable.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    preload: Vec<String>,
    /// Called once, after the imports: touch lazy imports, build caches.
    #[arg(long, value_name = "MOD.FUNC")]
    warm_up: Option<Callable>,
    /// The interpreter whose environment to use: a venv's or an installation's.
    ///
    /// By default the active virtual environment's, else the one pyspawner was built with.
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// Added to sys.path: a folder, or an archive that Python imports from. Repeatable.
    #[arg(long = "path", value_name = "DIR")]
    path: Vec<PathBuf>,
    /// A variable of the children's environment, which holds these and nothing else.
    /// Repeatable.
    #[arg(long = "env", value_name = "K=V", value_parser = parse_variable)]
    environment: Vec<(String, String)>,
    /// Give children this command's own environment, before --env.
    #[arg(long)]
    inherit_env: bool,
    /// Like --python, but only if it is the build that pyspawner is linked to.
    #[arg(long, value_name = "PATH", hide = true)]
    prefer_python: Option<PathBuf>,
    /// Which sandbox profile of the configuration to use.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// End a job after this time: seconds, or text such as "1m 30s".
    #[arg(long, value_name = "TIME", value_parser = config::parse_duration)]
    timeout: Option<Duration>,
    /// Refuse to start if preloaded modules leave threads running.
    #[arg(long)]
    strict: bool,
    /// Do not call the warm-up once more in a clone before the first job.
    ///
    /// That call shows what hangs or fails in a clone, such as a library whose threads were used in the warm-up.
    #[arg(long)]
    no_rehearsal: bool,
    /// The configuration file. Flags outrank it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

/// A command as it reaches the I/O thread.
#[derive(Serialize, Deserialize)]
enum Command {
    Run(run::Command),
    Map(map::Command),
    Serve(serve::Command),
    Bench(bench::Command),
}

impl Command {
    /// What the user may have meant to be called, by its place on the command line.
    fn likely_child_main(&self) -> Option<&str> {
        let first = match self {
            Self::Run(command) => command.first_argument(),
            Self::Map(command) => command.input_name(),
            Self::Serve(_) | Self::Bench(_) => None,
        };
        first
            .filter(|name| name.parse::<Callable>().is_ok() && !std::path::Path::new(name).exists())
    }

    /// Whether it is for one client, which has started it.
    fn has_one_client(&self) -> bool {
        let Self::Serve(command) = self else {
            return false;
        };
        matches!(command.clients, serve::ClientsFrom::Descriptor(_))
    }

    /// The files that it opens itself, with what they are.
    fn files(&self) -> Vec<(&'static str, &std::path::Path)> {
        match self {
            Self::Map(command) => command.files(),
            Self::Serve(command) => command.files(),
            Self::Run(_) | Self::Bench(_) => Vec::new(),
        }
    }
}

/// What the I/O thread is told. Children never see it.
#[derive(Serialize, Deserialize)]
struct IoSettings {
    command: Command,
    profile: Profile,
    /// Below which the children's control groups are made.
    cgroup: Option<PathBuf>,
    spares: usize,
    /// Whether there is a terminal on which progress is to be shown.
    shows_progress: bool,
}

/// Prints an error, once.
pub(crate) fn print_error(error: &anyhow::Error) {
    let text = format!("pyspawner: error: {error:#}\n");
    logging::write(logging::without_controls(&text).as_bytes());
}

/// What the init has to say while the host runs.
pub(crate) fn print_warning(text: &str) {
    let text = format!("pyspawner: {text}\n");
    logging::write(logging::without_controls(&text).as_bytes());
}

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
    let filter = logging::filter(cli.verbose, cli.quiet);
    logging::install(&filter)?;
    match cli.command {
        Subcommands::Run(arguments) => {
            let (options, command) = arguments.into_command()?;
            execute(options, filter, cli.quiet > 0, |_| {
                Ok(Command::Run(command))
            })
        }
        Subcommands::Map(arguments) => {
            let (options, arguments) = arguments.split();
            execute(options, filter, cli.quiet > 0, |file| {
                Ok(Command::Map(arguments.into_command(file)?))
            })
        }
        Subcommands::Serve(arguments) => {
            let (options, arguments) = arguments.split();
            let client = arguments.client_fd();
            let executed = execute(options, filter, cli.quiet > 0, |file| {
                Ok(Command::Serve(arguments.into_command(file)?))
            });
            if let (Some(client), Err(error)) = (client, &executed) {
                serve::tell_refusal(client, error);
            }
            executed
        }
        Subcommands::Bench(arguments) => {
            let (options, arguments) = arguments.split();
            let preload = options.host.preload.clone();
            execute(options, filter, cli.quiet > 0, |file| {
                Ok(Command::Bench(
                    arguments.into_command(or_file(preload, &file.preload)),
                ))
            })
        }
    }
}

/// Merges flags and configuration, and replaces this process by the host.
fn execute(
    JobOptions {
        child_main,
        host: options,
    }: JobOptions,
    log_filter: String,
    quiet: bool,
    command: impl FnOnce(&config::File) -> anyhow::Result<Command>,
) -> anyhow::Result<ExitCode> {
    let file = match &options.config {
        Some(path) => config::File::read(path)?,
        None => config::File::default(),
    };
    let mut profile = config::choose_profile(&file, options.profile.as_deref())?;
    profile.limits.wall = options.timeout.or(profile.limits.wall);
    let home = std::env::home_dir();
    let homes = hidden::homes(home.as_deref());
    profile.hide.extend(hidden::by_default(&homes));
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
            format!(
                "what should each child call? hint: --child-main {}",
                command.likely_child_main().unwrap_or("MOD.FUNC")
            )
        })?,
    };
    let warm_up = match options.warm_up {
        Some(target) => Some(target),
        None => from_file(&file.warm_up, "warm_up")?,
    };
    let settings = HostSettings {
        child_main,
        preload: or_file(options.preload, &file.preload),
        warm_up,
        python: python::find(
            options.python.or_else(|| file.python.clone()),
            options.prefer_python,
        )?,
        path: or_file(options.path, &file.path)
            .iter()
            .map(|path| paths::import_path(path, &profile))
            .collect::<anyhow::Result<_>>()?,
        strict: options.strict || file.strict,
        rehearsal: file.rehearses() && !options.no_rehearsal,
        profile: profile.clone(),
        homes,
        sets_home: !command.has_one_client(),
        log_filter,
    };
    let io = IoSettings {
        spares: match command {
            Command::Run(_) => 0,
            _ => file.pool.spares.map_or_else(processors, Ok)?,
        },
        command,
        profile,
        cgroup: file.pool.cgroup.clone(),
        shows_progress: progress::is_wanted(quiet),
    };
    unprivileged::gain_capabilities()?;
    let init = init::step_aside()?;
    match launch::execute_host(&settings, &io, &environment, &init)? {}
}

/// How many processors this process may use.
fn processors() -> anyhow::Result<usize> {
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
fn or_file<T: Clone>(flags: Vec<T>, file: &[T]) -> Vec<T> {
    if flags.is_empty() {
        file.to_vec()
    } else {
        flags
    }
}

/// The second life of this program: the host.
pub(crate) fn become_host(descriptors: HostDescriptors) -> anyhow::Result<ExitCode> {
    let HostDescriptors {
        settings,
        command,
        init,
    } = descriptors;
    let settings: HostSettings = launch::read(settings)?;
    logging::install(&settings.log_filter)?;
    match host::serve(&settings, io_main, IoDescriptors { command, init })? {}
}

/// The I/O thread: runs the command and ends the process with its status.
fn io_main(end: IoEnd, descriptors: IoDescriptors) {
    let status = launch::read(descriptors.command)
        .and_then(|settings| io_run(end, settings))
        .unwrap_or_else(|error| {
            print_error(&error);
            FAILED.into()
        });
    activity::tell_end(descriptors.init.as_fd());
    crate::sys::process::exit_now(status);
}

fn io_run(end: IoEnd, settings: IoSettings) -> anyhow::Result<i32> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("starting the runtime")?;
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(async move {
        let thread = ToMain::IoThread(nix::unistd::gettid().as_raw());
        end.requests
            .send(thread)
            .context("the main thread has ended")?;
        let interrupt = Interrupt::listen().context("signalfd")?;
        let clients = match &settings.command {
            Command::Serve(command) => Some(serve::Clients::open(command)?),
            _ => None,
        };
        let profile = Rc::new(settings.profile);
        let cgroup = settings.cgroup.as_deref();
        let prepared = prepare(end, &interrupt, &profile, cgroup, settings.spares).await;
        let (pool, networks, _removed) = match prepared {
            Ok(Ok(prepared)) => prepared,
            Ok(Err(signal)) => return Ok(128 + signal),
            Err(failure) => {
                if let Some(clients) = &clients {
                    clients.tell_failure(failure.kind, &failure.detail).await;
                }
                anyhow::bail!(failure.detail);
            }
        };
        let work = async {
            match (settings.command, clients) {
                (Command::Run(command), _) => run::run(&pool, &interrupt, &profile, command).await,
                (Command::Map(command), _) => {
                    map::map(
                        &pool,
                        &interrupt,
                        &profile,
                        command,
                        settings.shows_progress,
                    )
                    .await
                }
                (Command::Bench(command), _) => {
                    bench::bench(&pool, &interrupt, command, settings.shows_progress).await
                }
                (Command::Serve(command), clients) => {
                    let clients = clients.expect("opened above");
                    serve::serve(&pool, &interrupt, profile.clone(), &command, clients).await
                }
            }
        };
        let status = tokio::select! {
            status = work => status,
            signal = overdue(&interrupt) => {
                log::error!("the command did not end in {PATIENCE:?} after signal {signal}");
                Ok(128 + signal)
            }
        };
        networks.stop().await;
        status
    }))
}

/// Waits for the main thread, then makes the pool and tries it. The inner error is a signal that came
/// meanwhile.
async fn prepare(
    end: IoEnd,
    interrupt: &Interrupt,
    profile: &Rc<Profile>,
    cgroup: Option<&std::path::Path>,
    spares: usize,
) -> Result<Result<(Pool, Rc<Networks>, RemoveAtEnd), i32>, Failure> {
    let setup = |error: anyhow::Error| Failure {
        kind: "setup",
        detail: format!("{error:#}"),
    };
    let (clones, ready) = CloneService::start(end).context("eventfd").map_err(setup)?;
    let prepared = tokio::select! {
        ready = ready => match ready {
            Ok(result) => result?,
            Err(_) => return Err(setup(anyhow::anyhow!("the main thread has ended"))),
        },
        signal = interrupt.received() => return Ok(Err(signal)),
    };
    let cgroups = claim_cgroups(profile, cgroup).map_err(setup)?.map(Rc::new);
    let removed = RemoveAtEnd(cgroups.clone());
    let networks = Networks::start(&profile.network).await;
    let networks = Rc::new(networks.map_err(|error| setup(error.into()))?);
    let tried = async {
        let mut pool = Pool::new(
            clones,
            profile.clone(),
            cgroups,
            networks.clone(),
            interrupt.clone(),
        )?;
        pool.probe()
            .await
            .map_err(anyhow::Error::msg)
            .context("a first child could not be made as the profile asks, so no job was run")?;
        if let Some(warm_up) = &prepared.warm_up {
            pool.rehearse(warm_up).await.map_err(anyhow::Error::msg)?;
        }
        pool.keep_spares(spares, prepared.hidden_names);
        Ok(pool)
    };
    let tried = tokio::select! {
        tried = tried => tried.map(Ok),
        signal = interrupt.received() => Ok(Err(signal)),
    };
    match tried {
        Ok(Ok(pool)) => Ok(Ok((pool, networks, removed))),
        Ok(Err(signal)) => {
            networks.stop().await;
            Ok(Err(signal))
        }
        Err(error) => {
            networks.stop().await;
            Err(setup(error))
        }
    }
}

/// The control groups, unless the profile can do without and there are none. Says what is in
/// force.
fn claim_cgroups(
    profile: &Profile,
    configured: Option<&std::path::Path>,
) -> anyhow::Result<Option<Cgroups>> {
    let reason = match Cgroups::claim(configured, &profile.limits) {
        Ok(cgroups) => {
            log::info!(
                "jobs are limited and counted by control groups: {}",
                cgroups.controllers()
            );
            return Ok(Some(cgroups));
        }
        Err(reason) => reason,
    };
    if profile.cgroups == config::Cgroups::Required {
        anyhow::bail!(
            "limits: no control group (cgroup v2) can be had, and the profile requires it: {reason}"
        );
    }
    log::info!("no control groups (cgroup v2): {reason}");
    if profile.limits.memory.is_some() {
        log::warn!(
            "limits.memory holds for the private memory of each process (RLIMIT_DATA), not for \
             a job as a whole, since there are no control groups: {reason}"
        );
    }
    if profile.limits.cpu.is_some() {
        log::warn!("limits.cpu is not in force, since there are no control groups: {reason}");
    }
    Ok(None)
}

/// Takes the host's control groups away when its work is done.
struct RemoveAtEnd(Option<Rc<Cgroups>>);

impl Drop for RemoveAtEnd {
    fn drop(&mut self) {
        if let Some(cgroups) = &self.0 {
            cgroups.remove();
        }
    }
}

/// How long a command may take to end after an interrupt.
const PATIENCE: Duration = Duration::from_secs(5);

/// Returns the signal if an interrupt has not ended the process in time: a main thread that a
/// hook keeps busy must not make it immune to SIGTERM.
async fn overdue(interrupt: &Interrupt) -> i32 {
    let signal = interrupt.received().await;
    tokio::time::sleep(PATIENCE).await;
    signal
}
