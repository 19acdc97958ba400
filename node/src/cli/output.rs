//! Prints a result as it was asked for.

use std::io::{self, Write};

use serde_json::Value;

use super::args::Format;
use super::failure::Failure;
use super::yaml;

/// Prints `value` as JSON or YAML, or what `table` makes of it.
pub(super) fn print(
    format: Format,
    value: &Value,
    table: impl FnOnce() -> String,
) -> Result<(), Failure> {
    let text = match format {
        Format::Table => table(),
        Format::Json => format!("{value:#}\n"),
        Format::Yaml => yaml::render(value),
    };
    write(text.as_bytes())
}

/// Prints one of many results, on one line if as JSON.
pub(super) fn print_one(
    format: Format,
    value: &Value,
    line: impl FnOnce() -> String,
) -> Result<(), Failure> {
    let text = match format {
        Format::Table => line(),
        Format::Json => format!("{value}\n"),
        Format::Yaml => format!("---\n{}", yaml::render(value)),
    };
    write(text.as_bytes())
}

/// Writes to standard output at once. A reader that has gone, as `head` has, ends the program
/// quietly and well.
pub(super) fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::failed(format!("cannot write the output: {error}"))),
    }
}
