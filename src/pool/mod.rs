//! The I/O thread's world: jobs in, reports out. Runs on one thread with a current-thread
//! runtime, on memory that clones do not receive.

pub mod capture;
pub mod child;
pub mod clone_service;
mod demand;
#[cfg(test)]
mod fuzz;
pub mod hidden_names;
pub mod interrupt;
mod json_line;
mod measured;
mod nursery;
pub mod outcome;
mod overdue;
pub mod own;
pub mod payload;
pub mod run_job;
mod spares;
mod spoken;
mod streams;

pub use measured::Lap;
pub use outcome::{JobReport, Outcome};
pub use payload::Job;
pub use run_job::{Followed, Pool};
