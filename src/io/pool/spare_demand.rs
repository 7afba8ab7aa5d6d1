//! How many spares are wanted, and for which sandboxes.
//!
//! Runs on: the I/O thread.
//!
//! Spares follow the need: one more of a kind each time a job found none of it ready, one fewer after
//! a while without that. A kind is what jobs have otherwise than their profile says; it gets spares from
//! its second job on, since many a chroot is one job's alone. When there are as many as there may be, a
//! kind gets one of another's only if it is clearly more in need of it.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::overrides::Overrides;

/// How long none must have been missed before one fewer is wanted.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// After so long a job counts half as much.
const HALF_LIFE: Duration = Duration::from_secs(10);
/// So many times as many jobs a spare must have elsewhere to be given up here. If that were less, kinds
/// of which there are as many jobs would take each other's.
const CLEARLY: f64 = 2.0;
/// How many kinds are remembered.
const MOST_KINDS: usize = 16;

pub(super) struct Demand {
    /// The most spares there may be of all kinds.
    most: usize,
    /// The first is the profile's own.
    kinds: Vec<Kind>,
}

struct Kind {
    overrides: Rc<Overrides>,
    wanted: usize,
    /// How many jobs there were of late, at the time of the last one.
    jobs: f64,
    last_asked: Instant,
    last_missed: Instant,
    /// None is made until then.
    paused_until: Instant,
}

impl Kind {
    fn new(overrides: Overrides, wanted: usize, now: Instant) -> Self {
        Self {
            overrides: Rc::new(overrides),
            wanted,
            jobs: 0.0,
            last_asked: now,
            last_missed: now,
            paused_until: now,
        }
    }

    fn jobs_of_late(&self, now: Instant) -> f64 {
        let half_lives = (now - self.last_asked).as_secs_f64() / HALF_LIFE.as_secs_f64();
        self.jobs * (-half_lives).exp2()
    }
}

impl Demand {
    /// One of the profile's own is always wanted, unless others are.
    pub(super) fn new(most: usize, now: Instant) -> Self {
        Self {
            most,
            kinds: vec![Kind::new(Overrides::default(), 1, now)],
        }
    }

    pub(super) fn of(&self, overrides: &Overrides) -> usize {
        self.place(overrides)
            .map_or(0, |place| self.kinds[place].wanted)
    }

    pub(super) fn in_all(&self) -> usize {
        self.kinds.iter().map(|kind| kind.wanted).sum()
    }

    /// The kind of which fewer are there than are wanted, and when one may be made; of several the first
    /// of which one may.
    pub(super) fn unmet(
        &self,
        there: impl Fn(&Overrides) -> usize,
    ) -> Option<(Rc<Overrides>, Instant)> {
        let kinds = self.kinds.iter();
        let unmet = kinds.filter(|kind| there(&kind.overrides) < kind.wanted);
        let first = unmet.min_by_key(|kind| kind.paused_until);
        first.map(|kind| (kind.overrides.clone(), kind.paused_until))
    }

    /// A job has come, and found a spare ready or not.
    pub(super) fn asked(&mut self, overrides: &Overrides, was_ready: bool, now: Instant) {
        let known = self.place(overrides);
        let Some(place) = known.or_else(|| self.remember(overrides, now)) else {
            return;
        };
        let kind = &mut self.kinds[place];
        kind.jobs = kind.jobs_of_late(now) + 1.0;
        kind.last_asked = now;
        if was_ready || known.is_none() {
            return;
        }
        kind.last_missed = now;
        if kind.paused_until <= now {
            self.want_one_more(place, now);
        }
    }

    fn place(&self, overrides: &Overrides) -> Option<usize> {
        self.kinds
            .iter()
            .position(|kind| *kind.overrides == *overrides)
    }

    /// `None` if all that are known have spares.
    fn remember(&mut self, overrides: &Overrides, now: Instant) -> Option<usize> {
        if self.kinds.len() > MOST_KINDS {
            let others = self.kinds.iter().enumerate().skip(1);
            let without = others.filter(|(_, kind)| kind.wanted == 0);
            let (oldest, _) = without.min_by_key(|(_, kind)| kind.last_asked)?;
            self.kinds.remove(oldest);
        }
        self.kinds.push(Kind::new(overrides.clone(), 0, now));
        Some(self.kinds.len() - 1)
    }

    fn want_one_more(&mut self, place: usize, now: Instant) {
        if self.in_all() >= self.most {
            let per_spare = |kind: &Kind, spares| kind.jobs_of_late(now) / spares as f64;
            let gain = per_spare(&self.kinds[place], self.kinds[place].wanted + 1);
            let others = self.kinds.iter_mut().enumerate();
            let others = others.filter(|(other, kind)| *other != place && kind.wanted > 0);
            let losses = others.map(|(_, kind)| (per_spare(kind, kind.wanted), kind));
            let least = losses.min_by(|(one, _), (other, _)| one.total_cmp(other));
            let Some((loss, other)) = least else { return };
            if gain <= CLEARLY * loss {
                return;
            }
            other.wanted -= 1;
        }
        self.kinds[place].wanted += 1;
    }

    /// Has none made for a while, besides those that are there.
    pub(super) fn pause(&mut self, overrides: &Overrides, until: Instant) {
        if let Some(place) = self.place(overrides) {
            self.kinds[place].paused_until = until;
        }
    }

    /// One could not be made. Of the profile's own kind another is tried in a second, since every job
    /// fails as it did; for others no more are wanted than are there, and none for a while.
    pub(super) fn failed(&mut self, overrides: &Overrides, there: usize, now: Instant) {
        match self.place(overrides) {
            Some(0) => self.pause(overrides, now + Duration::from_secs(1)),
            Some(place) => {
                self.kinds[place].wanted = there.min(self.kinds[place].wanted);
                self.pause(overrides, now + PATIENCE);
                self.want_at_least_one();
            }
            None => {}
        }
    }

    /// Wants fewer of what nobody has missed for a while, and forgets kinds that nobody asks for.
    pub(super) fn pass(&mut self, now: Instant) {
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
        self.want_at_least_one();
    }

    fn want_at_least_one(&mut self) {
        if self.in_all() == 0 {
            self.kinds[0].wanted = 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(pids: u64) -> Overrides {
        Overrides {
            limits: Some(crate::config::Limits {
                pids,
                ..Default::default()
            }),
            ..Overrides::default()
        }
    }

    fn wanted<const N: usize>(demand: &Demand, kinds: [&Overrides; N]) -> [usize; N] {
        kinds.map(|overrides| demand.of(overrides))
    }

    /// Jobs that come in turn, each finding a spare of its kind if one is wanted: how many did.
    fn hits(
        demand: &mut Demand,
        kinds: &[&Overrides],
        apart: Duration,
        now: &mut Instant,
    ) -> Vec<usize> {
        let mut hits = vec![0; kinds.len()];
        for _ in 0..20 {
            for (hit, overrides) in hits.iter_mut().zip(kinds) {
                *now += apart;
                let was_ready = demand.of(overrides) > 0;
                *hit += usize::from(was_ready);
                demand.asked(overrides, was_ready, *now);
                demand.pass(*now);
            }
        }
        hits
    }

    #[test]
    fn what_is_missed_is_wanted_up_to_the_most() {
        let start = Instant::now();
        let mut demand = Demand::new(3, start);
        let overrides = Overrides::default();
        assert_eq!(demand.of(&overrides), 1);
        demand.asked(&overrides, true, start);
        assert_eq!(demand.of(&overrides), 1);
        for expected in [2, 3, 3] {
            demand.asked(&overrides, false, start);
            assert_eq!(demand.of(&overrides), expected);
        }
        assert_eq!(*demand.unmet(|_| 2).expect("one is missing").0, overrides);
        assert_eq!(demand.unmet(|_| 3), None);
        let mut now = start;
        for expected in [2, 1, 1] {
            now += PATIENCE * 2;
            demand.pass(now);
            assert_eq!(demand.of(&overrides), expected);
        }
    }

    #[test]
    fn a_kind_gets_spares_from_its_second_job_on() {
        let start = Instant::now();
        let mut demand = Demand::new(2, start);
        let (overrides, other) = (limited(7), limited(8));
        demand.asked(&overrides, false, start);
        assert_eq!(wanted(&demand, [&overrides, &other]), [0, 0]);
        demand.asked(&overrides, false, start);
        assert_eq!(wanted(&demand, [&overrides, &other]), [1, 0]);
        let unmet = demand.unmet(|overrides| usize::from(overrides.limits.is_none()));
        assert_eq!(*unmet.expect("one is missing").0, overrides);
    }

    #[test]
    fn kinds_that_are_asked_for_alike_leave_each_other_theirs() {
        let mut now = Instant::now();
        let (overrides, a, b) = (Overrides::default(), limited(7), limited(8));
        for (most, kinds) in [(1, &[&overrides, &a][..]), (2, &[&overrides, &a, &b])] {
            let mut demand = Demand::new(most, now);
            for apart in [10, 100, 1_000, 1_500] {
                let apart = Duration::from_millis(apart);
                hits(&mut demand, kinds, apart, &mut now);
                let hits = hits(&mut demand, kinds, apart, &mut now);
                let served = hits.iter().filter(|hits| **hits == 20).count();
                assert_eq!(served, most, "{hits:?} of 20 jobs each, {apart:?} apart");
            }
        }
    }

    #[test]
    fn what_is_asked_for_more_gets_more() {
        let mut now = Instant::now();
        let (overrides, a, b) = (Overrides::default(), limited(7), limited(8));
        let mut demand = Demand::new(4, now);
        (0..9).for_each(|_| demand.asked(&a, false, now));
        assert_eq!(
            wanted(&demand, [&overrides, &a]),
            [0, 4],
            "it alone is asked for"
        );
        for _ in 0..20 {
            now += Duration::from_millis(10);
            demand.asked(&a, false, now);
            demand.asked(&b, false, now);
        }
        assert_eq!(demand.in_all(), 4);
        assert!(demand.of(&a) <= 3 && demand.of(&b) >= 1);
        // A kind of which there are no jobs any more gives way.
        now += HALF_LIFE * 10;
        (0..5).for_each(|_| demand.asked(&overrides, false, now));
        assert_eq!(wanted(&demand, [&overrides, &a, &b]), [4, 0, 0]);
    }

    #[test]
    fn what_cannot_be_made_is_not_wanted_for_a_while() {
        let now = Instant::now();
        let mut demand = Demand::new(3, now);
        let (overrides, other) = (Overrides::default(), limited(7));
        (0..4).for_each(|_| demand.asked(&other, false, now));
        assert_eq!(wanted(&demand, [&overrides, &other]), [0, 3]);
        demand.failed(&other, 1, now);
        assert_eq!(
            wanted(&demand, [&overrides, &other]),
            [0, 1],
            "one is there"
        );
        let mut none = Demand::new(1, now);
        (0..4).for_each(|_| none.asked(&other, false, now));
        none.failed(&other, 0, now);
        assert_eq!(wanted(&none, [&overrides, &other]), [1, 0]);
        demand.asked(&other, false, now);
        assert_eq!(wanted(&demand, [&overrides, &other]), [0, 1]);
        let later = now + PATIENCE;
        demand.asked(&other, false, later);
        assert_eq!(wanted(&demand, [&overrides, &other]), [0, 2]);
        // The profile's own is only tried again.
        let mut demand = Demand::new(3, now);
        demand.failed(&overrides, 0, now);
        let (unmet, when) = demand.unmet(|_| 0).expect("one is missing");
        assert!(*unmet == overrides && when > now);
    }

    #[test]
    fn what_nobody_asks_for_is_forgotten() {
        let mut now = Instant::now();
        let mut demand = Demand::new(2, now);
        let (overrides, other) = (Overrides::default(), limited(7));
        demand.asked(&other, false, now);
        demand.asked(&other, false, now);
        now += PATIENCE * 2;
        demand.asked(&other, true, now);
        demand.pass(now);
        assert_eq!(
            wanted(&demand, [&overrides, &other]),
            [0, 1],
            "it is still asked for"
        );
        now += PATIENCE * 2;
        demand.pass(now);
        assert_eq!(wanted(&demand, [&overrides, &other]), [1, 0]);
        assert_eq!(demand.kinds.len(), 1);
    }

    #[test]
    fn kinds_that_come_once_displace_none_that_has_spares() {
        let start = Instant::now();
        let mut demand = Demand::new(2, start);
        let used = limited(1000);
        demand.asked(&used, false, start);
        demand.asked(&used, false, start);
        for pids in 1..100 {
            demand.asked(&limited(pids), false, start + Duration::from_millis(pids));
        }
        assert_eq!(demand.kinds.len(), MOST_KINDS + 1);
        assert_eq!((demand.of(&Overrides::default()), demand.of(&used)), (1, 1));
    }
}
