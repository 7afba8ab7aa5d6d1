//! Random states that are renewed in a child without a step of Python code.
//!
//! Runs on: the main thread, a child.

use nix::errno::Errno;
use pyo3::prelude::*;

use crate::sys::sqlite::{self, Sqlite};

/// A Mersenne twister's words, and how many of them are used up.
#[repr(C)]
struct Twister {
    words: [u32; 624],
    position: libc::c_int,
}

/// The C library's, NumPy's global one if it is as known, and those of all copies of SQLite.
pub(crate) struct RandomStates {
    /// An address.
    numpy: Option<usize>,
    sqlite: Vec<Sqlite>,
}

impl RandomStates {
    /// Finds them, in the host. `randomness.py` has compared the memory there with what NumPy says of it.
    pub(crate) fn find(py: Python<'_>) -> PyResult<Self> {
        let numpy = py
            .import("_pyspawner_randomness")?
            .call_method0("find_numpy_state")?;
        Ok(Self {
            numpy: numpy.extract()?,
            sqlite: sqlite::find(),
        })
    }

    /// Has those generators seed themselves at their next use, which can.
    pub(crate) fn settle(&self) {
        self.sqlite.iter().for_each(Sqlite::reset_randomness);
    }

    /// Fills them anew from the kernel.
    pub(crate) fn renew(&self) -> Result<(), Errno> {
        let mut seeds = [0u32; 2];
        fill(&mut seeds)?;
        // SAFETY: plain integers; the C library's generators are process-wide state.
        unsafe {
            libc::srand(seeds[0]); // and with it random(3)
            libc::srand48(seeds[1].into());
        }
        let Some(address) = self.numpy else {
            return Ok(());
        };
        // SAFETY: the generator is never freed, since NumPy's module holds it and no code has run in
        // this child that could change that; nothing else refers to its state now, as this is the
        // child's only thread. Any words are a valid state.
        let twister = unsafe { &mut *(address as *mut Twister) };
        twister.position = twister.words.len() as libc::c_int;
        fill(&mut twister.words)
    }
}

fn fill(words: &mut [u32]) -> Result<(), Errno> {
    let wanted = size_of_val(words);
    // SAFETY: the buffer is valid for its length. Once the kernel's generator is seeded, a request
    // is interrupted only by a signal, of which a child has none at this time (`getrandom(2)`).
    let got = unsafe { libc::getrandom(words.as_mut_ptr().cast(), wanted, 0) };
    match Errno::result(got)? as usize {
        got if got == wanted => Ok(()),
        _ => Err(Errno::EINTR),
    }
}
