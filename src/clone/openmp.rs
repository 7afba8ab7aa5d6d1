//! Ends the threads of OpenMP's runtimes before clones are made.
//!
//! Runs on: the main thread.
//!
//! A clone has none of them, but GNU's runtime takes them for there and waits for ever (scikit-learn, XGBoost, LightGBM,
//! PyTorch, faiss). Each program region starts them anew where they were ended in order: OpenMP 5.0,
//! `omp_pause_resource_all`. A wheel brings a runtime of its own, so there may be several.

use std::ffi::c_int;

use crate::sys::libraries;

/// `omp_pause_hard`: free all that the runtime holds, but for what the program has declared to be its own.
const PAUSE_HARD: c_int = 2;

/// Every OpenMP runtime that is loaded.
#[derive(Default)]
pub(crate) struct Runtimes(Vec<usize>);

impl Runtimes {
    pub(crate) fn find() -> Self {
        Self(libraries::exported(c"omp_pause_resource_all"))
    }

    /// Ends the threads that serve the calling thread.
    pub(crate) fn end_threads(&self) {
        for &pause in &self.0 {
            // SAFETY: the OpenMP API declares it so in C, with an enumeration as its argument, and libraries that Python has
            // loaded stay.
            let status = unsafe { libraries::call_with_int(pause, PAUSE_HARD) };
            if status != 0 {
                // Such a call is in vain within a parallel region, where no code of this thread's is now.
                log::warn!(
                    "omp_pause_resource_all: status {status}; jobs that use OpenMP may hang"
                );
            }
        }
    }
}
