//! The host process: one thread that clones, one that does everything else.
//!
//! The main thread makes the interpreter warm, prepares the sandbox, and from then on only
//! clones, holding the GIL. The I/O thread reads jobs and writes reports.

use std::convert::Infallible;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use pyo3::prelude::*;

use crate::call::Payload;
use crate::clone::inherited::{Before, Held, Inherited, StreamCopy};
use crate::clone::network_namespace::Birth;
use crate::clone::openmp;
use crate::clone::private_memory::spawn_private_thread;
use crate::clone::warm_image;
use crate::clone::{self, CloneError, CloneSpec, Cloner};
use crate::config::HostSettings;
use crate::interpreter::call::Entry;
use crate::interpreter::{self, held, host_module, internals, surroundings, threads, warm};
use crate::pool::clone_service::{
    self, CloneOrder, Cloned, Failure, IoEnd, MainEnd, Prepared, Purpose, ToMain, WarmUp,
};
use crate::pool::interrupt;
use crate::sandbox::assignment::{self, Assigned};
use crate::sandbox::enter::{self, Control, NEVER_STARTED};
use crate::sandbox::handshake::ChildReport;
use crate::sandbox::{Layer, Sandbox, SetupError, import_roots, seccomp};
use crate::sys::{files, process, stdio};

/// What the I/O thread runs. It ends the process when it is done.
pub type IoMain = fn(IoEnd, OwnedFd);

/// Becomes the host. Returns only with an error; on success `io_main` ends the process.
pub fn serve(
    settings: &HostSettings,
    io_main: IoMain,
    command: OwnedFd,
) -> anyhow::Result<Infallible> {
    interrupt::block_signals().context("blocking signals")?;
    let (main_end, io_end) = clone_service::channels().context("eventfd, socketpair")?;
    spawn_private_thread(Box::new(move || {
        // It fails only for a wrong argument.
        interrupt::block_all_signals().unwrap_or_else(|errno| panic!("sigprocmask: {errno}"));
        io_main(io_end, command);
    }))?;
    let Ok(ToMain::IoThread(io_thread)) = main_end.requests.recv() else {
        anyhow::bail!("the I/O thread did not start");
    };
    // SAFETY: the settings have been read, and the command belongs to the I/O thread.
    unsafe { main_end.own_descriptors() }.context("unshare(CLONE_FILES), close_range")?;

    separate_streams().context("standard streams")?;

    match prepare(settings, io_thread) {
        Ok(mut children) => {
            main_end.ready(Ok(Prepared {
                hidden_names: children.sandbox.hidden_names(),
                warm_up: children.to_rehearse.take(),
            }));
            children.clone_on_request(&main_end);
        }
        Err(failure) => main_end.ready(Err(failure)),
    }
    // The I/O thread is about to end the process, with its status.
    loop {
        std::thread::park();
    }
}

/// Has what preloaded modules print go to standard error, and gives them nothing to read: standard input and output
/// are the command's, for `map`'s jobs and records and for `run`'s job. Only this thread's table of descriptors is
/// changed.
fn separate_streams() -> anyhow::Result<()> {
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
fn prepare(settings: &HostSettings, io_thread: libc::pid_t) -> Result<Children, Failure> {
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
    let warm = warm::warm(settings).map_err(failure("preload"))?;
    // A module may have unblocked them.
    interrupt::block_signals()
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
    let sandbox = Sandbox::prepare(&settings.profile, &needed)?;
    Python::attach(|py| tell_interpreter(py, &sandbox, settings.sets_home))
        .context("after the warm-up")?;
    for layer in sandbox.layers.skipped() {
        log::warn!("layer {layer} is skipped by the configuration: the sandbox is weaker");
    }
    cloner.keep_child_statuses()?;
    let has_hooks = host_module::has_before_clone();
    let may_change = has_hooks || !threads.is_empty();
    cloner
        .inherited
        .seal(may_change)
        .context("/proc/thread-self/fd")?;
    Python::attach(|py| warm.fill_type_cache(py));
    let took = warm.warm_up.as_ref().map(|(_, took)| *took);
    let to_rehearse = took.filter(|_| settings.rehearsal);
    Ok(Children {
        warm_up: warm.warm_up,
        to_rehearse: to_rehearse.map(|took| WarmUp { took, threads }),
        openmp,
        has_hooks,
        cloner,
        sandbox,
        entry: warm.entry,
        needed,
    })
}

fn tell_interpreter(py: Python<'_>, sandbox: &Sandbox, sets_home: bool) -> PyResult<()> {
    if let Some(home) = sandbox.home().filter(|_| sets_home) {
        surroundings::set_home(py, home)?;
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
    for range in inherited.shared_memory() {
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
    inherited.with_held(|held| {
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

struct Children {
    warm_up: Option<(Py<PyAny>, Duration)>,
    to_rehearse: Option<WarmUp>,
    openmp: openmp::Runtimes,
    cloner: Cloner,
    /// Whether code of preloaded modules runs before each clone.
    has_hooks: bool,
    sandbox: Sandbox,
    entry: Entry,
    needed: Vec<PathBuf>,
}

impl Children {
    /// Serves the I/O thread until it closes the channel.
    fn clone_on_request(&mut self, main_end: &MainEnd) {
        Python::attach(|py| {
            for request in &main_end.requests {
                let ToMain::Clone(request) = request else {
                    continue;
                };
                let order = main_end.take(request);
                let cloned = order.and_then(|order| self.clone_once(py, &order));
                main_end.reply(request, cloned);
            }
        });
    }

    fn clone_once(&mut self, py: Python<'_>, request: &CloneOrder) -> Result<Cloned, String> {
        if request.purpose == Purpose::BareClone {
            return self.clone_bare(request);
        }
        host_module::run_before_clone(py)
            .map_err(|error| format!("before_clone:\n{}", interpreter::describe(py, &error)))?;
        if self.has_hooks {
            self.openmp.end_threads();
            let kept = self.cloner.keep_child_statuses();
            kept.map_err(|error| error.to_string())?;
        }
        self.sandbox.renew().map_err(|error| error.to_string())?;
        let (network, new_network) = self.network_of(request)?;
        let mut own = request.numbers();
        own.extend(new_network.as_ref().map(AsRawFd::as_raw_fd));
        let cloned = self.cloner.clone_host(
            py,
            &CloneSpec {
                flags: self.sandbox.clone_flags(network.is_some()),
                cgroup: request.cgroup,
                network,
                descriptors: &request.descriptors,
                own: &own,
            },
        );
        match cloned {
            Ok(clone::Cloned::Parent { pid }) => Ok(Cloned {
                pid,
                has_new_network: new_network.is_some(),
            }),
            Ok(clone::Cloned::Child(made_own)) => {
                // A panic must not unwind into the frames of the host, whose channels it would
                // close: they have locks that another thread may have held.
                let child = Child {
                    host: self,
                    control: Control::of(&request.descriptors),
                    stream_copies: self.cloner.inherited.stream_copies(),
                };
                let life = || match made_own {
                    Ok(()) => child.live(py, request),
                    Err(error) => child.refuse(&ChildReport::SetupFailed(error)),
                };
                let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(life));
                // To take this process apart takes the kernel a millisecond or more, in which it
                // lets nobody else have the processor: first those who wait for what was written.
                std::thread::yield_now();
                process::exit_now(status.unwrap_or(NEVER_STARTED))
            }
            Err(CloneError::NetworkNamespace(error)) => Err(error.to_string()),
            Err(error @ CloneError::BusyThread { tid, .. }) => {
                let more = threads::stack(py, tid).unwrap_or_default();
                Err(format!("clone: {error}{more}"))
            }
            Err(error) => Err(format!("clone: {error}")),
        }
    }

    fn clone_bare(&self, request: &CloneOrder) -> Result<Cloned, String> {
        let (network, new_network) = self.network_of(request)?;
        let flags = self.sandbox.clone_flags(network.is_some());
        let cloned = self.cloner.clone_bare(flags, network);
        let (pid, _) = cloned.map_err(|error| format!("bare clone: {error}"))?;
        Ok(Cloned {
            pid,
            has_new_network: new_network.is_some(),
        })
    }

    /// The network namespace to clone into, if it is not the clone that makes it; and its descriptor if
    /// it is new.
    fn network_of(&self, request: &CloneOrder) -> Result<(Option<RawFd>, Option<OwnedFd>), String> {
        match request.network {
            Birth::Own => return Ok((None, None)),
            Birth::In(slot) if self.cloner.is_as_new(slot) => return Ok((Some(slot), None)),
            Birth::In(_) | Birth::New => {}
        }
        let new = self.cloner.make_network_namespace();
        let new = new.map_err(|error| error.to_string())?;
        Ok((new.as_ref().map(AsRawFd::as_raw_fd), new))
    }
}

/// A child of this host, in its own process.
struct Child<'a> {
    host: &'a Children,
    control: Control,
    stream_copies: Vec<StreamCopy>,
}

impl Child<'_> {
    /// Its whole life. Returns its exit status.
    fn live(&self, py: Python<'_>, request: &CloneOrder) -> i32 {
        let sandbox = &self.host.sandbox;
        if let Err(error) = enter::enter(sandbox, &request.descriptors, request.cgroup.is_some()) {
            return self.refuse(&ChildReport::SetupFailed(error));
        }
        if request.descriptors.root.is_some()
            && let Some(home) = sandbox.home()
            && let Err(error) = surroundings::forget_home(py, home)
        {
            let text = interpreter::describe(py, &error);
            return self.refuse(&ChildReport::HookFailed(format!("os.environ:\n{text}")));
        }
        match request.purpose {
            Purpose::Job | Purpose::Spare => self.serve(py, request.purpose),
            Purpose::Probe => self.probe(py),
            Purpose::Rehearsal => self.rehearse_warm_up(py),
            Purpose::Floor | Purpose::BareClone => self.say_ready(),
        }
    }

    /// Waits for a job in the sandbox, and runs it.
    fn serve(&self, py: Python<'_>, purpose: Purpose) -> i32 {
        if let Err(text) = self.host.entry.become_own(py) {
            return self.refuse(&ChildReport::HookFailed(format!("after_clone:\n{text}")));
        }
        if purpose == Purpose::Spare
            && let Err(report) = self.rehearse(py)
        {
            return self.refuse(&report);
        }
        if !self.control.report(&ChildReport::Ready) {
            return NEVER_STARTED;
        }
        // Threads that hooks have started go on meanwhile.
        let (control, copies) = (self.control, &self.stream_copies);
        let assigned = match py.detach(|| assignment::wait(control.descriptor(), copies)) {
            Ok(Some(assigned)) => assigned,
            Ok(None) => return NEVER_STARTED,
            Err(error) => return self.refuse(&ChildReport::SetupFailed(error)),
        };
        self.run_job(py, assigned)
    }

    /// Does what [`Self::run_job`] does, short of a job: the first time takes ten times as long.
    fn rehearse(&self, py: Python<'_>) -> Result<(), ChildReport> {
        let assigned = assignment::rehearse(&self.stream_copies);
        if let Some(assigned) = assigned.map_err(ChildReport::SetupFailed)? {
            read_arguments(assigned.payload)?;
        }
        let entry = &self.host.entry;
        entry.rehearse(py).map_err(ChildReport::HookFailed)?;
        assignment::end_rehearsal(&self.stream_copies).map_err(ChildReport::SetupFailed)
    }

    fn run_job(&self, py: Python<'_>, assigned: Assigned) -> i32 {
        let payload = match read_arguments(assigned.payload) {
            Ok(payload) => payload,
            Err(report) => return self.refuse(&report),
        };
        let entry = &self.host.entry;
        let job = match entry.prepare(py, assigned.call, &payload) {
            Ok(job) => job,
            Err(text) => return self.refuse(&ChildReport::InvalidJob(text)),
        };
        // From here on the job's code runs, and must not find the control socket.
        if !self.control.report(&ChildReport::Started) || self.control.close().is_err() {
            return NEVER_STARTED;
        }
        entry.call(py, &job)
    }

    /// Whether this child is a clone as jobs need it.
    fn probe(&self, py: Python<'_>) -> i32 {
        match self.host.entry.check_clone(py) {
            Ok(()) => self.check_reach(),
            Err(text) => self.refuse(&ChildReport::HookFailed(text)),
        }
    }

    /// Whether this child can read what its interpreter will need.
    fn check_reach(&self) -> i32 {
        let sandbox = &self.host.sandbox;
        if sandbox.layers.has(Layer::Root) && sandbox.profile.shows_host_tree() {
            for path in &self.host.needed {
                if let Err(error) = reach(path) {
                    return self.refuse(&ChildReport::HookFailed(format!(
                        "root: children cannot read {}: {error}; hint: open it to others \
                         (chmod o+rX), every file that is to be imported included",
                        path.display()
                    )));
                }
            }
        }
        self.say_ready()
    }

    /// Calls the warm-up, with what it prints out of sight, since the host's own call has printed it. If it hangs,
    /// its stack is printed before the host gives it up.
    fn rehearse_warm_up(&self, py: Python<'_>) -> i32 {
        let Some((warm_up, took)) = &self.host.warm_up else {
            return self.say_ready();
        };
        if let Err(text) = self.host.entry.become_own(py) {
            return self.refuse(&ChildReport::HookFailed(format!("after_clone:\n{text}")));
        }
        let patience = clone_service::limit_of_rehearsal(*took) / 10 * 8;
        let called = hide_output()
            .and_then(|stderr| Ok(threads::print_stack_later(py, patience, stderr)?))
            .and_then(|()| Ok(warm_up.call0(py)?));
        match called {
            Ok(_) => self.say_ready(),
            Err(error) => self.refuse(&ChildReport::HookFailed(match error.downcast::<PyErr>() {
                Ok(error) => interpreter::describe(py, &error),
                Err(error) => format!("{error:#}"),
            })),
        }
    }

    /// For a child that has nothing else to do.
    fn say_ready(&self) -> i32 {
        match self.control.report(&ChildReport::Ready) {
            true => 0,
            false => NEVER_STARTED,
        }
    }

    fn refuse(&self, report: &ChildReport) -> i32 {
        // If nobody reads the report, the host is gone; there is nothing else to tell.
        self.control.report(report);
        NEVER_STARTED
    }
}

/// Has standard output and error lead nowhere. Returns another number for what standard error was.
fn hide_output() -> anyhow::Result<RawFd> {
    let stderr = files::duplicate_above(libc::STDERR_FILENO, libc::STDERR_FILENO + 1);
    let stderr = stderr.context("fcntl(F_DUPFD)")?;
    for stream in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // Standard input leads nowhere until there is a job.
        files::duplicate_onto(libc::STDIN_FILENO, stream, false).context("dup3")?;
    }
    Ok(stderr)
}

fn read_arguments(payload: Payload) -> Result<Vec<u8>, ChildReport> {
    payload.read().map_err(|error| {
        let step = "read(arguments)";
        ChildReport::SetupFailed(SetupError::from_io(Layer::Descriptors, step, &error))
    })
}

fn reach(path: &std::path::Path) -> std::io::Result<()> {
    if path.is_dir() {
        std::fs::read_dir(path).map(drop)
    } else {
        std::fs::File::open(path).map(drop)
    }
}
