//! How many spares are wanted, and for which sandboxes.
//!
//! Spares follow the need: one more of a kind each time a job found none of it ready, one fewer after
//! a while without that. A kind is what jobs have otherwise than their profile says; it gets spares from
//! its second job on, since many a chroot is one job's alone.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::own::Own;

/// How long none must have been missed before one fewer is wanted.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A kind that no job has asked for so long may lose spares to one that is asked for.
const RECENT: Duration = Duration::from_secs(1);
/// How many kinds are remembered.
const MOST_KINDS: usize = 16;

pub struct Demand {
    /// The most spares there may be of all kinds.
    most: usize,
    /// The first is the profile's own.
    kinds: Vec<Kind>,
}

struct Kind {
    own: Rc<Own>,
    wanted: usize,
    last_asked: Instant,
    last_missed: Instant,
}

impl Kind {
    fn new(own: Own, wanted: usize, now: Instant) -> Self {
        Self {
            own: Rc::new(own),
            wanted,
            last_asked: now,
            last_missed: now,
        }
    }
}

impl Demand {
    /// One of the profile's own is always wanted, unless others are.
    pub fn new(most: usize, now: Instant) -> Self {
        Self {
            most,
            kinds: vec![Kind::new(Own::default(), 1, now)],
        }
    }

    pub fn of(&self, own: &Own) -> usize {
        let kind = self.kinds.iter().find(|kind| *kind.own == *own);
        kind.map_or(0, |kind| kind.wanted)
    }

    pub fn in_all(&self) -> usize {
        self.kinds.iter().map(|kind| kind.wanted).sum()
    }

    /// The kind of which fewer are there than are wanted; of several the one last asked for.
    pub fn unmet(&self, there: impl Fn(&Own) -> usize) -> Option<Rc<Own>> {
        let kinds = self.kinds.iter();
        let unmet = kinds.filter(|kind| there(&kind.own) < kind.wanted);
        let last = unmet.max_by_key(|kind| kind.last_asked);
        last.map(|kind| kind.own.clone())
    }

    /// A job has come, and found a spare ready or not.
    pub fn asked(&mut self, own: &Own, was_ready: bool, now: Instant) {
        let Some(place) = self.kinds.iter().position(|kind| *kind.own == *own) else {
            return self.remember(own, now);
        };
        self.kinds[place].last_asked = now;
        if !was_ready {
            self.kinds[place].last_missed = now;
            self.want_one_more(place, now);
        }
    }

    fn remember(&mut self, own: &Own, now: Instant) {
        if self.kinds.len() > MOST_KINDS {
            let others = self.kinds.iter().enumerate().skip(1);
            let oldest = others.min_by_key(|(_, kind)| kind.last_asked);
            let (place, _) = oldest.expect("there are more than one");
            self.kinds.remove(place);
        }
        self.kinds.push(Kind::new(own.clone(), 0, now));
    }

    fn want_one_more(&mut self, place: usize, now: Instant) {
        if self.in_all() >= self.most {
            let others = self.kinds.iter_mut().enumerate();
            let idle = others.filter(|(other, kind)| {
                *other != place && kind.wanted > 0 && now - kind.last_asked > RECENT
            });
            let Some((_, idle)) = idle.min_by_key(|(_, kind)| kind.last_asked) else {
                return;
            };
            idle.wanted -= 1;
        }
        self.kinds[place].wanted += 1;
    }

    /// None can be made, and none is wanted until the next job asks.
    pub fn give_up(&mut self, own: &Own) {
        for kind in self.kinds.iter_mut().filter(|kind| *kind.own == *own) {
            kind.wanted = 0;
        }
    }

    /// Wants fewer of what nobody has missed for a while, and forgets kinds that nobody asks for.
    pub fn pass(&mut self, now: Instant) {
        for kind in &mut self.kinds {
            if now - kind.last_missed > PATIENCE {
                kind.last_missed = now;
                let is_asked_for = now - kind.last_asked <= PATIENCE;
                let least = kind.wanted.min(usize::from(is_asked_for));
                kind.wanted = kind.wanted.saturating_sub(1).max(least);
            }
        }
        let mut first = true;
        self.kinds.retain(|kind| {
            let is_profiles = std::mem::take(&mut first);
            is_profiles || kind.wanted > 0 || now - kind.last_asked <= PATIENCE
        });
        if self.in_all() == 0 {
            self.kinds[0].wanted = 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(pids: u64) -> Own {
        Own {
            limits: Some(crate::config::Limits {
                pids,
                ..Default::default()
            }),
            ..Own::default()
        }
    }

    fn wanted<const N: usize>(demand: &Demand, kinds: [&Own; N]) -> [usize; N] {
        kinds.map(|own| demand.of(own))
    }

    #[test]
    fn what_is_missed_is_wanted_up_to_the_most() {
        let start = Instant::now();
        let mut demand = Demand::new(3, start);
        let own = Own::default();
        assert_eq!(demand.of(&own), 1);
        demand.asked(&own, true, start);
        assert_eq!(demand.of(&own), 1);
        for expected in [2, 3, 3] {
            demand.asked(&own, false, start);
            assert_eq!(demand.of(&own), expected);
        }
        assert_eq!(demand.unmet(|_| 2).as_deref(), Some(&own));
        assert_eq!(demand.unmet(|_| 3), None);
        let mut now = start;
        for expected in [2, 1, 1] {
            now += PATIENCE * 2;
            demand.pass(now);
            assert_eq!(demand.of(&own), expected);
        }
    }

    #[test]
    fn a_kind_gets_spares_from_its_second_job_on() {
        let start = Instant::now();
        let mut demand = Demand::new(2, start);
        let (own, other) = (limited(7), limited(8));
        demand.asked(&own, false, start);
        assert_eq!(wanted(&demand, [&own, &other]), [0, 0]);
        demand.asked(&own, false, start);
        assert_eq!(wanted(&demand, [&own, &other]), [1, 0]);
        assert_eq!(
            demand
                .unmet(|own| usize::from(own.limits.is_none()))
                .as_deref(),
            Some(&own)
        );
    }

    #[test]
    fn there_are_never_more_and_those_not_asked_for_give_way() {
        let start = Instant::now();
        let mut demand = Demand::new(2, start);
        let (own, a, b) = (Own::default(), limited(7), limited(8));
        for kind in [&a, &a, &a, &b, &b, &b] {
            demand.asked(kind, false, start);
        }
        assert_eq!(
            wanted(&demand, [&own, &a, &b]),
            [1, 1, 0],
            "all were asked for just now"
        );
        let later = start + RECENT * 2;
        demand.asked(&a, true, later);
        demand.asked(&b, false, later);
        assert_eq!(wanted(&demand, [&own, &a, &b]), [0, 1, 1]);
        demand.asked(&b, false, later);
        assert_eq!(wanted(&demand, [&own, &a, &b]), [0, 1, 1]);
        demand.give_up(&a);
        assert_eq!(wanted(&demand, [&own, &a, &b]), [0, 0, 1]);
    }

    #[test]
    fn what_nobody_asks_for_is_forgotten() {
        let mut now = Instant::now();
        let mut demand = Demand::new(2, now);
        let (own, other) = (Own::default(), limited(7));
        demand.asked(&other, false, now);
        demand.asked(&other, false, now);
        now += PATIENCE * 2;
        demand.asked(&other, true, now);
        demand.pass(now);
        assert_eq!(
            wanted(&demand, [&own, &other]),
            [0, 1],
            "it is still asked for"
        );
        now += PATIENCE * 2;
        demand.pass(now);
        assert_eq!(wanted(&demand, [&own, &other]), [1, 0]);
        assert_eq!(demand.kinds.len(), 1);
    }

    #[test]
    fn kinds_that_come_once_do_not_pile_up() {
        let start = Instant::now();
        let mut demand = Demand::new(2, start);
        for pids in 1..100 {
            demand.asked(&limited(pids), false, start + Duration::from_millis(pids));
        }
        assert_eq!(demand.kinds.len(), MOST_KINDS + 1);
        assert_eq!((demand.of(&Own::default()), demand.in_all()), (1, 1));
    }
}
