//! One client's connection.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::sync::Notify;

use super::protocol::{DESCRIPTORS, Event, Request, Spawn, VERSION};
use super::socket::{Message, Socket};
use super::{Service, child};

/// The children of a client, by number, with what ends each.
type Children = Rc<RefCell<HashMap<u64, Rc<Notify>>>>;

/// Serves a client until it goes. One that goes without a word has its children ended: it has been
/// killed, or has failed. What a client sends, and when it stops, is its own matter alone.
pub async fn attend(service: Rc<Service>, socket: Socket) {
    let children = Children::default();
    let result = converse(&service, &socket, &children).await;
    if let Err(reason) = &result {
        log::warn!("a client is disconnected: {reason}");
        let event = Event::Failed {
            kind: "protocol",
            detail: reason,
        };
        // It may have gone, or not read.
        let patience = std::time::Duration::from_secs(1);
        tokio::time::timeout(patience, socket.send(&event.encode()))
            .await
            .ok();
    }
    if result != Ok(Farewell::Said) {
        for kill in children.borrow().values() {
            kill.notify_one();
        }
    }
}

#[derive(PartialEq, Eq)]
enum Farewell {
    Said,
    Missing,
}

async fn converse(
    service: &Rc<Service>,
    socket: &Socket,
    children: &Children,
) -> Result<Farewell, String> {
    let mut greeted = false;
    let mut number = 0;
    loop {
        let received = socket.receive().await.map_err(|error| error.to_string())?;
        let Some(Message { bytes, descriptors }) = received else {
            return Ok(Farewell::Missing);
        };
        match Request::decode(&bytes)? {
            Request::Hello { version: VERSION } => {
                greeted = true;
                let ready = Event::Ready {
                    version: VERSION,
                    pid: std::process::id(),
                };
                socket
                    .send(&ready.encode())
                    .await
                    .map_err(|error| error.to_string())?;
            }
            Request::Hello { version } => {
                return Err(format!("this host speaks version {VERSION}, not {version}"));
            }
            _ if !greeted => return Err("expected \"hello\" first".to_owned()),
            Request::Spawn(spawn) => {
                number += 1;
                begin(service, children, number, *spawn, descriptors)?;
            }
            Request::Close {} => {
                let closing = Event::Closing {
                    children: children.borrow().len(),
                };
                // A client that has gone already has said it.
                socket.send(&closing.encode()).await.ok();
                return Ok(Farewell::Said);
            }
        }
    }
}

fn begin(
    service: &Rc<Service>,
    children: &Children,
    number: u64,
    spawn: Spawn,
    descriptors: Vec<OwnedFd>,
) -> Result<(), String> {
    let descriptors: [OwnedFd; DESCRIPTORS.len()] =
        descriptors.try_into().map_err(|others: Vec<_>| {
            format!(
                "expected descriptors for {DESCRIPTORS:?}, got {}",
                others.len()
            )
        })?;
    let kill = Rc::new(Notify::new());
    children.borrow_mut().insert(number, kill.clone());
    let (service, children) = (service.clone(), children.clone());
    tokio::task::spawn_local(async move {
        child::attend(&service, spawn, descriptors, kill).await;
        children.borrow_mut().remove(&number);
    });
    Ok(())
}
