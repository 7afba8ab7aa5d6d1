//! Children that were killed and have not ended.
//!
//! Runs on: the I/O thread.
//!
//! In a system call that waits for a file server or a device one may stay for ever, with all its memory. Another only has much to
//! give back (locks, descriptors), which takes the processors that it is given, and ends then: it keeps no job from being begun.

use std::cell::Cell;
use std::time::Duration;

use super::child::Child;
use crate::sys::{memory, process_tree};

/// How long a child may take to end after SIGKILL. The job's report does not wait for more than that.
pub(super) const PATIENCE_AFTER_KILL: Duration = Duration::from_secs(10);
/// With so many that hold memory no job is begun any more while the machine has little: nothing ends them. The number alone does not
/// tell: jobs can have the kernel hold up each other's ends by a lock of its own (`epnested_mutex`).
const MOST_STUCK: usize = 16;
/// And with so many in all, since each has a uid, a control group and descriptors.
const MOST: usize = 256;
/// How often one is looked at: first, and at last.
const LOOKS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How many there are.
#[derive(Default)]
pub(super) struct Overdue {
    all: Cell<usize>,
    stuck: Cell<usize>,
}

impl Overdue {
    /// Why no job may be begun, if there are too many.
    pub(super) fn refusal(&self) -> Option<String> {
        refusal(self.all.get(), self.stuck.get(), memory::is_scarce)
    }

    /// Waits for the end of a child that was killed, and reaps it.
    pub(super) async fn reap(&self, child: &Child) {
        let mut place = Place::new(self);
        let (mut pause, longest) = LOOKS;
        place.look_at(child);
        log::error!(
            "child {} has not ended {PATIENCE_AFTER_KILL:?} after SIGKILL, and {}",
            child.pid,
            match place.is_stuck {
                true =>
                    "holds memory, as if it waited for a file system or a device that does not answer",
                false => "is giving back what it had",
            }
        );
        // It is not to take the processors from jobs.
        process_tree::make_nice(child.pid);
        while tokio::time::timeout(pause, child.reap()).await.is_err() {
            place.look_at(child);
            pause = (pause * 2).min(longest);
        }
        log::info!(
            "child {}, which did not end after SIGKILL, has ended",
            child.pid
        );
    }
}

fn refusal(all: usize, stuck: usize, is_scarce: impl FnOnce() -> bool) -> Option<String> {
    let hint = "hint: which file system or device do they wait for? /proc/PID/stack and wchan tell";
    if stuck >= MOST_STUCK && is_scarce() {
        return Some(format!(
            "{stuck} children were killed and have not ended, and hold memory, of which there is little; {hint}"
        ));
    }
    (all >= MOST).then(|| format!("{all} children were killed and have not ended; {hint}"))
}

/// One child's place in the count.
struct Place<'a> {
    overdue: &'a Overdue,
    is_stuck: bool,
}

impl<'a> Place<'a> {
    fn new(overdue: &'a Overdue) -> Self {
        overdue.all.set(overdue.all.get() + 1);
        Self {
            overdue,
            is_stuck: false,
        }
    }

    fn look_at(&mut self, child: &Child) {
        self.set(process_tree::has_memory(child.pid));
    }

    fn set(&mut self, is_stuck: bool) {
        let stuck = &self.overdue.stuck;
        stuck.set(stuck.get() + usize::from(is_stuck) - usize::from(self.is_stuck));
        self.is_stuck = is_stuck;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.set(false);
        self.overdue.all.set(self.overdue.all.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_refused_for_want_of_memory_or_of_all_else() {
        assert!(refusal(MOST_STUCK, MOST_STUCK, || false).is_none());
        assert!(refusal(MOST - 1, MOST_STUCK - 1, || true).is_none());
        let scarce = refusal(MOST_STUCK, MOST_STUCK, || true).expect("it is refused");
        assert!(scarce.contains("hold memory"), "{scarce}");
        assert!(refusal(MOST, 0, || false).is_some());
    }
}
