//! `cargo xtask bench`: the guest's benchmarks, counted in instructions, then those on the host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::glob;
use lexopt::{Parser, ValueExt};

use crate::boot::{Ending, Verdict};
use crate::control::Measurement;
use crate::machine::Processor;
use crate::matrix;
use crate::options::{self, BOOT_USAGE, BootOptions, Read};
use crate::plot;
use crate::qemu::Qemu;
use crate::scenario::{Drive, Nic, Scenario};
use crate::setup;
use crate::side_by_side;
use crate::stage::Stage;
use crate::workspace::{Build, Workspace, succeed};

const USAGE: &str = "Usage: cargo xtask bench [OPTIONS] [-- ARGUMENTS-TO-THE-HOST-BENCHMARKS]

Boots the kernel with one tick of the time-stamp counter for each instruction and runs its benchmarks, those of disks and
of fetching files (disk_cost, fetch_cost) on a machine for each kind of device and of isolation, and those of mapping for
devices (dma_cost, space_cost) in scalable mode besides; measures the speed of disks and fetches (disk_speed, fetch_speed) on
the same machines, and sets the ways of isolation side by side; then runs the host's benchmarks (criterion).

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
        print!(
            "{}{}",
            table(&measurements),
            side_by_side::table(&measurements, &ISOLATIONS.map(|(name, _)| name))
        );
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

/// The benchmarks of the kernel that `pattern` names: those of devices on machines of their own.
fn in_guest(workspace: &Workspace, boot: &BootOptions, pattern: &str) -> Result<Vec<Measurement>> {
    if boot.kvm {
        bail!("instructions are counted by QEMU's emulation; KVM cannot");
    }
    let folder = workspace.lock("bench")?;
    let qemu = setup::require_build_and_boot(boot.qemu.as_deref(), boot.consent())?;
    let kernel = workspace.build_kernel(Build::Shipped)?;
    let guest = Guest {
        qemu: &qemu,
        kernels: &BTreeMap::from([(Build::Shipped, kernel)]),
        folder: &folder.path,
        cmdline: &boot.cmdline,
        total: boot.time_limit.unwrap_or(TOTAL),
    };
    let scenario =
        Scenario { name: "bench", tests: "none", nics: &[], silence_s: SILENCE_S, ..Scenario::DEFAULT };
    let mut measurements = guest.measure(&scenario, Processor::Counting, pattern)?;
    for machine in device_machines() {
        let [cost, speed] = machine.suites;
        for (suite, processor) in [(cost, Processor::CountingWithDevices), (speed, Processor::Emulated)] {
            if let Some(glob) = within(suite, pattern) {
                let mut found = guest.measure(&machine.scenario, processor, &glob)?;
                found.iter_mut().for_each(|measurement| machine.label(measurement));
                measurements.append(&mut found);
            }
        }
    }
    for machine in modes() {
        if let Some(obstacle) = machine.scenario.obstacle(&qemu, 0)? {
            println!("nothing is measured in the mode {}: it {obstacle}", machine.name);
            continue;
        }
        for glob in machine.suites.iter().filter_map(|suite| within(suite, pattern)) {
            let mut found = guest.measure(&machine.scenario, Processor::Counting, &glob)?;
            found.iter_mut().for_each(|measurement| machine.label(measurement));
            measurements.append(&mut found);
        }
    }
    if measurements.is_empty() {
        bail!("no benchmark of the kernel is called {pattern}");
    }
    Ok(measurements)
}

/// Part of `pattern` that names benchmarks of `suite`, if it names any.
fn within(suite: &str, pattern: &str) -> Option<String> {
    match pattern.split_once("::") {
        Some((suites, names)) => glob::matches(suites, suite).then(|| format!("{suite}::{names}")),
        None => glob::matches(pattern, &format!("{suite}::")).then(|| format!("{suite}::*")),
    }
}

/// Ways to unmap, by the kernel's words.
const ISOLATIONS: [(&str, &str); 3] =
    [("off", "iommu=off"), ("strict", "iommu=strict"), ("deferred", "iommu=deferred")];

/// A machine on which a device is measured.
struct DeviceMachine {
    scenario: Scenario,
    /// What is counted there, and what is timed.
    suites: [&'static str; 2],
    device: &'static str,
    isolation: &'static str,
}

/// Each kind of disk, with nothing behind it, and of network device, by each way to unmap.
fn device_machines() -> Vec<DeviceMachine> {
    let bare = Scenario {
        name: "bench-device",
        tests: "none",
        nics: &[],
        silence_s: SILENCE_S,
        ..Scenario::DEFAULT
    };
    let disk = |drive| Scenario { drive, hollow: true, ..bare.clone() };
    let net = |nics| Scenario { nics, ..bare.clone() };
    let devices = [
        ("nvme", ["disk_cost", "disk_speed"], disk(Drive::Nvme)),
        ("virtio", ["disk_cost", "disk_speed"], disk(Drive::VirtioBlk)),
        ("e1000e", ["fetch_cost", "fetch_speed"], net(&[Nic::E1000e])),
        ("virtio", ["fetch_cost", "fetch_speed"], net(&[Nic::Virtio])),
    ];
    let mut machines = Vec::new();
    for (device, suites, machine) in devices {
        for (isolation, cmdline) in ISOLATIONS {
            let scenario = Scenario { cmdline, ..machine.clone() };
            machines.push(DeviceMachine { scenario, suites, device, isolation });
        }
    }
    machines
}

impl DeviceMachine {
    /// Says in the name what was measured.
    fn label(&self, measurement: &mut Measurement) {
        let Self { device, isolation, .. } = self;
        measurement.name = format!("{}_{device}_{isolation}", measurement.name);
    }
}

/// A mode of the unit that is not the one it has by itself.
struct Mode {
    scenario: Scenario,
    /// What is counted there besides.
    suites: [&'static str; 2],
    name: &'static str,
}

/// Scalable mode, with tables of either stage.
fn modes() -> [Mode; 2] {
    let mode = |name, iommu, needs| {
        let scenario = Scenario {
            name: "bench-mode",
            tests: "none",
            nics: &[],
            silence_s: SILENCE_S,
            iommu: Some(iommu),
            cmdline: "iommu=scalable",
            needs,
            ..Scenario::DEFAULT
        };
        Mode { scenario, suites: ["dma_cost", "space_cost"], name }
    };
    [
        mode("scalable", matrix::SCALABLE, matrix::SECOND_STAGE),
        mode("first_stage", matrix::FIRST_STAGE, matrix::FIRST),
    ]
}

impl Mode {
    fn label(&self, measurement: &mut Measurement) {
        measurement.name = format!("{}_{}", measurement.name, self.name);
    }
}

/// What all boots have in common.
struct Guest<'a> {
    qemu: &'a Qemu,
    kernels: &'a BTreeMap<Build, PathBuf>,
    folder: &'a Path,
    cmdline: &'a str,
    total: Duration,
}

impl Guest<'_> {
    /// Boots once and runs the benchmarks that `pattern` names.
    fn measure(&self, scenario: &Scenario, processor: Processor, pattern: &str) -> Result<Vec<Measurement>> {
        let stage = Stage {
            qemu: self.qemu,
            kernels: self.kernels,
            processor,
            folder: self.folder,
            tests: None,
            cmdline: &format!("bench={pattern} {}", self.cmdline),
            total: self.total,
        };
        let (report, _) = stage.boot(scenario, None, self.folder)?;
        if report.ending != Ending::Guest(Verdict::Passed) {
            bail!("{}\n    {}", report.ending, report.last_lines.join("\n    "));
        }
        Ok(report.record.measurements)
    }
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
    fn a_pattern_is_taken_apart_by_suites() {
        assert_eq!(within("disk_cost", "*").as_deref(), Some("disk_cost::*"));
        assert_eq!(within("disk_cost", "disk_*::read_4k*").as_deref(), Some("disk_cost::read_4k*"));
        assert_eq!(within("disk_cost", "disk*").as_deref(), Some("disk_cost::*"));
        assert_eq!(within("disk_cost", "mapping_cost::*"), None);
        assert_eq!(within("disk_speed", "map*"), None);
    }

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
