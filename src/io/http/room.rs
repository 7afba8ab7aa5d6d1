//! Room for what requests bring: a bound on the bytes of all bodies at once.
//!
//! Runs on: the I/O thread.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Room is taken in steps of so many bytes.
const STEP: usize = 64 << 10;

/// The room that all bodies share.
#[derive(Clone)]
pub(super) struct Room(Arc<Semaphore>);

/// What one body has of it, given back when dropped.
#[derive(Default)]
pub(super) struct Taken(Vec<OwnedSemaphorePermit>);

/// There is no more.
#[derive(Debug)]
pub(super) struct NoRoom;

impl Room {
    pub(super) fn new(bytes: usize) -> Self {
        let steps = (bytes / STEP).clamp(1, Semaphore::MAX_PERMITS);
        Self(Arc::new(Semaphore::new(steps)))
    }

    /// Takes so much that `taken` is enough for a body of this length.
    pub(super) fn extend(&self, taken: &mut Taken, length: usize) -> Result<(), NoRoom> {
        while taken.0.len() < length.div_ceil(STEP) {
            let step = self.0.clone().try_acquire_owned();
            taken.0.push(step.map_err(|_| NoRoom)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_share_the_room_and_give_it_back() {
        let room = Room::new(4 * STEP);
        let (mut one, mut other) = <(Taken, Taken)>::default();
        room.extend(&mut one, 1).expect("room");
        room.extend(&mut one, 3 * STEP).expect("room");
        room.extend(&mut other, STEP).expect("room");
        assert!(room.extend(&mut other, STEP + 1).is_err());
        drop(one);
        room.extend(&mut other, 4 * STEP).expect("room again");
    }
}
