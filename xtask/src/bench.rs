//! `cargo xtask bench`: the guest's benchmarks, counted in instructions, then those on the host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lexopt::{Parser, ValueExt};

use crate::boot::{Ending, Verdict};
use crate::control::Measurement;
use crate::machine::Processor;
use crate::options::{self, BOOT_USAGE, BootOptions, Read};
use crate::plot;
use crate::scenario::Scenario;
use crate::setup;
use crate::stage::Stage;
use crate::workspace::{Build, Workspace, succeed};

const USAGE: &str = "Usage: cargo xtask bench [OPTIONS] [-- ARGUMENTS-TO-THE-HOST-BENCHMARKS]

Boots the kernel with one tick of the time-stamp counter for each instruction and runs its benchmarks, then runs
the host's (criterion).

  --bench GLOB        only these in-kernel benchmarks
  --no-guest          only the host's
  --no-host           only the guest's
  --plot FILE         a picture of the guest's results besides (SVG)
";

const TOTAL: Duration = Duration::from_secs(1800);
/// Benchmarks repeat thousands of times and say nothing meanwhile.
const SILENCE_S: u64 = 600;

pub fn main(mut parser: Parser) -> Result<ExitCode> {
    let mut boot = BootOptions::default();
    let mut pattern = "*".to_string();
    let (mut no_guest, mut no_host, mut plot) = (false, false, None);
    let rest = options::read(&mut parser, |name, parser| {
        match name {
            "bench" => pattern = parser.value()?.string()?,
            "no-guest" => no_guest = true,
            "no-host" => no_host = true,
            "plot" => plot = Some(PathBuf::from(parser.value()?)),
            _ => return boot.take(name, parser),
        }
        Ok(true)
    })?;
    let Read::Rest(rest) = rest else {
        print!("{USAGE}{BOOT_USAGE}");
        return Ok(ExitCode::SUCCESS);
    };
    let workspace = Workspace::locate()?;
    if !no_guest {
        let measurements = in_guest(&workspace, &boot, &pattern)?;
        print!("{}", table(&measurements));
        if let Some(file) = plot {
            let written = std::fs::write(&file, plot::svg(&measurements));
            written.with_context(|| format!("cannot write {}", file.display()))?;
        }
    }
    let packages = packages_with_benchmarks(&workspace.root)?;
    if !no_host && !packages.is_empty() {
        let mut command = workspace.cargo("bench");
        command.args(packages.iter().flat_map(|package| ["--package", package]));
        // Benchmark targets only: a library's unit-test harness does not know criterion's arguments.
        command.args(["--bench", "*", "--"]).args(rest);
        succeed(&mut command)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn in_guest(workspace: &Workspace, boot: &BootOptions, pattern: &str) -> Result<Vec<Measurement>> {
    if boot.kvm {
        bail!("instructions are counted by QEMU's emulation; KVM cannot");
    }
    let qemu = setup::require_build_and_boot(boot.qemu.as_deref(), boot.consent())?;
    let kernel = workspace.build_kernel(Build::Shipped)?;
    let folder = workspace.scratch("bench")?;
    let stage = Stage {
        qemu: &qemu,
        kernels: &BTreeMap::from([(Build::Shipped, kernel)]),
        processor: Processor::Counting,
        folder: &folder,
        tests: None,
        cmdline: &format!("bench={pattern} {}", boot.cmdline),
        total: boot.time_limit.unwrap_or(TOTAL),
    };
    let scenario = Scenario { name: "bench", tests: "none", silence_s: SILENCE_S, ..Scenario::DEFAULT };
    let (report, _) = stage.boot(&scenario, None, &folder)?;
    if report.ending != Ending::Guest(Verdict::Passed) {
        bail!("{}\n    {}", report.ending, report.last_lines.join("\n    "));
    }
    if report.record.measurements.is_empty() {
        bail!("no benchmark of the kernel is called {pattern}");
    }
    Ok(report.record.measurements)
}

/// The members that have benchmarks of their own; each is called as its folder is.
fn packages_with_benchmarks(root: &Path) -> Result<Vec<String>> {
    let mut packages = Vec::new();
    for folder in [root.to_path_buf(), root.join("testing")] {
        let entries =
            std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.path().join("benches").is_dir() {
                packages.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
    }
    packages.sort();
    Ok(packages)
}

fn table(measurements: &[Measurement]) -> String {
    let width = measurements.iter().map(|m| m.name.len()).max().unwrap_or(0).max("benchmark".len());
    let mut text = format!("{:<width$} {:>10} {:>10} {:>10}  unit\n", "benchmark", "min", "median", "max");
    for m in measurements {
        text += &format!("{:<width$} {:>10} {:>10} {:>10}  {}\n", m.name, m.min, m.median, m.max, m.unit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned() {
        let measurement = |name: &str, median| Measurement {
            name: name.into(),
            min: 80,
            median,
            max: 12345,
            unit: "instructions".into(),
        };
        let text = table(&[measurement("map-4k", 99), measurement("unmap-scattered-16", 350)]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "benchmark                 min     median        max  unit");
        assert_eq!(lines[1], "map-4k                     80         99      12345  instructions");
        assert_eq!(lines[2], "unmap-scattered-16         80        350      12345  instructions");
    }
}
