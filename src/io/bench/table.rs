//! The figures for people.
//!
//! Runs on: the I/O thread.

use std::fmt::Write;

use super::summary::{Figures, Percentiles, Ratio};

/// All of them, without a line feed at the end.
pub(crate) fn of(figures: &Figures) -> String {
    [
        conditions(figures),
        latencies(figures),
        ratios(figures),
        throughput(figures),
        memory(figures),
    ]
    .join("\n")
}

fn conditions(figures: &Figures) -> String {
    let preload = match &figures.preload[..] {
        [] => "nothing".to_owned(),
        modules => modules.join(", "),
    };
    let kinds = figures.latency_ms.by_kind().count();
    let mut text = format!(
        "Python {}, preloaded: {preload}\n{} samples of each kind, taken in turn",
        figures.python, figures.samples,
    );
    if figures.samples_on_busy_machine > 0 {
        let (busy, all) = (figures.samples_on_busy_machine, figures.samples * kinds);
        write!(
            text,
            "; {busy} of {all} while something else ran on this machine"
        )
        .expect(IN_MEMORY);
    }
    text.push('\n');
    text
}

fn latencies(figures: &Figures) -> String {
    let mut text = format!(
        "{:<28}{:>12}{:>12}{:>12}{:>12}\n",
        "", "min", "median", "p90", "p99"
    );
    for (kind, latency) in figures.latency_ms.by_kind() {
        let first_byte = latency
            .first_byte
            .as_ref()
            .map(|times| ("to first byte", times));
        let rows = first_byte
            .into_iter()
            .chain([("to reaped", &latency.reaped)]);
        for (place, (end, times)) in rows.enumerate() {
            let name = if place == 0 { kind.name() } else { "" };
            writeln!(text, "{name:<13}{end:<15}{}", columns(times)).expect(IN_MEMORY);
        }
    }
    text
}

fn columns(times: &Percentiles) -> String {
    [times.min, times.p50, times.p90, times.p99]
        .map(|time| format!("{:>12}", duration(time)))
        .concat()
}

fn ratios(figures: &Figures) -> String {
    let row = |name: &str, ratio: &Ratio| {
        format!(
            "{name:<28}{:.2} × to first byte, {:.2} × to reaped (medians)\n",
            ratio.first_byte, ratio.reaped
        )
    };
    let mut text = row("cold / floor", &figures.ratios.cold_to_floor);
    if let Some(ratio) = &figures.ratios.cold_to_ready_spare {
        text += &row("cold / ready spare", ratio);
    }
    text
}

fn throughput(figures: &Figures) -> String {
    let rows = figures.throughput.iter().map(|row| {
        format!(
            "{:<28}{:.0} jobs/s\n",
            format!("throughput, {} at once", row.concurrency),
            row.jobs_per_second
        )
    });
    rows.collect()
}

fn memory(figures: &Figures) -> String {
    let memory = &figures.memory_bytes;
    format!(
        "{:<28}{} private, {} shared, {} proportional (PSS), {} page tables",
        "memory of an idle child",
        size(memory.private),
        size(memory.shared),
        size(memory.pss),
        size(memory.page_tables),
    )
}

fn duration(milliseconds: f64) -> String {
    match milliseconds {
        ms if ms < 1.0 => format!("{:.0} µs", ms * 1e3),
        ms if ms < 1000.0 => format!("{ms:.2} ms"),
        ms => format!("{:.2} s", ms / 1e3),
    }
}

fn size(bytes: u64) -> String {
    match bytes >> 10 {
        kibibytes @ ..1024 => format!("{kibibytes} KiB"),
        kibibytes => format!("{:.1} MiB", kibibytes as f64 / 1024.0),
    }
}

const IN_MEMORY: &str = "writing to a String does not fail";
