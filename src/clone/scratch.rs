//! Room for what the thread that clones reads before each clone and after it.
//!
//! Runs on: the main thread.
//!
//! Clones do not receive it. What they receive is theirs too, and the kernel copies it page by page when
//! it is next written to here: reading a file of 4 KiB costs two page faults then.

use std::cell::{RefCell, RefMut};

use nix::errno::Errno;

use crate::sys::memory;

/// It is never given back. In a child it is not there: only the thread that clones may use it.
pub(super) struct Scratch(RefCell<&'static mut [u8]>);

impl Scratch {
    /// # Errors
    /// Of `mmap(2)` and `madvise(2)`.
    pub(super) fn new(length: usize) -> Result<Self, Errno> {
        let base = memory::map(length)?;
        // SAFETY: a new mapping of this length, which nobody else knows and nobody unmaps; no code of
        // a child's gets here.
        let bytes = unsafe {
            memory::hide_from_clones(base.as_ptr(), length)?;
            std::slice::from_raw_parts_mut(base.as_ptr(), length)
        };
        Ok(Self(RefCell::new(bytes)))
    }

    pub(super) fn borrow(&self) -> RefMut<'_, [u8]> {
        RefMut::map(self.0.borrow_mut(), |bytes| &mut **bytes)
    }
}
