//! The I/O thread's world: jobs in, reports out. Runs on one thread with a current-thread
//! runtime, on memory that clones do not receive.

mod attendance;
pub(crate) mod capture;
pub(crate) mod child;
pub(crate) mod clone_service;
mod demand;
#[cfg(test)]
mod fuzz;
pub(crate) mod hidden_names;
pub(crate) mod interrupt;
mod json_line;
mod measured;
mod nursery;
pub(crate) mod outcome;
mod overdue;
pub(crate) mod own;
pub(crate) mod payload;
pub(crate) mod run_job;
mod spares;
mod spoken;
mod streams;

pub(crate) use measured::Lap;
pub(crate) use outcome::{JobReport, Outcome};
pub(crate) use run_job::{Followed, Pool};
pub(crate) use spoken::plain_text;
