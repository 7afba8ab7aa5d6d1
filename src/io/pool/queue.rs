//! Whose turn it is: a bounded queue for each tenant, and a number of jobs that may run at once.
//!
//! Runs on: the I/O thread.
//!
//! Within a tenant the first to come is the first to run. Between tenants turns go round, so that one with a long
//! queue does not keep the others waiting.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// What a tenant may have of the queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// Jobs at once.
    pub running: usize,
    /// Jobs that wait. `None`: they are bounded elsewhere, and take no room from others.
    pub waiting: Option<usize>,
}

/// The queue of a service. Its tenants are known from the start, and are named by their index.
pub(crate) struct Queue {
    // Never held while anything is waited for.
    state: Mutex<State>,
}

struct State {
    running: usize,
    most_running: usize,
    /// Of the tenants whose queue is bounded.
    waiting: usize,
    most_waiting: usize,
    tenants: Vec<Tenant>,
    /// The tenant that is asked first for the next turn.
    next: usize,
    rate: Rate,
}

struct Tenant {
    share: Share,
    running: usize,
    waiting: VecDeque<oneshot::Sender<Place>>,
}

/// A job's wait for its turn. Dropping it gives up the turn.
pub(crate) struct Turn(oneshot::Receiver<Place>);

/// A running job's place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    queue: Arc<Queue>,
    tenant: usize,
}

/// There is no room in the queue.
#[derive(Debug, PartialEq)]
pub(crate) struct Full {
    /// Jobs that wait already.
    pub waiting: usize,
    /// When there is likely to be room, by the rate at which jobs have ended of late.
    pub retry_after: Duration,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl Queue {
    /// A queue for jobs of which `most_running` run at once and `most_waiting` wait, whoever's they are.
    pub(crate) fn new(most_running: usize, most_waiting: usize, shares: &[Share]) -> Arc<Self> {
        let tenant = |&share| Tenant {
            share,
            running: 0,
            waiting: VecDeque::new(),
        };
        Arc::new(Self {
            state: Mutex::new(State {
                running: 0,
                most_running,
                waiting: 0,
                most_waiting,
                tenants: shares.iter().map(tenant).collect(),
                next: 0,
                rate: Rate::default(),
            }),
        })
    }

    /// Takes a place in the queue, or says that there is none.
    pub(crate) fn enter(self: &Arc<Self>, tenant: usize) -> Result<Turn, Full> {
        let mut state = self.state();
        state.forget_those_who_left();
        let own = &state.tenants[tenant];
        let has_turn_at_once = state.running < state.most_running && own.may_run();
        let is_full = own
            .share
            .waiting
            .is_some_and(|most| state.waiting >= state.most_waiting || own.waiting.len() >= most);
        if is_full && !has_turn_at_once {
            return Err(Full {
                waiting: state.waiting,
                retry_after: state.rate.time_for(state.waiting + 1),
            });
        }
        let (sender, receiver) = oneshot::channel();
        state.tenants[tenant].waiting.push_back(sender);
        state.count_waiting();
        drop(state);
        self.give_turns();
        Ok(Turn(receiver))
    }

    /// How many jobs wait and how many run.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let mut state = self.state();
        state.forget_those_who_left();
        (state.waiting, state.running)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Gives places to those whose turn it is, as long as there are places.
    fn give_turns(self: &Arc<Self>) {
        loop {
            let mut state = self.state();
            let Some((tenant, waiter)) = state.take_next() else {
                return;
            };
            let queue = self.clone();
            drop(state);
            // One that left meanwhile drops the place, which gives it back.
            drop(waiter.send(Place { queue, tenant }));
        }
    }
}

impl State {
    /// The next whose turn it is, who is counted as running from here on.
    fn take_next(&mut self) -> Option<(usize, oneshot::Sender<Place>)> {
        if self.running >= self.most_running {
            return None;
        }
        let count = self.tenants.len();
        let round = (0..count).map(|step| (self.next + step) % count);
        let mut ready = round.filter(|&index| {
            let tenant = &self.tenants[index];
            tenant.may_run() && !tenant.waiting.is_empty()
        });
        let index = ready.next()?;
        let waiter = self.tenants[index].waiting.pop_front()?;
        self.next = (index + 1) % count;
        self.running += 1;
        self.tenants[index].running += 1;
        self.count_waiting();
        Some((index, waiter))
    }

    fn forget_those_who_left(&mut self) {
        for tenant in &mut self.tenants {
            tenant.waiting.retain(|waiter| !waiter.is_closed());
        }
        self.count_waiting();
    }

    fn count_waiting(&mut self) {
        let bounded = self
            .tenants
            .iter()
            .filter(|tenant| tenant.share.waiting.is_some());
        self.waiting = bounded.map(|tenant| tenant.waiting.len()).sum();
    }
}

impl Tenant {
    fn may_run(&self) -> bool {
        self.running < self.share.running
    }
}

impl Turn {
    /// Waits until it has come.
    pub(crate) async fn wait(self) -> Place {
        let place = self.0.await;
        place.expect("the queue drops a waiting job only after it has left")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.running -= 1;
        state.tenants[self.tenant].running -= 1;
        state.rate.count(Instant::now());
        drop(state);
        self.queue.give_turns();
    }
}

/// How fast jobs end, by the last few.
#[derive(Default)]
struct Rate {
    ends: VecDeque<Instant>,
}

impl Rate {
    const REMEMBERED: usize = 64;
    /// Nobody is told to come back later than this, or sooner than a second: headers have whole seconds.
    const LONGEST: Duration = Duration::from_secs(60);

    fn count(&mut self, now: Instant) {
        self.ends.push_back(now);
        if self.ends.len() > Self::REMEMBERED {
            self.ends.pop_front();
        }
    }

    /// How long so many jobs take, as it seems.
    fn time_for(&self, jobs: usize) -> Duration {
        let (Some(first), Some(last)) = (self.ends.front(), self.ends.back()) else {
            return Duration::from_secs(1);
        };
        let each = last.duration_since(*first) / u32::try_from(self.ends.len()).unwrap_or(1);
        let jobs = u32::try_from(jobs).unwrap_or(u32::MAX);
        each.checked_mul(jobs).map_or(Self::LONGEST, |time| {
            time.clamp(Duration::from_secs(1), Self::LONGEST)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: Share = Share {
        running: 100,
        waiting: Some(100),
    };

    fn has_come(turn: &mut Turn) -> Option<Place> {
        turn.0.try_recv().ok()
    }

    #[test]
    fn the_first_to_come_is_the_first_to_run() {
        let queue = Queue::new(1, 10, &[WIDE]);
        let mut turns: Vec<_> = (0..3).map(|_| queue.enter(0).expect("room")).collect();
        let first = has_come(&mut turns[0]).expect("a place is free");
        assert!(turns[1..].iter_mut().all(|turn| has_come(turn).is_none()));
        drop(first);
        assert!(has_come(&mut turns[1]).is_some());
        // Which was dropped at once.
        assert!(has_come(&mut turns[2]).is_some());
    }

    #[test]
    fn turns_go_round_between_tenants() {
        let queue = Queue::new(1, 100, &[WIDE, WIDE]);
        let mut first = queue.enter(0).expect("room");
        let mut place = has_come(&mut first).expect("a place is free");
        let mut turns: Vec<_> = [0, 0, 0, 1, 1]
            .map(|tenant| (tenant, queue.enter(tenant).expect("room")))
            .into();
        let mut order = Vec::new();
        while !turns.is_empty() {
            drop(place);
            let ready = turns
                .iter_mut()
                .enumerate()
                .find_map(|(index, (tenant, turn))| Some((index, *tenant, has_come(turn)?)));
            let (index, tenant, next) = ready.expect("somebody's turn");
            turns.remove(index);
            order.push(tenant);
            place = next;
        }
        assert_eq!(order, [1, 0, 1, 0, 0]);
    }

    #[test]
    fn a_full_queue_refuses_and_says_when_to_come_back() {
        let narrow = Share {
            running: 1,
            waiting: Some(1),
        };
        let queue = Queue::new(2, 3, &[narrow, WIDE]);
        let mut running = queue.enter(0).expect("room");
        let _place = has_come(&mut running).expect("a place is free");
        let waits = queue.enter(0).expect("room for one that waits");
        assert_eq!(queue.enter(0).err().expect("full").waiting, 1);
        // Another tenant's jobs go on.
        let mut other = queue.enter(1).expect("room");
        assert!(has_come(&mut other).is_some());
        // One that leaves makes room.
        drop(waits);
        assert!(queue.enter(0).is_ok());
        assert_eq!(queue.counts(), (0, 1));
    }

    #[test]
    fn nobody_waits_where_nobody_may_wait_but_all_run_that_can() {
        let none = Share {
            running: 2,
            waiting: Some(0),
        };
        let queue = Queue::new(2, 0, &[none]);
        let mut turns: Vec<_> = (0..2).map(|_| queue.enter(0).expect("a place")).collect();
        let places: Vec<_> = turns
            .iter_mut()
            .map(|turn| has_come(turn).expect("a place"))
            .collect();
        assert!(queue.enter(0).is_err());
        drop(places);
        assert!(queue.enter(0).is_ok());
    }

    #[test]
    fn the_time_to_come_back_follows_the_rate() {
        let mut rate = Rate::default();
        assert_eq!(rate.time_for(5), Duration::from_secs(1));
        let start = Instant::now();
        for second in 0..=64 {
            rate.count(start + Duration::from_secs(second));
        }
        assert_eq!(rate.time_for(10).as_secs(), 9);
        assert_eq!(rate.time_for(1 << 40), Rate::LONGEST);
    }
}
