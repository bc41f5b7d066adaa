//! What a command writes: tables for people, JSON for scripts, errors with a
//! next step. Colours only on a terminal; a closed pipe ends the command
//! quietly instead of with a panic.

pub mod json;

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};

use comfy_table::{Cell, Color, ContentArrangement, Table};

use crate::error::{CliError, Kind};

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Tables and sentences.
    #[default]
    Table,
    /// One JSON value on standard output.
    Json,
}

/// Writes one line to standard output.
pub fn line(text: impl Display) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()?;
    Ok(())
}

/// Writes a JSON value, indented, to standard output.
pub fn value(value: &serde_json::Value) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::failed(format!("cannot write JSON: {error}")))?;
    line(text)
}

/// Writes a remark to standard error, where it does not disturb a pipe. A
/// remark that cannot be written is dropped.
pub fn remark(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Reports a failure as `error: …` and `next: …`.
pub fn report(failure: &CliError) {
    if failure.kind == Kind::ClosedPipe {
        return;
    }
    let colour = colour(std::io::stderr().is_terminal());
    let (red, cyan, reset) = if colour { ("\x1b[1;31m", "\x1b[36m", "\x1b[0m") } else { ("", "", "") };
    remark(format_args!("{red}error:{reset} {}", failure.message));
    if let Some(next) = &failure.next {
        remark(format_args!("{cyan}next:{reset} {next}"));
    }
}

fn colour(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none()
}

/// Writes a row for each item under a header; `empty` stands in for a table without rows.
pub fn table<T, const N: usize>(
    header: [&str; N],
    items: &[T],
    row: impl Fn(&T) -> [String; N],
    empty: &str,
) -> Result<(), CliError> {
    if items.is_empty() {
        return line(empty);
    }
    let colour = colour(std::io::stdout().is_terminal());
    let mut table = new_table();
    table.set_header(header.iter().map(|name| Cell::new(name.to_uppercase())));
    for item in items {
        table.add_row(row(item).map(|text| cell(text, colour)));
    }
    line(trimmed(&table))
}

/// Writes names beside values; entries without a value are left out.
pub fn fields(entries: Vec<(&str, String)>) -> Result<(), CliError> {
    let colour = colour(std::io::stdout().is_terminal());
    let mut table = new_table();
    for (name, text) in entries {
        if !text.is_empty() && text != "-" {
            table.add_row(vec![Cell::new(name), cell(text, colour)]);
        }
    }
    line(trimmed(&table))
}

fn new_table() -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn trimmed(table: &Table) -> String {
    // The preset pads both sides; a script that cuts columns wants neither.
    let lines = table.lines().map(|line| line.trim_end().strip_prefix(' ').unwrap_or_default().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

fn cell(text: String, colour: bool) -> Cell {
    let shade = match text.as_str() {
        "RUNNING" | "CREATED" | "UPDATED" | "SUCCESSFUL" | "ACTIVE" | "READY" | "healthy" => {
            Some(Color::Green)
        }
        "SUSPENDED" | "DRAINED" | "DRAINING" | "INACTIVE" => Some(Color::Blue),
        "PENDING" | "IN_PROGRESS" | "CREATING" | "UPDATING" | "SUSPENDING" | "starting" => {
            Some(Color::Yellow)
        }
        "FAILED" | "CREATE_FAILED" | "UPDATE_FAILED" | "DELETE_FAILED" | "LOST" | "failed" | "unhealthy" => {
            Some(Color::Red)
        }
        _ => None,
    };
    match shade {
        Some(shade) if colour => Cell::new(text).fg(shade),
        _ => Cell::new(text),
    }
}

/// Bytes by their largest binary unit: "11.2 MiB".
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    #[allow(clippy::cast_precision_loss, reason = "shown with one digit")]
    let mut amount = count as f64;
    while amount >= 1024.0 && unit < UNITS.len() - 1 {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{amount:.1} {}", UNITS[unit]) }
}

/// Guest memory as it was asked for, with the peak beside it.
pub fn memory(baseline_mib: u32, peak_mib: u32) -> String {
    match (baseline_mib, peak_mib) {
        (0, 0) => "-".to_owned(),
        (0, peak) => format!("peak {peak} MiB"),
        (baseline, 0) => format!("{baseline} MiB"),
        (baseline, peak) => format!("{baseline} MiB, peak {peak} MiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shown_as_it_was_asked_for() {
        assert_eq!(memory(512, 2048), "512 MiB, peak 2048 MiB");
        assert_eq!(memory(512, 0), "512 MiB", "not baked yet");
        assert_eq!((memory(0, 2048).as_str(), memory(0, 0).as_str()), ("peak 2048 MiB", "-"));
    }

    #[test]
    fn bytes_by_their_largest_unit() {
        let cases =
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (12 << 20, "12.0 MiB"), (48 << 30, "48.0 GiB")];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }
}
