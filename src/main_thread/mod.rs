//! The host process: one thread that clones, one that does everything else.
//!
//! Runs on: the main thread.
//!
//! The main thread makes the interpreter warm, prepares the sandbox, and from then on only
//! clones, holding the GIL. The I/O thread reads jobs and writes reports.

mod import_roots;
mod prepare;

use std::convert::Infallible;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use anyhow::Context;
use pyo3::prelude::*;

use crate::child::{Child, Inheritance};
use crate::clone::private_memory::spawn_private_thread;
use crate::clone::{self, CloneError, CloneSpec, Cloner, openmp};
use crate::config::HostSettings;
use crate::interpreter::{self, host_module, threads};
use crate::io::{self, IoDescriptors};
use crate::sys::process;
use crate::wire::child_descriptors::Birth;
use crate::wire::clone_channel::{
    self, CloneRequest, Cloned, MainEnd, Prepared, Purpose, Refusal, ToMain, WarmUp,
};
use crate::wire::handshake::NEVER_STARTED;
use crate::wire::host_descriptors::{self, HostDescriptors};
use crate::{logging, stop_signals};

/// The second life of this program: the host.
pub(crate) fn become_host(descriptors: HostDescriptors) -> anyhow::Result<ExitCode> {
    let HostDescriptors {
        settings,
        command,
        init,
    } = descriptors;
    let settings: HostSettings = host_descriptors::read(settings)?;
    logging::install(&settings.log)?;
    match serve(&settings, IoDescriptors { command, init })? {}
}

/// Becomes the host. Returns only with an error; on success the I/O thread ends the process.
fn serve(settings: &HostSettings, descriptors: IoDescriptors) -> anyhow::Result<Infallible> {
    stop_signals::block_signals().context("blocking signals")?;
    let init = descriptors.init.try_clone().context("dup")?;
    let (main_end, io_end) = clone_channel::channels(init).context("eventfd, socketpair")?;
    spawn_private_thread(Box::new(move || {
        // It fails only for a wrong argument.
        stop_signals::block_all_signals().unwrap_or_else(|errno| panic!("sigprocmask: {errno}"));
        io::main(io_end, descriptors);
    }))?;
    let Ok(ToMain::IoThread(io_thread)) = main_end.requests.recv() else {
        anyhow::bail!("the I/O thread did not start");
    };
    // SAFETY: the settings have been read, and the command belongs to the I/O thread.
    unsafe { main_end.own_descriptors() }.context("unshare(CLONE_FILES), close_range")?;

    prepare::separate_streams().context("standard streams")?;

    match prepare::prepare(settings, io_thread, &main_end) {
        Ok(mut children) => {
            main_end.tell_init("running jobs");
            main_end.ready(Ok(Prepared {
                hidden_names: children.inheritance.sandbox.hidden_names(),
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

/// Makes clones on request, and is what they begin with.
struct Children {
    to_rehearse: Option<WarmUp>,
    openmp: openmp::Runtimes,
    cloner: Cloner,
    /// Whether code of preloaded modules runs before each clone.
    has_hooks: bool,
    inheritance: Inheritance,
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

    fn clone_once(&mut self, py: Python<'_>, request: &CloneRequest) -> Result<Cloned, Refusal> {
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
        self.inheritance.sandbox.renew()?;
        let (network, new_network) = self.network_of(request)?;
        let mut own = request.numbers();
        own.extend(new_network.as_ref().map(AsRawFd::as_raw_fd));
        let cloned = self.cloner.clone_host(
            py,
            &CloneSpec {
                flags: self.inheritance.sandbox.clone_flags(network.is_some()),
                cgroup: request.cgroup(),
                network,
                descriptors: &request.own,
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
                let child = Child::new(
                    &self.inheritance,
                    self.cloner.inherited.stream_copies(),
                    request,
                );
                let life = || match made_own {
                    Ok(()) => child.live(py, request),
                    Err(error) => child.refuse_once_released(error),
                };
                let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(life));
                // To take this process apart takes the kernel a millisecond or more, in which it
                // lets nobody else have the processor: first those who wait for what was written.
                std::thread::yield_now();
                process::exit_now(status.unwrap_or(NEVER_STARTED))
            }
            Err(CloneError::NetworkNamespace(error)) => Err(error.into()),
            Err(error @ CloneError::BusyThread { tid, .. }) => {
                let more = threads::stack(py, tid).unwrap_or_default();
                Err(format!("clone: {error}{more}").into())
            }
            Err(error) => Err(format!("clone: {error}").into()),
        }
    }

    fn clone_bare(&self, request: &CloneRequest) -> Result<Cloned, Refusal> {
        let (network, new_network) = self.network_of(request)?;
        let flags = self.inheritance.sandbox.clone_flags(network.is_some());
        let cloned = self.cloner.clone_bare(flags, network);
        let (pid, _) = cloned.map_err(|error| format!("bare clone: {error}"))?;
        Ok(Cloned {
            pid,
            has_new_network: new_network.is_some(),
        })
    }

    /// The network namespace to clone into, if it is not the clone that makes it; and its descriptor if
    /// it is new.
    fn network_of(
        &self,
        request: &CloneRequest,
    ) -> Result<(Option<RawFd>, Option<OwnedFd>), Refusal> {
        match (request.birth, request.slot()) {
            (Birth::Own, _) => return Ok((None, None)),
            (_, Some(slot)) if self.cloner.is_as_new(slot) => return Ok((Some(slot), None)),
            (Birth::InSlot | Birth::New, _) => {}
        }
        let new = self.cloner.make_network_namespace()?;
        Ok((new.as_ref().map(AsRawFd::as_raw_fd), new))
    }
}
