//! One client's connection.
//!
//! Runs on: the I/O thread.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use tokio::sync::Notify;

use super::protocol::{Event, Handover, Request, Spawn, VERSION};
use super::{Service, client_child};
use crate::sys::messages::{LONGEST, MOST_DESCRIPTORS, Message, Socket, split_attached};
use crate::wire::fd_set::Role;

/// Serves a client until it goes. One that goes without a word has its children ended: it has been
/// killed, or has failed. What a client sends, and when it stops, is its own matter alone.
pub(crate) async fn attend(service: Rc<Service>, socket: Socket) {
    let mut client = Client {
        service,
        socket,
        children: Children::default(),
        greeted: false,
        spawned: 0,
    };
    let result = client.converse().await;
    if let Err(reason) = &result {
        log::warn!("a client is disconnected: {reason:?}");
        let event = Event::Failed {
            kind: "protocol",
            detail: reason,
        };
        client.socket.say_last(&event.encode());
    }
    if result != Ok(Farewell::Said) {
        client.children.end();
    }
}

struct Client {
    service: Rc<Service>,
    socket: Socket,
    children: Children,
    greeted: bool,
    spawned: u64,
}

#[derive(PartialEq, Eq)]
enum Farewell {
    Said,
    Missing,
}

impl Client {
    async fn converse(&mut self) -> Result<Farewell, String> {
        let say = |error: std::io::Error| error.to_string();
        while let Some(message) = self.socket.receive().await.map_err(say)? {
            if message.lost_descriptors() {
                // Whoever waits for the answer sees the end of its control socket.
                log::error!(
                    "a client's request is lost, since no descriptor is left; hint: raise the hard \
                     limit of open files (ulimit -Hn)"
                );
                continue;
            }
            if message.is_cut {
                return Err(format!(
                    "a message of more than {LONGEST} bytes or {MOST_DESCRIPTORS} descriptors"
                ));
            }
            if let Some(farewell) = self.answer(message).await? {
                return Ok(farewell);
            }
        }
        Ok(Farewell::Missing)
    }

    /// Does what a message asks for. The error ends the connection; what is wrong with a single
    /// child is told on that child's control socket.
    async fn answer(&mut self, message: Message) -> Result<Option<Farewell>, String> {
        let (text, attached) = split_attached(&message.bytes);
        let request = Request::decode(text);
        let count = message.descriptors.len();
        let handover = Handover::take(attached, message.descriptors);
        match (request, handover) {
            (Ok(Request::Hello { .. } | Request::Close {}), _) if attached.is_some() => {
                return Err("not a request: bytes that belong to none".to_owned());
            }
            (Ok(Request::Hello { version: VERSION }), _) => {
                self.greeted = true;
                let pid = std::process::id();
                let version = VERSION;
                self.say(Event::Ready { version, pid }).await?;
            }
            (Ok(Request::Hello { version }), _) => {
                return Err(format!("this host speaks version {VERSION}, not {version}"));
            }
            _ if !self.greeted => return Err("expected \"hello\" first".to_owned()),
            (Ok(Request::Spawn(spawn)), Some(handover)) => self.begin(*spawn, handover),
            (Ok(Request::Spawn(_)), None) => {
                return Err(format!(
                    "expected descriptors of three streams, a control socket, and the arguments \
                     unless they are in the message; got {count}"
                ));
            }
            (Ok(Request::Close {}), _) => {
                let children = self.children.count();
                // A client that has gone already has said it.
                self.say(Event::Closing { children }).await.ok();
                return Ok(Some(Farewell::Said));
            }
            (Err(reason), Some(mut handover)) => {
                client_child::refuse(handover.take_one(Role::Control), reason);
            }
            (Err(reason), None) => return Err(reason),
        }
        Ok(None)
    }

    async fn say(&self, event: Event<'_>) -> Result<(), String> {
        let sent = self.socket.send(&event.encode()).await;
        sent.map_err(|error| error.to_string())
    }

    fn begin(&mut self, spawn: Spawn, mut handover: Handover) {
        let counted = match self.service.admit_child() {
            Ok(counted) => counted,
            Err(reason) => {
                return client_child::refuse(handover.take_one(Role::Control), reason);
            }
        };
        self.spawned += 1;
        let (place, kill) = self.children.add(self.spawned);
        let service = self.service.clone();
        tokio::task::spawn_local(async move {
            let _given_back_at_the_end = (counted, place);
            client_child::attend(&service, spawn, handover, kill).await;
        });
    }
}

/// The children of a client, by number, with what ends each.
#[derive(Clone, Default)]
struct Children(Rc<RefCell<HashMap<u64, Rc<Notify>>>>);

/// A child's place among them, given back whatever becomes of it.
struct Place {
    children: Children,
    number: u64,
}

impl Children {
    fn add(&self, number: u64) -> (Place, Rc<Notify>) {
        let kill = Rc::new(Notify::new());
        self.0.borrow_mut().insert(number, kill.clone());
        let children = self.clone();
        (Place { children, number }, kill)
    }

    fn count(&self) -> usize {
        self.0.borrow().len()
    }

    fn end(&self) {
        for kill in self.0.borrow().values() {
            kill.notify_one();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.children.0.borrow_mut().remove(&self.number);
    }
}
