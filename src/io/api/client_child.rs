//! One child of a client, from its request to its end.
//!
//! Runs on: the I/O thread.

use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::stat::fstat;
use tokio::sync::Notify;

use super::Service;
use super::protocol::{ChildEvent, ChildRequest, Handover, Spawn};
use crate::io::pool::overrides::Overrides;
use crate::io::pool::payload::{Job, Stdin, Streams};
use crate::io::pool::{Followed, JobReport, Outcome};
use crate::layer::Layer;
use crate::sys::files::sealed_memfd;
use crate::sys::messages::{Socket, is_unix_socket};
use crate::wire::assignment::Assignment;
use crate::wire::fd_set::Role;
use crate::wire::payload::{self, Call, LONGEST_INLINE, Payload};

/// Of a child whose turn had not come.
const STILL_WAITED: &str = "it still waited for a place (pool.concurrency)";

/// Runs the child, and tells the client on its control socket how it goes.
pub(super) async fn attend(
    service: &Service,
    spawn: Spawn,
    mut handover: Handover,
    kill: Rc<Notify>,
) {
    let control = match Socket::new(handover.take_one(Role::Control)) {
        Ok(control) => control,
        Err(error) => return log::warn!("a client's control socket: {error}"),
    };
    match job(service, spawn, handover) {
        Ok(job) => follow(service, job, &control, kill).await,
        Err(event) => tell(&control, &event),
    }
}

/// Tells the client that its request is none.
pub(super) fn refuse(control: OwnedFd, reason: String) {
    match Socket::new(control) {
        Ok(control) => tell(&control, &ChildEvent::bad_request(reason)),
        Err(error) => log::warn!("a client's control socket: {error}"),
    }
}

/// Says something to the client, which need not be there any more. There are two such words for a
/// child: for one that has no room for them nobody waits, since others' children would, too.
fn tell(control: &Socket, event: &ChildEvent) {
    if let Err(errno) = control.send_now(&event.encode(), &[]) {
        log::debug!("a client does not hear of its child: {errno}");
    }
}

/// Runs a job while listening to the client, and tells it how the job ended.
async fn follow(service: &Service, mut job: Job, control: &Socket, kill: Rc<Notify>) {
    let wants_result = job.wants_result;
    let is_started = Cell::new(false);
    let started = |pid| {
        tell(control, &ChildEvent::Started { pid });
        is_started.set(true);
    };
    let followed = Followed {
        started: Some(Box::new(started)),
        kill: kill.clone(),
        ..Followed::default()
    };
    let run = async {
        let _place = match service.place(&kill).await {
            Ok(place) => place,
            Err(outcome) => return JobReport::not_run(outcome, STILL_WAITED),
        };
        if let Call::Client { deadline, .. } = &mut job.assignment.call {
            *deadline = job.timeout.and_then(payload::deadline);
        }
        service.pool.run_followed(job, followed).await
    };
    tokio::pin!(run);
    let mut listens = true;
    loop {
        tokio::select! {
            report = &mut run => return tell_end(control, report, is_started.get(), wants_result),
            request = control.receive(), if listens => match request {
                Ok(Some(message)) => match ChildRequest::decode(&message.bytes) {
                    Ok(ChildRequest::Kill {}) => kill.notify_one(),
                    Err(error) => log::warn!("a client asked its child: {error:?}"),
                },
                // The client does not follow it any more.
                Ok(None) | Err(_) => listens = false,
            },
        }
    }
}

/// Tells the client how its child ended, with a file for a result that is too long for a message.
fn tell_end(control: &Socket, mut report: JobReport, is_started: bool, wants_result: bool) {
    let mut file = None;
    if wants_result
        && let Some(json) = report.result.as_ref().map(|json| json.get())
        && json.len() > LONGEST_INLINE
    {
        match sealed_memfd("pyspawner-result", &[json.as_bytes()]) {
            Ok(memfd) => file = Some(memfd),
            Err(error) => {
                report.result = None;
                report.outcome = Outcome::InvalidResult;
                report.add_detail(Some(format!("memfd_create(the result): {error}")));
            }
        }
    }
    let event = ChildEvent::last(report, is_started, wants_result).encode();
    let descriptors: Vec<_> = file.iter().map(AsRawFd::as_raw_fd).collect();
    if let Err(errno) = control.send_now(&event, &descriptors) {
        log::debug!("a client does not hear of its child's end: {errno}");
    }
}

/// Makes a job of a request.
fn job(service: &Service, spawn: Spawn, mut handover: Handover) -> Result<Job, ChildEvent> {
    check_arguments(&handover.arguments).map_err(ChildEvent::bad_request)?;
    let streams = [Role::Stdin, Role::Stdout, Role::Stderr].map(|role| handover.take_one(role));
    for (stream, name) in streams.iter().zip(["stdin", "stdout", "stderr"]) {
        check_stream(stream, name).map_err(ChildEvent::bad_request)?;
    }
    let [stdin, stdout, stderr] = streams;
    let limits = spawn
        .limits(&service.profile.limits)
        .map_err(ChildEvent::bad_request)?;
    let own_timeout = spawn.timeout().map_err(ChildEvent::bad_request)?;
    let in_force = limits.as_ref().unwrap_or(&service.profile.limits);
    let timeout = own_timeout.into_iter().chain(in_force.wall).min();
    let network = spawn.network().map_err(ChildEvent::bad_request)?;
    let skip_layers = spawn.skipped();
    if let Some(name) = spawn.unknown_layer() {
        let name: String = name.chars().take(40).collect();
        log::warn!(
            "a client's skip_except: {name:?} is no layer that may be left out, and is ignored"
        );
    }
    if spawn.chroot.is_some() && !service.profile.layers().has(Layer::Root) {
        let reason = "chroot: the profile leaves out the layer \"root\"".to_owned();
        return Err(ChildEvent::bad_request(reason));
    }
    let call = Call::Client {
        form: spawn.arguments,
        id: spawn.id.clone(),
        deadline: None, // until it runs
    };
    Ok(Job {
        id: spawn.id,
        assignment: Assignment {
            process_name: spawn.process_name,
            call,
            shows_folder: false,
        },
        payload: handover.arguments,
        stdin: Stdin::Private(stdin),
        streams: Streams::Given { stdout, stderr },
        wants_result: spawn.result,
        collect: None,
        timeout,
        overrides: Overrides {
            limits,
            skip_layers,
            chroot: spawn.chroot,
            network,
        },
    })
}

/// Only what nobody can change any more is a job's arguments.
fn check_arguments(arguments: &Payload) -> Result<(), String> {
    let file = match arguments {
        Payload::Inline(bytes) if bytes.len() > LONGEST_INLINE => {
            let length = bytes.len();
            return Err(format!(
                "arguments: {length} bytes in the message, at most {LONGEST_INLINE} may be"
            ));
        }
        Payload::Inline(_) => return Ok(()),
        Payload::File(file) => file,
    };
    let wanted = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_retain);
    match seals {
        Ok(seals) if seals.contains(wanted) => Ok(()),
        _ => Err("arguments: expected a sealed memory file (memfd_create(2))".to_owned()),
    }
}

/// A folder would be a way out of the child's root.
fn check_stream(stream: &OwnedFd, name: &str) -> Result<(), String> {
    let stat = fstat(stream).map_err(|errno| format!("{name}: {errno}"))?;
    let refused = match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR | libc::S_IFLNK => "a folder",
        // The job would be connected to a network that it is to be without.
        libc::S_IFSOCK if !is_unix_socket(stream) => "a socket of a network",
        _ => return Ok(()),
    };
    Err(format!("{name}: expected a stream, not {refused}"))
}
