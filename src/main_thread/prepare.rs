//! From nothing to the first clone: streams, mount namespace, warm interpreter, sandbox. Runs on the main thread, once.
//!
//! Runs on: the main thread.

use std::os::fd::{AsRawFd, RawFd};

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use pyo3::prelude::*;

use super::{Children, import_roots};
use crate::child::Inheritance;
use crate::clone::inherited::{Before, Held, Inherited, SharedRange};
use crate::clone::{Cloner, openmp, warm_image};
use crate::config::HostSettings;
use crate::interpreter::{held, host_module, internals, surroundings, threads, warm};
use crate::sandbox::{Sandbox, seccomp};
use crate::stop_signals;
use crate::sys::{files, process, scheduling, stdio};
use crate::wire::clone_channel::{Failure, MainEnd, WarmUp};

/// Has what preloaded modules print go to standard error, and gives them nothing to read: standard input and output
/// are the command's, for `map`'s jobs and records and for `run`'s job. Only this thread's table of descriptors is
/// changed.
pub(super) fn separate_streams() -> anyhow::Result<()> {
    let null = std::fs::File::open("/dev/null")?;
    files::duplicate_onto(null.as_raw_fd(), libc::STDIN_FILENO, false)?;
    let stderr = libc::STDERR_FILENO;
    // By an open file of its own where that is as good, so that what a module keeps of standard output is told
    // from what it keeps of standard error. In a file the two would overwrite each other.
    let is_file = std::fs::metadata("/proc/thread-self/fd/2").is_ok_and(|found| found.is_file());
    let anew = match is_file {
        true => None,
        false => std::fs::File::options()
            .append(true)
            .open("/proc/thread-self/fd/2")
            .ok(),
    };
    let source = anew.as_ref().map_or(stderr, AsRawFd::as_raw_fd);
    files::duplicate_onto(source, libc::STDOUT_FILENO, false)?;
    Ok(())
}

/// Makes everything ready for the first clone.
pub(super) fn prepare(
    settings: &HostSettings,
    io_thread: libc::pid_t,
    main_end: &MainEnd,
) -> Result<Children, Failure> {
    let failure = |kind| {
        move |error: anyhow::Error| Failure {
            kind,
            detail: format!("{error:#}"),
        }
    };
    leave_mount_namespace().map_err(failure("setup"))?;
    if let Err(error) = seccomp::hide_io_uring() {
        log::info!("preloaded modules may find io_uring, which jobs have not: {error:#}");
    }
    let before = Before::note().context("/proc/thread-self/fd, open_tree /dev/null");
    let before = before.map_err(failure("setup"))?;
    let reserved = warm_image::prepare(internals::arena_size())
        .context("reserving address space for the interpreter");
    reserved.map_err(failure("setup"))?;
    let own = main_end.identities();
    let warm = warm::warm(settings, &|activity| main_end.tell_init(activity))
        .map_err(failure("preload"))?;
    main_end.check(&own);
    // A module may have unblocked them.
    stop_signals::block_signals()
        .context("blocking signals")
        .map_err(failure("setup"))?;
    // What is left in its buffer would be written by each job that uses it.
    stdio::flush_standard_output();
    let runtimes = openmp::Runtimes::find();
    runtimes.end_threads();
    let inherited = before
        .compare()
        .context("/proc/thread-self/fd, /proc/self/smaps");
    let inherited = inherited.map_err(failure("setup"))?;
    let compact = warm_image::compact().context("/proc/self/smaps, mmap(MAP_FIXED)");
    compact.map_err(failure("setup"))?;
    prepare_children(settings, io_thread, warm, inherited, runtimes).map_err(failure("setup"))
}

/// Puts this thread, and those that modules start, into a mount namespace in which it may copy mounts, as an ordinary
/// user's host may not in the machine's own. What is mounted there later is seen here too.
fn leave_mount_namespace() -> anyhow::Result<()> {
    process::unshare(libc::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).context("mount / MS_SLAVE")
}

fn prepare_children(
    settings: &HostSettings,
    io_thread: libc::pid_t,
    warm: warm::Warm,
    inherited: Inherited,
    openmp: openmp::Runtimes,
) -> anyhow::Result<Children> {
    let mut cloner = Cloner::new(&[io_thread], inherited)?;
    let threads = cloner.foreign_threads()?;
    let threads = Python::attach(|py| threads::names(py, &threads));
    log_warm_state(settings, &warm.report, &cloner.inherited, &threads)?;
    let mut needed = warm.needed.clone();
    needed.extend(import_roots::to_show(
        &warm.import_roots,
        &needed,
        settings,
    )?);
    // Their limit for core dumps does not hold where a socket takes them (`core(5)`, since Linux 6.16), and it would have the warm image.
    process::keep_memory_from_core_dumps().context("/proc/self/coredump_filter")?;
    let sandbox = Sandbox::prepare(&settings.profile, &needed)?;
    Python::attach(|py| tell_interpreter(py, &sandbox, settings)).context("after the warm-up")?;
    for layer in sandbox.layers.skipped() {
        log::warn!("layer {layer} is skipped by the configuration: the sandbox is weaker");
    }
    scheduling::reset_in_clones().context("sched_setattr(SCHED_FLAG_RESET_ON_FORK), ioprio_set")?;
    cloner.keep_child_statuses()?;
    let has_hooks = host_module::has_before_clone();
    cloner.inherited.seal().context("/proc/thread-self/fd")?;
    cloner.runs_others_code = has_hooks || Python::attach(host_module::has_fork_handlers)?;
    Python::attach(|py| warm.fill_type_cache(py));
    let took = warm.warm_up.as_ref().map(|(_, took)| *took);
    let to_rehearse = took.filter(|_| settings.rehearsal);
    Ok(Children {
        to_rehearse: to_rehearse.map(|took| WarmUp { took, threads }),
        openmp,
        has_hooks,
        cloner,
        inheritance: Inheritance {
            sandbox,
            entry: warm.entry,
            needed,
            warm_up: warm.warm_up,
        },
    })
}

fn tell_interpreter(py: Python<'_>, sandbox: &Sandbox, settings: &HostSettings) -> PyResult<()> {
    surroundings::add_variables(py, &settings.environment_of_jobs)?;
    if let Some(home) = sandbox.home().filter(|_| settings.sets_home) {
        surroundings::set_home(py, home)?;
    }
    if sandbox.profile.starts_among_others() {
        surroundings::forget_working_directory(py)?;
    }
    match sandbox.import_directory() {
        Some(folder) => surroundings::import_from(py, folder),
        None => Ok(()),
    }
}

fn log_warm_state(
    settings: &HostSettings,
    report: &warm::Report,
    inherited: &Inherited,
    threads: &[String],
) -> anyhow::Result<()> {
    for (module, time) in &report.imports {
        log::info!("imported {module} in {time:.1?}");
    }
    log::info!(
        "warm in {:.1?}: Python {}, {} MiB resident, {} fork handlers",
        report.total,
        settings.python.display(),
        report.resident >> 20,
        crate::clone::fork_protocol::handler_count(),
    );
    for reason in &report.slower {
        log::warn!("children start slower than they could with this Python: {reason}");
    }
    log_inherited(inherited);
    for thread in threads {
        log::info!("a preloaded module left {thread} running");
    }
    if settings.strict && !threads.is_empty() {
        anyhow::bail!(
            "strict: preloaded modules left threads running: {}",
            threads.join(", ")
        );
    }
    Ok(())
}

/// Says once what of the preloaded objects does not work in jobs as it does here.
fn log_inherited(inherited: &Inherited) {
    inherited.with_shared_memory(|ranges| ranges.iter().for_each(log_shared));
    inherited.with_held(|held| {
        if held.is_empty() {
            return;
        }
        let numbers: Vec<RawFd> = held.iter().map(|held| held.number).collect();
        let names = Python::attach(|py| held::names(py, &numbers)).unwrap_or_default();
        let mut limited = Vec::new();
        for Held {
            number,
            target,
            remark,
        } in held
        {
            let name = names.get(number).map_or(String::new(), |name| format!(", {name}"));
            let which = format!("{target} (descriptor {number}{name})");
            match remark {
                Some(remark) => limited.push(format!("{which}: {remark}")),
                None => log::info!("a preloaded module holds {which} open"),
            }
        }
        if !limited.is_empty() {
            log::warn!(
                "what preloaded modules hold open works otherwise in jobs: {}; see docs/preloading.md",
                limited.join("; ")
            );
        }
    });
}

fn log_shared(range: &SharedRange) {
    let name = &range.name;
    if range.is_out_of_reach() {
        log::warn!("jobs cannot use {name}, which a preloaded module has mapped");
    } else if range.is_common_to_a_job() {
        log::info!("each job has a copy of its own of shared memory: {name}");
    } else {
        log::info!(
            "each job has its own view of shared memory: {name}; it is large, so that processes which a \
             job forks do not share their changes to it"
        );
    }
}
