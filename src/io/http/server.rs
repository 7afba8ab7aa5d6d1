//! The connections: who may have one, how long, and how the service ends.
//!
//! Runs on: the I/O thread.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::sockopt::SndBuf;
use nix::sys::socket::{SockType, setsockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_io_timeout::TimeoutStream;

use super::routes::router;
use super::run::{Runner, run_all};
use super::service::{Service, State, Submitted};
use super::{Address, Settings};
use crate::config::Profile;
use crate::io::interrupt::Interrupt;
use crate::io::peer::Admission;
use crate::io::pool::Pool;
use crate::io::pool::queue::Queue;
use crate::io::socket_file::{Access, SocketFile, listen_at};

/// The head of a request has no more than so many bytes, and so many headers.
const LONGEST_HEAD: usize = 32 << 10;
const MOST_HEADERS: usize = 64;
/// Bytes that the kernel keeps of a response.
const SEND_BUFFER: usize = 256 << 10;
/// After the last job's end its answer has so long to be read.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// A service that listens. Jobs are taken once it [runs](Server::run).
pub(crate) struct Server {
    settings: Settings,
    service: Arc<Service>,
    submitted: mpsc::UnboundedReceiver<Submitted>,
    closing: watch::Sender<bool>,
    connections: Arc<Semaphore>,
    socket: Option<SocketFile>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, Admission),
}

impl Server {
    /// Listens, and answers from now on; jobs are refused for the moment.
    ///
    /// # Errors
    /// If nobody can listen there.
    pub(crate) fn start(
        mut settings: Settings,
        queue: Arc<Queue>,
        first_tenant: usize,
        profile: &Profile,
    ) -> anyhow::Result<Self> {
        let (listener, socket) = listen(&settings.address, &settings.access)
            .with_context(|| format!("listening at {}", settings.address))?;
        if let Listener::Tcp(listener) = &listener {
            // The kernel chooses for port 0.
            settings.address = Address::Tcp(listener.local_addr()?);
        }
        log::info!("listening at {}", settings.address);
        let (service, submitted) = Service::new(&settings, queue, first_tenant, profile)?;
        let connections = Arc::new(Semaphore::new(settings.bounds.connections));
        let closing = watch::Sender::new(false);
        let accepting = Accepting {
            router: router(service.clone(), &settings.address),
            settings: settings.clone(),
            service: service.clone(),
            connections: connections.clone(),
            closing: closing.subscribe(),
        };
        tokio::task::spawn_local(accepting.accept_all(listener));
        Ok(Self {
            settings,
            service,
            submitted,
            closing,
            connections,
            socket,
        })
    }

    /// Takes jobs until a signal asks for the end, then lets those that were taken end. Returns the signal if there was
    /// no time for that.
    pub(crate) async fn run(
        self,
        pool: Pool,
        profile: Rc<Profile>,
        interrupt: &Interrupt,
    ) -> Option<i32> {
        let runner = Runner {
            service: self.service.clone(),
            pool,
            profile,
            interrupt: interrupt.clone(),
            queue_timeout: self.settings.queue_timeout,
        };
        tokio::task::spawn_local(run_all(Rc::new(runner), self.submitted));
        interrupt.drain_first();
        self.service.set_state(State::Ready);
        log::info!("jobs are taken");
        let signal = tokio::select! {
            signal = interrupt.drain_asked() => signal,
            signal = interrupt.received() => signal,
        };
        self.service.set_state(State::Draining);
        tokio::select! {
            () = idle(&self.service) => {}
            () = tokio::time::sleep(self.settings.drain) => {}
            _ = interrupt.received() => {}
        }
        let alive = self.service.jobs.alive();
        if alive > 0 {
            log::warn!("{alive} jobs are cancelled, which did not end in time (serve.drain)");
            interrupt.raise(signal);
            idle(&self.service).await;
        }
        // Connections end once their answers are read.
        self.closing.send_replace(true);
        let all = u32::try_from(self.settings.bounds.connections).unwrap_or(u32::MAX);
        let answered = self.connections.acquire_many(all);
        if tokio::time::timeout(LAST_ANSWERS, answered).await.is_err() {
            log::info!("some connections were still open at the end");
        }
        drop(self.socket);
        (alive > 0).then_some(signal)
    }
}

/// Returns once no job is left.
async fn idle(service: &Service) {
    while service.jobs.alive() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn listen(address: &Address, access: &Access) -> anyhow::Result<(Listener, Option<SocketFile>)> {
    match address {
        Address::Tcp(address) => Ok((Listener::Tcp(listen_tcp(*address)?), None)),
        Address::Unix(path) => {
            let admission = Admission::new(access.uids.clone())?;
            let (fd, file) = listen_at(path, access, SockType::Stream)?;
            let listener = UnixListener::from_std(fd.into())?;
            Ok((Listener::Unix(listener, admission), Some(file)))
        }
    }
}

fn listen_tcp(address: SocketAddr) -> anyhow::Result<TcpListener> {
    const BACKLOG: u32 = 1024;
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket.listen(BACKLOG)?)
}

/// What accepts connections.
struct Accepting {
    router: Router,
    settings: Settings,
    service: Arc<Service>,
    connections: Arc<Semaphore>,
    closing: watch::Receiver<bool>,
}

impl Accepting {
    async fn accept_all(self, listener: Listener) {
        let mut closing = self.closing.clone();
        tokio::select! {
            _ = closing.wait_for(|is_closing| *is_closing) => {}
            () = self.accept_on(listener) => {}
        }
    }

    async fn accept_on(&self, listener: Listener) {
        loop {
            let place = self.connections.clone().acquire_owned().await;
            let Ok(place) = place else {
                return;
            };
            let accepted = match &listener {
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    // Events are short, and wait for nothing.
                    stream.set_nodelay(true).ok();
                    // What a reader does not take waits here, where it counts, and not in the kernel.
                    setsockopt(&stream, SndBuf, &SEND_BUFFER).ok();
                    self.spawn(stream, place);
                }),
                Listener::Unix(listener, admission) => {
                    listener
                        .accept()
                        .await
                        .map(|(stream, _)| match admission.check(&stream) {
                            Ok(()) => self.spawn(stream, place),
                            Err(reason) => log::debug!("a connection is refused: {reason}"),
                        })
                }
            };
            if let Err(error) = accepted {
                // There are too many descriptors now; some will go. Or the client has gone again.
                log::debug!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // While there is always one more, a time limit and a signal must be heard.
            tokio::task::yield_now().await;
        }
    }

    fn spawn<S>(&self, stream: S, place: tokio::sync::OwnedSemaphorePermit)
    where
        S: AsyncRead + AsyncWrite + 'static,
    {
        let bounds = self.settings.bounds;
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(bounds.write));
        let service = TowerToHyperService::new(self.router.clone());
        let mut closing = self.closing.clone();
        let gauge = self.service.metrics.connection().clone();
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(bounds.head)
            .max_buf_size(LONGEST_HEAD)
            .max_headers(MOST_HEADERS)
            .serve_connection(TokioIo::new(Box::pin(stream)), service);
        tokio::task::spawn_local(async move {
            gauge.inc();
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = &mut connection => ended,
                _ = closing.wait_for(|is_closing| *is_closing) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                log::debug!("a connection: {error}");
            }
            gauge.dec();
            drop(place);
        });
    }
}
