//! Jobs in, reports out: children and the spares among them, what they write, and how they ended.
//!
//! Runs on: the I/O thread.

mod attendance;
mod bench_probes;
pub(crate) mod capture;
pub(crate) mod child;
mod child_factory;
pub(crate) mod clone_service;
pub(crate) mod files;
#[cfg(test)]
mod fuzz;
pub(crate) mod hidden_path_watch;
mod json_line;
pub(crate) mod live_output;
pub(crate) mod outcome;
mod overdue;
pub(crate) mod overrides;
pub(crate) mod payload;
pub(crate) mod queue;
pub(crate) mod run_job;
mod spare_demand;
mod spares;
mod streams;
mod untrusted_records;

pub(crate) use bench_probes::Lap;
pub(crate) use outcome::{JobReport, Outcome};
pub(crate) use run_job::{Followed, Pool};
pub(crate) use untrusted_records::plain_text;
