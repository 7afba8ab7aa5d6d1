//! What the service has done, for Prometheus.
//!
//! Runs on: the I/O thread.

use std::time::Duration;

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

use crate::io::pool::{JobReport, Outcome};

/// Seconds, from a ready spare's first byte to long batches.
const BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0,
];

/// The metrics. Each series is there from the start, and none is named by what a request says, so their number is
/// fixed.
pub(super) struct Metrics {
    registry: Registry,
    jobs: IntCounterVec,
    refused: IntCounterVec,
    waiting: IntGauge,
    running: IntGauge,
    queued: Histogram,
    run: Histogram,
    connections: IntGauge,
    memory: IntGauge,
}

/// Why a request for a job was refused.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refused {
    QueueFull,
    Draining,
    NoRoom,
    Invalid,
    Unauthorized,
}

impl Refused {
    const ALL: [Self; 5] = [
        Self::QueueFull,
        Self::Draining,
        Self::NoRoom,
        Self::Invalid,
        Self::Unauthorized,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Draining => "not_ready",
            Self::NoRoom => "no_room",
            Self::Invalid => "invalid",
            Self::Unauthorized => "unauthorized",
        }
    }
}

impl Metrics {
    pub(super) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let register = |metric: Box<dyn prometheus::core::Collector>| registry.register(metric);
        let counters = |name: &str, help: &str, label: &str| -> prometheus::Result<_> {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let gauge = |name: &str, help: &str| -> prometheus::Result<_> {
            let gauge = IntGauge::new(name, help)?;
            register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let histogram = |name: &str, help: &str| -> prometheus::Result<_> {
            let options = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
            let histogram = Histogram::with_opts(options)?;
            register(Box::new(histogram.clone()))?;
            Ok(histogram)
        };
        let jobs = counters(
            "pyspawner_jobs_total",
            "Jobs that have ended, by outcome.",
            "outcome",
        )?;
        for outcome in Outcome::ALL {
            jobs.with_label_values(&[outcome.name()]);
        }
        let refused = counters(
            "pyspawner_requests_refused_total",
            "Requests for jobs that were refused, by reason.",
            "reason",
        )?;
        for reason in Refused::ALL {
            refused.with_label_values(&[reason.name()]);
        }
        Ok(Self {
            jobs,
            refused,
            waiting: gauge("pyspawner_jobs_waiting", "Jobs that wait for their turn.")?,
            running: gauge("pyspawner_jobs_running", "Jobs that run.")?,
            queued: histogram(
                "pyspawner_queue_seconds",
                "Time from a request to its job's turn.",
            )?,
            run: histogram(
                "pyspawner_run_seconds",
                "Time from a job's turn to its end.",
            )?,
            connections: gauge("pyspawner_http_connections", "Open HTTP connections.")?,
            memory: gauge(
                "pyspawner_resident_memory_bytes",
                "Resident memory of the host, which the children share.",
            )?,
            registry,
        })
    }

    pub(super) fn count_job(&self, report: &JobReport, queued: Duration) {
        self.jobs.with_label_values(&[report.outcome.name()]).inc();
        self.queued.observe(queued.as_secs_f64());
        self.run.observe(report.wall.as_secs_f64());
    }

    pub(super) fn count_refusal(&self, reason: Refused) {
        self.refused.with_label_values(&[reason.name()]).inc();
    }

    pub(super) fn connection(&self) -> &IntGauge {
        &self.connections
    }

    /// In Prometheus' text format, with its media type.
    ///
    /// # Errors
    /// Of the encoder.
    pub(super) fn encode(
        &self,
        (waiting, running): (usize, usize),
        resident: u64,
    ) -> prometheus::Result<(Vec<u8>, String)> {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.waiting.set(number(waiting));
        self.running.set(number(running));
        self.memory.set(i64::try_from(resident).unwrap_or(i64::MAX));
        let encoder = TextEncoder::new();
        let mut text = Vec::new();
        encoder.encode(&self.registry.gather(), &mut text)?;
        Ok((text, encoder.format_type().to_owned()))
    }
}
