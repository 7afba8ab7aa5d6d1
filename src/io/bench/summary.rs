//! The figures of a run, as `--json` prints them.
//!
//! Runs on: the I/O thread.

use std::time::Duration;

use serde::Serialize;

use super::samples::{Kind, Samples};
use crate::io::pool::Lap;

#[derive(Serialize)]
pub(crate) struct Figures {
    /// The version of the linked interpreter.
    pub python: &'static str,
    pub preload: Vec<String>,
    /// How many of each kind.
    pub samples: usize,
    /// Of all samples, those during which something else ran on this machine.
    pub samples_on_busy_machine: usize,
    pub latency_ms: Latencies,
    pub ratios: Ratios,
    pub throughput: Vec<Throughput>,
    pub memory_bytes: Memory,
}

#[derive(Serialize)]
pub(crate) struct Latencies {
    /// Null if the configuration keeps no spares.
    pub ready_spare: Option<Latency>,
    pub cold: Latency,
    pub floor: Latency,
    pub bare_clone: Latency,
}

/// From a child's request on.
#[derive(Serialize)]
pub(crate) struct Latency {
    /// Null where none is written.
    pub first_byte: Option<Percentiles>,
    pub reaped: Percentiles,
}

/// In milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    pub count: usize,
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

/// Of medians.
#[derive(Serialize)]
pub(crate) struct Ratios {
    pub cold_to_floor: Ratio,
    /// Null if there are no spares.
    pub cold_to_ready_spare: Option<Ratio>,
}

#[derive(Serialize)]
pub(crate) struct Ratio {
    pub first_byte: f64,
    pub reaped: f64,
}

#[derive(Serialize)]
pub(crate) struct Throughput {
    pub concurrency: usize,
    pub jobs: usize,
    pub jobs_per_second: f64,
}

/// Of a child that waits for a job.
#[derive(Serialize)]
pub(crate) struct Memory {
    /// In no other process.
    pub private: u64,
    /// In the host, other children, or whoever has the same files in memory.
    pub shared: u64,
    /// Its proportional set size: what is shared, divided by the number of those who share it.
    pub pss: u64,
    /// What the kernel needs to map it.
    pub page_tables: u64,
}

impl Latencies {
    pub(crate) fn of(samples: &Samples) -> Self {
        let of = |kind| Latency::of(samples.of(kind));
        let always = |kind| of(kind).expect("at least one sample");
        Self {
            ready_spare: of(Kind::ReadySpare),
            cold: always(Kind::Cold),
            floor: always(Kind::Floor),
            bare_clone: always(Kind::BareClone),
        }
    }

    pub(crate) fn by_kind(&self) -> impl Iterator<Item = (Kind, &Latency)> {
        let all = [
            self.ready_spare.as_ref(),
            Some(&self.cold),
            Some(&self.floor),
            Some(&self.bare_clone),
        ];
        let named = Kind::ALL.into_iter().zip(all);
        named.filter_map(|(kind, latency)| Some((kind, latency?)))
    }
}

impl Latency {
    fn of(laps: &[Lap]) -> Option<Self> {
        Some(Self {
            first_byte: Percentiles::of(laps.iter().filter_map(|lap| lap.first_byte)),
            reaped: Percentiles::of(laps.iter().map(|lap| lap.reaped))?,
        })
    }
}

impl Percentiles {
    /// `None` if there are no times.
    fn of(times: impl Iterator<Item = Duration>) -> Option<Self> {
        let mut times: Vec<f64> = times.map(milliseconds).collect();
        times.sort_by(f64::total_cmp);
        // The smallest that at least this share of all does not exceed.
        let rank = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1];
        (!times.is_empty()).then(|| Self {
            count: times.len(),
            min: times[0],
            p50: rank(50),
            p90: rank(90),
            p99: rank(99),
        })
    }
}

impl Ratios {
    pub(crate) fn of(latencies: &Latencies) -> Self {
        let cold_to = |other: &Latency| Ratio {
            first_byte: latencies.cold.first_byte_median() / other.first_byte_median(),
            reaped: latencies.cold.reaped.p50 / other.reaped.p50,
        };
        Self {
            cold_to_floor: cold_to(&latencies.floor),
            cold_to_ready_spare: latencies.ready_spare.as_ref().map(cold_to),
        }
    }
}

impl Latency {
    fn first_byte_median(&self) -> f64 {
        self.first_byte.map_or(f64::NAN, |times| times.p50)
    }
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times = (1..=200).rev().map(Duration::from_millis);
        let expected = Percentiles {
            count: 200,
            min: 1.0,
            p50: 100.0,
            p90: 180.0,
            p99: 198.0,
        };
        assert_eq!(Percentiles::of(times), Some(expected));
        let one = Percentiles::of([Duration::from_millis(7)].into_iter()).expect("there is one");
        assert_eq!((one.min, one.p50, one.p99), (7.0, 7.0, 7.0));
        assert_eq!(Percentiles::of([].into_iter()), None);
    }
}
