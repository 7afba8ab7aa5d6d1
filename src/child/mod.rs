//! A child's life, from the clone to its exit status. Runs in a clone: its sandbox first, then its job.
//!
//! Runs on: a child.

pub(crate) mod assigned;
pub(crate) mod enter;
mod read_back;

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use pyo3::prelude::*;

use self::assigned::Assigned;
use self::enter::Control;
use crate::interpreter::call::Entry;
use crate::interpreter::{self, import_guard, surroundings, threads};
use crate::layer::{Layer, SetupError, at};
use crate::sandbox::Sandbox;
use crate::sys::files;
use crate::wire::child_descriptors::StreamCopy;
use crate::wire::clone_channel::{CloneRequest, Purpose, limit_of_rehearsal};
use crate::wire::handshake::{ChildReport, NEVER_STARTED};
use crate::wire::payload::Payload;

/// What the main thread has prepared for all children. A clone has its copy of it.
pub(crate) struct Inheritance {
    pub sandbox: Sandbox,
    pub entry: Entry,
    /// Folders and files that the interpreter reads.
    pub needed: Vec<PathBuf>,
    /// The warm-up function, if there is one, and how long it took.
    pub warm_up: Option<(Py<PyAny>, Duration)>,
}

/// A child, in its own process.
pub(crate) struct Child<'a> {
    inheritance: &'a Inheritance,
    control: Control,
    stream_copies: Vec<StreamCopy>,
}

impl<'a> Child<'a> {
    pub(crate) fn new(
        inheritance: &'a Inheritance,
        stream_copies: Vec<StreamCopy>,
        request: &CloneRequest,
    ) -> Self {
        Self {
            inheritance,
            control: Control::of(&request.own),
            stream_copies,
        }
    }

    /// Its whole life. Returns its exit status.
    pub(crate) fn live(&self, py: Python<'_>, request: &CloneRequest) -> i32 {
        import_guard::lift();
        let sandbox = &self.inheritance.sandbox;
        if let Err(error) = enter::enter(sandbox, &request.own, request.cgroup().is_some()) {
            return self.refuse(&ChildReport::SetupFailed(error));
        }
        if request.own.root.is_some()
            && let Err(error) = forget_hosts_places(py, sandbox)
        {
            let text = interpreter::describe(py, &error);
            return self.refuse(&ChildReport::HookFailed(format!(
                "os.environ, sys.path:\n{text}"
            )));
        }
        match request.purpose {
            Purpose::Job | Purpose::Spare => self.serve(py, request.purpose),
            Purpose::Probe => self.probe(py),
            Purpose::Rehearsal => self.rehearse_warm_up(py),
            Purpose::Floor | Purpose::BareClone => self.say_ready(),
        }
    }

    /// For a clone whose descriptors or memory could not be made its own.
    pub(crate) fn refuse_once_released(&self, error: SetupError) -> i32 {
        match self.control.wait_for_host() {
            Ok(()) => self.refuse(&ChildReport::SetupFailed(error)),
            Err(_) => NEVER_STARTED, // the host has ended, or does not want this clone
        }
    }

    /// Waits for a job in the sandbox, and runs it.
    fn serve(&self, py: Python<'_>, purpose: Purpose) -> i32 {
        if let Err(text) = self.inheritance.entry.become_own(py) {
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
        let assigned = match py.detach(|| assigned::wait(control.descriptor(), copies)) {
            Ok(Some(assigned)) => assigned,
            Ok(None) => return NEVER_STARTED,
            Err(error) => return self.refuse(&ChildReport::SetupFailed(error)),
        };
        self.run_job(py, assigned)
    }

    /// Does what [`Self::run_job`] does, short of a job: the first time takes ten times as long.
    fn rehearse(&self, py: Python<'_>) -> Result<(), ChildReport> {
        let assigned = assigned::rehearse(&self.stream_copies);
        if let Some(assigned) = assigned.map_err(ChildReport::SetupFailed)? {
            read_arguments(assigned.payload)?;
        }
        let entry = &self.inheritance.entry;
        entry.rehearse(py).map_err(ChildReport::HookFailed)?;
        assigned::end_rehearsal(&self.stream_copies).map_err(ChildReport::SetupFailed)
    }

    fn run_job(&self, py: Python<'_>, assigned: Assigned) -> i32 {
        let payload = match read_arguments(assigned.payload) {
            Ok(payload) => payload,
            Err(report) => return self.refuse(&report),
        };
        let entry = &self.inheritance.entry;
        let job = match entry.prepare(py, assigned.call, &payload) {
            Ok(job) => job,
            Err(text) => return self.refuse(&ChildReport::InvalidJob(text)),
        };
        let told = match assigned.shows_folder {
            false => self.control.report(&ChildReport::Started),
            true => match self.open_home() {
                Ok(folder) => self.control.report_start_in(folder.as_fd()),
                Err(failed) => return self.refuse(&ChildReport::SetupFailed(failed)),
            },
        };
        // From here on the job's code runs, and must not find the control socket.
        if !told || self.control.close().is_err() {
            return NEVER_STARTED;
        }
        entry.call(py, &job)
    }

    /// The folder that is this child's own.
    fn open_home(&self) -> Result<OwnedFd, SetupError> {
        let failed = at(Layer::Root, "open(the private folder)");
        let home = self.inheritance.sandbox.home();
        // The host asks only where there is one.
        let home = home.ok_or_else(|| failed(Errno::ENOENT))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        open(home, flags, Mode::empty()).map_err(failed)
    }

    /// Whether this child is a clone as jobs need it.
    fn probe(&self, py: Python<'_>) -> i32 {
        match self.inheritance.entry.check_clone(py) {
            Ok(()) => self.check_reach(),
            Err(text) => self.refuse(&ChildReport::HookFailed(text)),
        }
    }

    /// Whether this child can read what its interpreter will need.
    fn check_reach(&self) -> i32 {
        let sandbox = &self.inheritance.sandbox;
        if sandbox.layers.has(Layer::Root) && sandbox.profile.shows_host_tree() {
            for path in &self.inheritance.needed {
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
        let Some((warm_up, took)) = &self.inheritance.warm_up else {
            return self.say_ready();
        };
        if let Err(text) = self.inheritance.entry.become_own(py) {
            return self.refuse(&ChildReport::HookFailed(format!("after_clone:\n{text}")));
        }
        let patience = limit_of_rehearsal(*took) / 10 * 8;
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

/// In a root of the child's own: there is no such home, and what lies at its top others may have left there.
fn forget_hosts_places(py: Python<'_>, sandbox: &Sandbox) -> PyResult<()> {
    surroundings::forget_working_directory(py)?;
    match sandbox.home() {
        Some(home) => surroundings::forget_home(py, home),
        None => Ok(()),
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
