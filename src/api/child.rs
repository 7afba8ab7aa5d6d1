//! One child of a client, from its request to its end.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::stat::fstat;
use tokio::sync::{Notify, oneshot};

use super::protocol::{ChildEvent, ChildRequest, DESCRIPTORS, Spawn};
use super::socket::Socket;
use super::{Counted, Service};
use crate::call::Call;
use crate::pool::payload::{Job, Own, Stdin, Streams};
use crate::pool::{Followed, JobReport};
use crate::sandbox::order::Order;
use crate::sandbox::root::OwnRoot;

/// Runs the child, and tells the client on its control socket how it goes.
pub(super) async fn attend(
    service: &Rc<Service>,
    spawn: Spawn,
    descriptors: [OwnedFd; DESCRIPTORS.len()],
    kill: Rc<Notify>,
) {
    let _counted = Counted::new(service);
    let [arguments, stdin, stdout, stderr, control] = descriptors;
    let control = match Socket::new(control) {
        Ok(control) => control,
        Err(error) => return log::warn!("a client's control socket: {error}"),
    };
    let streams = [stdin, stdout, stderr];
    let last = match job(service, spawn, arguments, streams) {
        Ok(job) => follow(service, job, &control, kill).await,
        Err(event) => event,
    };
    // A client that has gone, or dropped its end, does not want to know.
    control.send(&last.encode()).await.ok();
}

/// Runs a job while listening to the client; its last word.
async fn follow(service: &Service, job: Job, control: &Socket, kill: Rc<Notify>) -> ChildEvent {
    let (sender, mut started) = oneshot::channel();
    let followed = Followed {
        started: Some(sender),
        kill: kill.clone(),
    };
    let run = service.pool.run_followed(job, followed);
    tokio::pin!(run);
    let (mut awaits_start, mut is_started, mut listens) = (true, false, true);
    loop {
        tokio::select! {
            report = &mut run => {
                // A quick job may have ended before its start was passed on.
                if awaits_start && let Ok(pid) = started.try_recv() {
                    tell_start(control, pid).await;
                    is_started = true;
                }
                return ChildEvent::last(report, is_started);
            }
            pid = &mut started, if awaits_start => {
                awaits_start = false;
                if let Ok(pid) = pid {
                    tell_start(control, pid).await;
                    is_started = true;
                }
            }
            request = control.receive(), if listens => match request {
                Ok(Some(message)) => match ChildRequest::decode(&message.bytes) {
                    Ok(ChildRequest::Kill {}) => kill.notify_one(),
                    Err(error) => log::warn!("a client asked its child: {error}"),
                },
                // The client does not follow it any more.
                Ok(None) | Err(_) => listens = false,
            },
        }
    }
}

async fn tell_start(control: &Socket, pid: libc::pid_t) {
    // The client may have gone.
    control
        .send(&ChildEvent::Started { pid }.encode())
        .await
        .ok();
}

/// Makes a job of a request.
fn job(
    service: &Service,
    spawn: Spawn,
    arguments: OwnedFd,
    [stdin, stdout, stderr]: [OwnedFd; 3],
) -> Result<Job, ChildEvent> {
    check_arguments(&arguments).map_err(ChildEvent::bad_request)?;
    for (stream, name) in [&stdin, &stdout, &stderr]
        .into_iter()
        .zip(&DESCRIPTORS[1..])
    {
        check_stream(stream, name).map_err(ChildEvent::bad_request)?;
    }
    let limits = spawn
        .limits(&service.profile.limits)
        .map_err(ChildEvent::bad_request)?;
    let own_timeout = spawn.timeout().map_err(ChildEvent::bad_request)?;
    let in_force = limits.as_ref().unwrap_or(&service.profile.limits);
    let timeout = own_timeout.into_iter().chain(in_force.wall).min();
    let network = spawn.network().map_err(ChildEvent::bad_request)?;
    let skip_layers = spawn.skipped().map_err(ChildEvent::bad_request)?;
    let root = spawn.chroot.as_deref().map(OwnRoot::take).transpose();
    let root = root.map_err(|error| ChildEvent::last(JobReport::refused(error), false))?;
    let (root, covered) = root.map_or((None, Vec::new()), |root| (Some(root.tree), root.covered));
    let order = Order {
        process_name: spawn.process_name,
        skip_layers: skip_layers.clone(),
        limits: limits.clone(),
        covered,
        call: Call::Pickle {
            id: spawn.id.clone(),
            deadline: timeout.and_then(seconds_since_epoch),
        },
    };
    let order = order
        .seal()
        .map_err(|error| ChildEvent::bad_request(format!("memory file: {error}")))?;
    Ok(Job {
        id: spawn.id,
        payload: arguments,
        stdin: Stdin::Private(stdin),
        streams: Streams::Given { stdout, stderr },
        timeout,
        own: Own {
            limits,
            skip_layers,
            order: Some(order),
            root,
            network,
        },
    })
}

/// When a time from now will be.
fn seconds_since_epoch(from_now: Duration) -> Option<f64> {
    let end = SystemTime::now().checked_add(from_now)?;
    let end = end.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(end.as_secs_f64())
}

/// Only what nobody can change any more is a job's arguments.
fn check_arguments(arguments: &OwnedFd) -> Result<(), String> {
    let wanted = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    let seals = fcntl(arguments.as_fd(), FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_retain);
    match seals {
        Ok(seals) if seals.contains(wanted) => Ok(()),
        _ => Err("arguments: expected a sealed memory file (memfd_create(2))".to_owned()),
    }
}

/// A folder would be a way out of the child's root.
fn check_stream(stream: &OwnedFd, name: &str) -> Result<(), String> {
    let stat = fstat(stream).map_err(|errno| format!("{name}: {errno}"))?;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR | libc::S_IFLNK => Err(format!("{name}: expected a stream, not a folder")),
        _ => Ok(()),
    }
}
