//! Waiting for a machine that does nothing else.
//!
//! Runs on: the I/O thread.
//!
//! What a child leaves to the kernel (its namespaces are taken apart after it was reaped) would
//! otherwise be paid for by the next sample.

use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);
/// So many looks in a row must have found nothing.
const LOOKS: u32 = 3;
/// On a machine that has other things to do, samples are taken all the same after this.
const PATIENCE: Duration = Duration::from_millis(100);

/// Waits until no other thread of the machine runs or is ready to. `false`: one always was.
pub(super) async fn wait() -> std::io::Result<bool> {
    let start = Instant::now();
    let mut quiet = 0;
    while start.elapsed() < PATIENCE {
        tokio::time::sleep(PAUSE).await;
        let loadavg = std::fs::read_to_string("/proc/loadavg")?;
        quiet = match runnable(&loadavg) {
            Some(0 | 1) => quiet + 1, // this one
            Some(_) => 0,
            None => return Err(std::io::ErrorKind::InvalidData.into()),
        };
        if quiet == LOOKS {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The threads that run or are ready to (`proc_loadavg(5)`, before the slash).
fn runnable(loadavg: &str) -> Option<u32> {
    let threads = loadavg.split_whitespace().nth(3)?;
    threads.split_once('/')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::runnable;

    #[test]
    fn the_runnable_threads_are_read() {
        assert_eq!(runnable("0.20 0.18 0.12 3/80 11206\n"), Some(3));
        assert_eq!(runnable("0.20 0.18"), None);
    }
}
