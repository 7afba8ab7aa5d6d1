//! The log: lines on standard error, each one `write(2)`.
//!
//! Not through `std::io::stderr`, whose lock a clone could inherit as taken.

use std::io::Write;
use std::time::Instant;

use log::{LevelFilter, Log, Metadata, Record};

struct Lines {
    filter: env_filter::Filter,
    start: Instant,
}

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.filter.matches(record) {
            return;
        }
        let mut line = Vec::with_capacity(160);
        let level = record.level().as_str().to_ascii_lowercase();
        let elapsed = self.start.elapsed().as_secs_f64();
        // Writing to a vector cannot fail.
        let _ = writeln!(
            line,
            "pyspawner: {level}: {} [{elapsed:.3}s]",
            record.args()
        );
        crate::sys::files::write_once(libc::STDERR_FILENO, &line);
    }

    fn flush(&self) {}
}

/// The filter for a verbosity (`-v` counts up, `-q` down) unless `PYSPAWNER_LOG` has one.
pub fn filter(verbose: u8, quiet: u8) -> String {
    let level = match i16::from(verbose) - i16::from(quiet) {
        i16::MIN..=-2 => LevelFilter::Off,
        -1 => LevelFilter::Error,
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        3.. => LevelFilter::Trace,
    };
    std::env::var("PYSPAWNER_LOG").unwrap_or_else(|_| level.to_string())
}

/// Installs the log. Once, before the I/O thread exists.
///
/// # Errors
/// With what is wrong with the filter.
pub fn install(filter: &str) -> anyhow::Result<()> {
    let filter = env_filter::Builder::new()
        .try_parse(filter)
        .map_err(|error| anyhow::anyhow!("PYSPAWNER_LOG: {error}"))?
        .build();
    log::set_max_level(filter.filter());
    let start = Instant::now();
    log::set_boxed_logger(Box::new(Lines { filter, start }))?;
    // std's own hook takes the lock of its standard error.
    std::panic::set_hook(Box::new(|panic| {
        let line = format!("pyspawner: internal error: {panic}\n");
        crate::sys::files::write_once(libc::STDERR_FILENO, line.as_bytes());
    }));
    Ok(())
}
