//! The I/O thread: jobs in, reports out. On one thread with a current-thread runtime, on memory that clones do not receive.
//!
//! Runs on: the I/O thread.

pub(crate) mod api;
pub(crate) mod bench;
pub(crate) mod cgroup;
pub(crate) mod commands;
pub(crate) mod http;
pub(crate) mod id_maps;
pub(crate) mod interrupt;
pub(crate) mod network;
pub(crate) mod peer;
pub(crate) mod pool;
pub(crate) mod socket_file;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use self::cgroup::Cgroups;
use self::interrupt::Interrupt;
use self::network::Networks;
use self::pool::Pool;
use self::pool::clone_service::CloneService;
use crate::config::{self, Callable, Profile};
use crate::failure::{FAILED, print_error};
use crate::wire::clone_channel::{Failure, IoEnd, ToMain};
use crate::wire::{activity, host_descriptors};

/// What the host was started with for its I/O thread.
pub(crate) struct IoDescriptors {
    pub command: OwnedFd,
    /// See [`crate::wire::activity`].
    pub init: OwnedFd,
}

/// A command as it reaches the I/O thread.
#[derive(Serialize, Deserialize)]
pub(crate) enum Command {
    Run(commands::run::Command),
    Map(commands::map::Command),
    Serve(Box<commands::serve::Command>),
    Bench(commands::bench::Command),
}

impl Command {
    /// What the user may have meant to be called, by its place on the command line.
    pub(crate) fn likely_child_main(&self) -> Option<&str> {
        let first = match self {
            Self::Run(command) => command.first_argument(),
            Self::Map(command) => command.input_name(),
            Self::Serve(_) | Self::Bench(_) => None,
        };
        first
            .filter(|name| name.parse::<Callable>().is_ok() && !std::path::Path::new(name).exists())
    }

    /// Whether it is for one client, which has started it.
    pub(crate) fn has_one_client(&self) -> bool {
        let Self::Serve(command) = self else {
            return false;
        };
        matches!(
            command.clients,
            Some(commands::serve::ClientsFrom::Descriptor(_))
        )
    }

    /// The files that it opens itself, with what they are.
    pub(crate) fn files(&self) -> Vec<(&'static str, &std::path::Path)> {
        match self {
            Self::Map(command) => command.files(),
            Self::Serve(command) => command.files(),
            Self::Run(_) | Self::Bench(_) => Vec::new(),
        }
    }
}

/// What the I/O thread is told. Children never see it.
#[derive(Serialize, Deserialize)]
pub(crate) struct IoSettings {
    pub command: Command,
    pub profile: Profile,
    /// Below which the children's control groups are made.
    pub cgroup: Option<PathBuf>,
    pub spares: usize,
    /// Whether there is a terminal on which progress is to be shown.
    pub shows_progress: bool,
}

/// The I/O thread: runs the command and ends the process with its status.
pub(crate) fn main(end: IoEnd, descriptors: IoDescriptors) {
    let status = host_descriptors::read(descriptors.command)
        .and_then(|settings| run(end, settings))
        .unwrap_or_else(|error| {
            print_error(&error);
            FAILED.into()
        });
    activity::tell_end(descriptors.init.as_fd());
    crate::sys::process::exit_now(status);
}

fn run(end: IoEnd, settings: IoSettings) -> anyhow::Result<i32> {
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
        let profile = Rc::new(settings.profile);
        let faces = match &settings.command {
            Command::Serve(command) => Some(commands::serve::Faces::open(command, &profile)?),
            _ => None,
        };
        let cgroup = settings.cgroup.as_deref();
        let prepared = prepare(end, &interrupt, &profile, cgroup, settings.spares).await;
        let (pool, networks, _removed) = match prepared {
            Ok(Ok(prepared)) => prepared,
            Ok(Err(signal)) => return Ok(128 + signal),
            Err(failure) => {
                if let Some(faces) = &faces {
                    faces.tell_failure(failure.kind, &failure.detail).await;
                }
                anyhow::bail!(failure.detail);
            }
        };
        let work = async {
            match (settings.command, faces) {
                (Command::Run(command), _) => {
                    commands::run::run(&pool, &interrupt, &profile, command).await
                }
                (Command::Map(command), _) => {
                    commands::map::map(
                        &pool,
                        &interrupt,
                        &profile,
                        command,
                        settings.shows_progress,
                    )
                    .await
                }
                (Command::Bench(command), _) => {
                    commands::bench::bench(&pool, &interrupt, command, settings.shows_progress)
                        .await
                }
                (Command::Serve(_), faces) => {
                    let faces = faces.expect("opened above");
                    commands::serve::serve(&pool, &interrupt, profile.clone(), faces).await
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
            "limits: no control group (cgroup v2) can be had, and the profile requires it: {reason:#}"
        );
    }
    log::info!("no control groups (cgroup v2): {reason:#}");
    if profile.limits.memory.is_some() {
        log::warn!(
            "limits.memory holds for the private memory of each process (RLIMIT_DATA), not for \
             a job as a whole, since there are no control groups: {reason:#}"
        );
    }
    if profile.limits.cpu.is_some() {
        log::warn!("limits.cpu is not in force, since there are no control groups: {reason:#}");
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
