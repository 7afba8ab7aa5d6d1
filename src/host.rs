//! The host process: one thread that clones, one that does everything else.
//!
//! The main thread makes the interpreter warm, prepares the sandbox, and from then on only
//! clones, holding the GIL. The I/O thread reads jobs and writes reports.

use std::convert::Infallible;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use anyhow::Context;
use pyo3::prelude::*;

use crate::call::Payload;
use crate::clone::network_namespace::Birth;
use crate::clone::private_memory::spawn_private_thread;
use crate::clone::warm_image;
use crate::clone::{CloneError, Cloner};
use crate::config::HostSettings;
use crate::interpreter::call::Entry;
use crate::interpreter::{host_module, internals, warm};
use crate::pool::clone_service::{
    self, CloneOrder, Cloned, Failure, IoEnd, MainEnd, Prepared, Purpose, ToMain,
};
use crate::pool::interrupt;
use crate::sandbox::assignment::{self, Assigned};
use crate::sandbox::enter::{self, NEVER_STARTED};
use crate::sandbox::handshake::ChildReport;
use crate::sandbox::{Layer, Sandbox, SetupError};
use crate::sys::clone3::Side;
use crate::sys::process;

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
    spawn_private_thread(Box::new(move || io_main(io_end, command)))?;
    let Ok(ToMain::IoThread(io_thread)) = main_end.requests.recv() else {
        anyhow::bail!("the I/O thread did not start");
    };
    // SAFETY: the settings have been read, and the command belongs to the I/O thread.
    unsafe { main_end.own_descriptors() }.context("unshare(CLONE_FILES), close_range")?;

    match prepare(settings, io_thread) {
        Ok(mut children) => {
            main_end.ready(Ok(Prepared {
                hidden_names: children.sandbox.hidden_names(),
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

/// Makes everything ready for the first clone.
fn prepare(settings: &HostSettings, io_thread: libc::pid_t) -> Result<Children, Failure> {
    let failure = |kind| {
        move |error: anyhow::Error| Failure {
            kind,
            detail: format!("{error:#}"),
        }
    };
    let reserved = warm_image::prepare(internals::arena_size())
        .context("reserving address space for the interpreter");
    reserved.map_err(failure("setup"))?;
    let warm = warm::warm(settings).map_err(failure("preload"))?;
    let compact = warm_image::compact().context("/proc/self/smaps, mmap(MAP_FIXED)");
    compact.map_err(failure("setup"))?;
    prepare_children(settings, io_thread, warm).map_err(failure("setup"))
}

fn prepare_children(
    settings: &HostSettings,
    io_thread: libc::pid_t,
    warm: warm::Warm,
) -> anyhow::Result<Children> {
    let cloner = Cloner::new(&[io_thread])?;
    log_warm_state(settings, &warm.report, &cloner)?;
    let sandbox = Sandbox::prepare(&settings.profile, &warm.needed)?;
    for layer in sandbox.layers.skipped() {
        log::warn!("layer {layer} is skipped by the configuration: the sandbox is weaker");
    }
    Ok(Children {
        cloner,
        sandbox,
        entry: warm.entry,
        needed: warm.needed,
    })
}

fn log_warm_state(
    settings: &HostSettings,
    report: &warm::Report,
    cloner: &Cloner,
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
    for descriptor in &report.descriptors {
        log::info!("a preloaded module left {descriptor} open; children do not receive it");
    }
    for mapping in &report.shared_memory {
        log::warn!(
            "a preloaded module left writable memory that all children share with each other and \
             with the host: {mapping}; hint: close it, or make it in the jobs"
        );
    }
    if settings.strict && !report.shared_memory.is_empty() {
        anyhow::bail!(
            "strict: preloaded modules left shared memory: {:?}",
            report.shared_memory
        );
    }
    let threads = cloner.foreign_threads()?;
    for thread in &threads {
        log::info!("a preloaded module left thread {:?} running", thread.name);
    }
    if settings.strict && !threads.is_empty() {
        let names: Vec<_> = threads.iter().map(|thread| thread.name.as_str()).collect();
        anyhow::bail!("strict: preloaded modules left threads running: {names:?}");
    }
    Ok(())
}

struct Children {
    cloner: Cloner,
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
        host_module::run_before_clone(py).map_err(|error| {
            format!(
                "before_clone:\n{}",
                crate::interpreter::describe(py, &error)
            )
        })?;
        self.sandbox.renew().map_err(|error| error.to_string())?;
        let (network, new_network) = self.network_of(request)?;
        let flags = self.sandbox.clone_flags(network.is_some());
        let cloned = self.cloner.clone_host(py, flags, request.cgroup, network);
        match cloned {
            Ok(Side::Parent { pid, .. }) => Ok(Cloned {
                pid,
                has_new_network: new_network.is_some(),
            }),
            Ok(Side::Child) => {
                // A panic must not unwind into the frames of the host, whose channels it would
                // close: they have locks that another thread may have held.
                let life = || self.live(py, request);
                let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(life));
                // To take this process apart takes the kernel a millisecond or more, in which it
                // lets nobody else have the processor: first those who wait for what was written.
                std::thread::yield_now();
                process::exit_now(status.unwrap_or(NEVER_STARTED))
            }
            Err(CloneError::NetworkNamespace(error)) => Err(error.to_string()),
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

    /// A child's whole life. Returns its exit status.
    fn live(&self, py: Python<'_>, request: &CloneOrder) -> i32 {
        if let Err(error) = enter::enter(
            &self.sandbox,
            &request.descriptors,
            request.cgroup.is_some(),
        ) {
            return refuse(ChildReport::SetupFailed(error));
        }
        match request.purpose {
            Purpose::Job | Purpose::Spare => self.serve(py, request.purpose),
            Purpose::Probe => self.probe(py),
            Purpose::Floor | Purpose::BareClone => say_ready(),
        }
    }

    /// Waits for a job in the sandbox, and runs it.
    fn serve(&self, py: Python<'_>, purpose: Purpose) -> i32 {
        if let Err(text) = self.entry.become_own(py) {
            return refuse(ChildReport::HookFailed(format!("after_clone:\n{text}")));
        }
        if purpose == Purpose::Spare
            && let Err(report) = self.rehearse(py)
        {
            return refuse(report);
        }
        if !enter::report(&ChildReport::Ready) {
            return NEVER_STARTED;
        }
        // Threads that hooks have started go on meanwhile.
        let assigned = match py.detach(assignment::wait) {
            Ok(Some(assigned)) => assigned,
            Ok(None) => return NEVER_STARTED,
            Err(error) => return refuse(ChildReport::SetupFailed(error)),
        };
        self.run_job(py, assigned)
    }

    /// Does what [`Self::run_job`] does, short of a job: the first time takes ten times as long.
    fn rehearse(&self, py: Python<'_>) -> Result<(), ChildReport> {
        let assigned = assignment::rehearse().map_err(ChildReport::SetupFailed)?;
        if let Some(assigned) = assigned {
            read_arguments(assigned.payload)?;
        }
        self.entry.rehearse(py).map_err(ChildReport::HookFailed)?;
        assignment::end_rehearsal().map_err(ChildReport::SetupFailed)
    }

    fn run_job(&self, py: Python<'_>, assigned: Assigned) -> i32 {
        let payload = match read_arguments(assigned.payload) {
            Ok(payload) => payload,
            Err(report) => return refuse(report),
        };
        let job = self
            .entry
            .prepare(py, assigned.call, &payload, assigned.wants_result);
        let job = match job {
            Ok(job) => job,
            Err(text) => return refuse(ChildReport::InvalidJob(text)),
        };
        // From here on the job's code runs, and must not find the control socket.
        if !enter::report(&ChildReport::Started) || enter::close_private_descriptors().is_err() {
            return NEVER_STARTED;
        }
        self.entry.call(py, &job, assigned.wants_result)
    }

    /// Whether this child is a clone as jobs need it.
    fn probe(&self, py: Python<'_>) -> i32 {
        match self.entry.check_clone(py) {
            Ok(()) => self.check_reach(),
            Err(text) => refuse(ChildReport::HookFailed(text)),
        }
    }

    /// Whether this child can read what its interpreter will need.
    fn check_reach(&self) -> i32 {
        if self.sandbox.layers.has(Layer::Root) && self.sandbox.profile.shows_host_tree() {
            for path in &self.needed {
                if let Err(error) = reach(path) {
                    return refuse(ChildReport::HookFailed(format!(
                        "root: children cannot read {}: {error}; hint: open it to others \
                         (chmod o+rX), every file that is to be imported included",
                        path.display()
                    )));
                }
            }
        }
        say_ready()
    }
}

/// For a child that has nothing else to do.
fn say_ready() -> i32 {
    match enter::report(&ChildReport::Ready) {
        true => 0,
        false => NEVER_STARTED,
    }
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

fn refuse(report: ChildReport) -> i32 {
    // If nobody reads the report, the host is gone; there is nothing else to tell.
    enter::report(&report);
    NEVER_STARTED
}
