//! `cargo xtask dmar`: prints the DMAR table of some machine, and what firmware got wrong in it.

mod json;
mod text;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use iommu::dmar::{Dmar, DmarError, MAX_TABLE_BYTES, Warning};
use lexopt::{Arg, Parser};

const USAGE: &str = "Usage: cargo xtask dmar FILE|- [--json]

Prints a binary ACPI DMAR table, as in /sys/firmware/acpi/tables/DMAR, and warns of what is wrong in it. - is standard
input. A structure that cannot be read ends the list: it is named with its offset, after everything that precedes it.
Exits with 0 if anything can be read, and with 1 if the header cannot, or not a single structure.

  --json              one JSON object instead of text
";

/// Nothing of the table can be read.
const UNREADABLE: u8 = 1;

#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    input: OsString,
    json: bool,
}

pub fn main(mut parser: Parser) -> Result<ExitCode> {
    let Some(arguments) = read_arguments(&mut parser)? else {
        print!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    };
    let bytes = match read_input(&arguments.input) {
        Ok(bytes) => bytes,
        Err(problem) => {
            eprintln!("xtask dmar: {problem:#}");
            return Ok(ExitCode::from(UNREADABLE));
        }
    };
    let report = Report::of(&bytes, arguments.json);
    match io::stdout().write_all(report.output.as_bytes()) {
        // Whoever read the output has seen enough.
        Err(problem) if problem.kind() == io::ErrorKind::BrokenPipe => {}
        result => result?,
    }
    if let Some(error) = &report.error {
        eprintln!("xtask dmar: {}: {error}", arguments.input.display());
    }
    Ok(ExitCode::from(report.exit_code()))
}

/// `None` when help was asked for.
fn read_arguments(parser: &mut Parser) -> Result<Option<Arguments>, lexopt::Error> {
    let (mut input, mut json) = (None, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Value(value) if input.is_none() => input = Some(value),
            Arg::Long("json") => json = true,
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    let input = input.ok_or("which file? (- is standard input)")?;
    Ok(Some(Arguments { input, json }))
}

/// The bytes of the input, but no more than a table can have and one that shows that there are more.
fn read_input(input: &OsStr) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = MAX_TABLE_BYTES as u64 + 1;
    if input == "-" {
        io::stdin().lock().take(limit).read_to_end(&mut bytes).context("standard input")?;
    } else {
        let file = File::open(input).with_context(|| input.display().to_string())?;
        file.take(limit).read_to_end(&mut bytes).with_context(|| input.display().to_string())?;
    }
    Ok(bytes)
}

/// What there is to say about a table.
#[derive(Debug)]
struct Report {
    output: String,
    error: Option<DmarError>,
    /// Structures that could be read.
    structures: usize,
}

impl Report {
    /// An empty table is read in full; one of which an error left nothing is not.
    const fn exit_code(&self) -> u8 {
        if self.error.is_some() && self.structures == 0 { UNREADABLE } else { 0 }
    }

    fn of(bytes: &[u8], as_json: bool) -> Self {
        match Dmar::parse_prefix(bytes) {
            Ok((dmar, error)) => {
                let mut warnings = Vec::new();
                dmar.warnings(|warning| warnings.push(warning));
                let table = Table { dmar, warnings, error };
                let output = if as_json { json::table(&table) } else { text::table(&table) };
                Self { output, error, structures: dmar.structures().count() }
            }
            Err(error) => {
                let output = if as_json { json::error(&error) } else { String::new() };
                Self { output, error: Some(error), structures: 0 }
            }
        }
    }
}

/// A table, or as much of it as could be read.
struct Table<'a> {
    dmar: Dmar<'a>,
    warnings: Vec<Warning>,
    error: Option<DmarError>,
}

impl Table<'_> {
    /// Whether the checksum is right; unknown of a table that was not read to its end.
    fn checksum_is_right(&self) -> Option<bool> {
        let bad = self.warnings.iter().any(|warning| matches!(warning, Warning::BadChecksum { .. }));
        self.error.is_none().then_some(!bad)
    }
}

/// The names of the flags that are set, unknown bits in hexadecimal.
fn flag_names<F: bitflags::Flags<Bits = u8>>(flags: &F) -> Vec<String> {
    let mut names: Vec<String> = flags.iter_names().map(|(name, _)| name.to_owned()).collect();
    let unknown = flags.bits() & !F::all().bits();
    if unknown != 0 {
        names.push(format!("{unknown:#x}"));
    }
    names
}

#[cfg(test)]
mod tests;
