//! What a child that waits for a job holds.
//!
//! Runs on: the I/O thread.

use std::fs;

use anyhow::Context;

use super::summary::Memory;
use crate::io::pool::Pool;
use crate::sys::memory::field;

/// Looks at a child in its sandbox.
pub(super) async fn of_idle_child(pool: &Pool) -> anyhow::Result<Memory> {
    pool.look_at_idle(look).await?
}

/// Source: `proc_pid_smaps(5)`, `proc_pid_status(5)`.
fn look(pid: libc::pid_t) -> anyhow::Result<Memory> {
    let read = |name| {
        let path = format!("/proc/{pid}/{name}");
        fs::read_to_string(&path).with_context(|| format!("reading {path}"))
    };
    let (smaps, status) = (read("smaps_rollup")?, read("status")?);
    let smaps = |name| {
        field(&smaps, name).with_context(|| format!("/proc/{pid}/smaps_rollup has no {name}"))
    };
    Ok(Memory {
        private: smaps("Private_Clean")? + smaps("Private_Dirty")?,
        shared: smaps("Shared_Clean")? + smaps("Shared_Dirty")?,
        pss: smaps("Pss")?,
        page_tables: field(&status, "VmPTE")
            .with_context(|| format!("/proc/{pid}/status has no VmPTE"))?,
    })
}
