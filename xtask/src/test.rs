//! `cargo xtask test`: the host tests, then the kernel's tests on every machine of the matrix, and one total.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use harness::glob;
use lexopt::{Parser, ValueExt};

use crate::host_tests;
use crate::judge::{Score, judge};
use crate::matrix;
use crate::options::{self, BOOT_USAGE, BootOptions, Read};
use crate::qemu::Qemu;
use crate::scenario::{Expect, Need, Obstacle, Scenario};
use crate::schedule::{self, Capacity, memory_mib};
use crate::session::{BrokenOff, Outcome};
use crate::setup;
use crate::stage::Stage;
use crate::workspace::{Build, Workspace};

const USAGE: &str = "Usage: cargo xtask test [OPTIONS]

Runs the host tests, then boots the kernel on every machine of the matrix that this QEMU can run.
The last line is the total, `N passed, N failed`; the exit code is 0 when something ran and nothing failed.

  --scenario GLOB     only these machines
  --test GLOB         only these in-kernel tests; then nothing is required to be among them
  --no-host           no host tests
  --jobs N            machines at once (2, as far as memory goes)
  --list              list the machines and what they need
";

/// How long one boot may take.
const TOTAL: Duration = Duration::from_secs(1200);
/// What QEMU needs besides the guest's memory.
const QEMU_MIB: u64 = 256;

#[derive(Default)]
struct Options {
    boot: BootOptions,
    scenario: Option<String>,
    tests: Option<String>,
    no_host: bool,
    list: bool,
    jobs: Option<usize>,
}

pub fn main(mut parser: Parser) -> Result<ExitCode> {
    let mut options = Options::default();
    match options::read(&mut parser, |name, parser| options.take(name, parser))? {
        Read::Help => {
            print!("{USAGE}{BOOT_USAGE}");
            return Ok(ExitCode::SUCCESS);
        }
        Read::Rest(rest) if !rest.is_empty() => bail!("`test` passes no arguments on to QEMU"),
        Read::Rest(_) => {}
    }
    let scenarios = options.scenarios()?;
    if options.list {
        list(&scenarios);
        return Ok(ExitCode::SUCCESS);
    }
    let total = options.run(&scenarios)?;
    println!("\n{} passed, {} failed", total.passed, total.failures.len());
    let good = total.failures.is_empty() && total.passed > 0;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Options {
    fn take(&mut self, name: &str, parser: &mut Parser) -> Result<bool, lexopt::Error> {
        match name {
            "scenario" => self.scenario = Some(parser.value()?.string()?),
            "test" => self.tests = Some(parser.value()?.string()?),
            "no-host" => self.no_host = true,
            "list" => self.list = true,
            "jobs" => self.jobs = Some(parser.value()?.parse()?),
            _ => return self.boot.take(name, parser),
        }
        Ok(true)
    }

    /// The scenarios asked for. Who names tests wants just those: nothing else is then required of a scenario.
    fn scenarios(&self) -> Result<Vec<Scenario>> {
        let pattern = self.scenario.as_deref().unwrap_or("*");
        let chosen = matrix::all().iter().filter(|scenario| glob::matches(pattern, scenario.name));
        let mut chosen: Vec<Scenario> = chosen.cloned().collect();
        if let Some(tests) = &self.tests {
            chosen.retain_mut(|scenario| match &mut scenario.expect {
                Expect::AllPass { disk_reads, disk_writes } => {
                    (*disk_reads, *disk_writes) = (0, 0);
                    true
                }
                Expect::TheseFail(names) => names.iter().all(|name| glob::matches(tests, name)),
                Expect::Refusal(_) | Expect::PowerCut { .. } | Expect::Session => false,
            });
        }
        if chosen.is_empty() {
            bail!("no scenario fits {pattern} and the tests asked for; --list shows them");
        }
        Ok(chosen)
    }

    fn run(&self, scenarios: &[Scenario]) -> Result<Score> {
        let workspace = Workspace::locate()?;
        let folder = workspace.lock("test")?;
        let qemu = setup::require_build_and_boot(self.boot.qemu.as_deref(), self.boot.consent())?;
        let mut total = Score::default();
        if !self.no_host {
            println!("host tests");
            let score = host_tests::run(&workspace)?;
            println!("host tests: {} passed, {} failed\n", score.passed, score.failures.len());
            total.add(score);
        }
        match build_kernels(&workspace, scenarios) {
            Ok(kernels) => {
                let stage = Stage {
                    qemu: &qemu,
                    kernels: &kernels,
                    processor: self.boot.processor(),
                    folder: &folder.path,
                    tests: self.tests.as_deref(),
                    cmdline: &self.boot.cmdline,
                    total: self.boot.time_limit.unwrap_or(TOTAL),
                };
                self.run_scenarios(scenarios, &stage, &mut total)?;
            }
            Err(problem) => total.failures.push(("kernel build".into(), format!("{problem:#}"))),
        }
        for (name, reason) in &total.failures {
            println!("FAILED {name}: {reason}");
        }
        Ok(total)
    }

    fn run_scenarios(&self, scenarios: &[Scenario], stage: &Stage, total: &mut Score) -> Result<()> {
        let host_memory = memory_mib(&["MemTotal", "SwapTotal"]);
        let (mut playable, mut skipped) = (Vec::new(), Vec::new());
        for scenario in scenarios {
            match scenario.obstacle(stage.qemu, host_memory)? {
                Some(obstacle) => skipped.push((scenario, obstacle)),
                None => playable.push(scenario),
            }
        }
        println!("QEMU {} ({})", stage.qemu.version, stage.qemu.program.display());
        let tasks: Vec<u64> = playable.iter().map(|scenario| scenario.memory_mib + QEMU_MIB).collect();
        let capacity = Capacity { jobs: self.jobs.unwrap_or(2), memory_mib: memory_mib(&["MemAvailable"]) };
        let play = |task: usize| {
            let started = Instant::now();
            (stage.play(playable[task]), started.elapsed())
        };
        let mut seen = Seen::default();
        schedule::in_order(&tasks, capacity, play, |task, (outcome, elapsed)| {
            let score = report(stage, playable[task], outcome, elapsed, &mut seen);
            total.add(score);
        });
        summarise(playable.len(), &skipped, stage.qemu);
        if playable.is_empty() {
            // What host tests show is no substitute.
            let reason = format!("none of those asked for can be run on QEMU {}", stage.qemu.version);
            total.failures.push(("scenarios".to_string(), reason));
        }
        if self.scenario.is_none() && skipped.is_empty() {
            total.failures.extend(seen.run_nowhere());
        }
        Ok(())
    }
}

/// The kernels that the scenarios boot.
fn build_kernels(workspace: &Workspace, scenarios: &[Scenario]) -> Result<BTreeMap<Build, PathBuf>> {
    let builds: BTreeSet<Build> = scenarios.iter().map(|scenario| scenario.build).collect();
    builds.into_iter().map(|build| Ok((build, workspace.build_kernel(build)?))).collect()
}

impl Score {
    fn add(&mut self, other: Score) {
        self.passed += other.passed;
        self.failures.extend(other.failures);
    }
}

/// Which in-kernel tests the scenarios have shown so far.
#[derive(Default)]
struct Seen {
    /// Those of the default machine, which every machine that expects failures is held to.
    by_default: Option<BTreeSet<String>>,
    ran: BTreeSet<String>,
    skipped: BTreeSet<String>,
}

impl Seen {
    fn enter(&mut self, scenario: &Scenario, outcome: &Outcome) {
        let ran: BTreeSet<String> = outcome.tests.iter().map(|(test, _)| test.clone()).collect();
        self.ran.extend(ran.iter().cloned());
        self.skipped.extend(outcome.skipped.iter().map(|(test, _)| test.clone()));
        if scenario.name == "default" {
            self.by_default = Some(ran);
        }
    }

    /// Tests that every machine lacked something for: they show nothing.
    fn run_nowhere(&self) -> impl Iterator<Item = (String, String)> {
        self.skipped.difference(&self.ran).map(|test| (test.clone(), "was run on no machine".to_string()))
    }
}

/// Prints a scenario's line, and for a failed one what is known of it.
fn report(
    stage: &Stage,
    scenario: &Scenario,
    outcome: Result<Outcome>,
    elapsed: Duration,
    seen: &mut Seen,
) -> Score {
    let name = scenario.name;
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(problem) => {
            println!("{name:<30} could not be run: {problem:#}");
            return Score { passed: 0, failures: vec![(name.to_string(), format!("{problem:#}"))] };
        }
    };
    let mut score = judge(scenario, stage.tests(scenario), &outcome, seen.by_default.as_ref());
    seen.enter(scenario, &outcome);
    let not_run = match outcome.skipped.len() {
        0 => String::new(),
        count => format!(", {count} skipped"),
    };
    let boots = if outcome.boots == 1 { String::new() } else { format!(", {} boots", outcome.boots) };
    let failed = score.failures.len();
    println!(
        "{name:<30} {:>4} passed, {failed} failed{not_run}   ({:.1} s{boots})",
        score.passed,
        elapsed.as_secs_f64()
    );
    if failed > 0 {
        for (what, reason) in &score.failures {
            println!("    {what}: {reason}");
        }
        for BrokenOff { boot, ending, last_lines } in &outcome.broken_off {
            println!("    boot {boot}: {ending}; its last lines:\n        {}", last_lines.join("\n        "));
        }
        println!("    logs: {}", stage.folder.join(name).display());
    }
    for failure in &mut score.failures {
        failure.0 = format!("{name}: {}", failure.0);
    }
    score
}

fn summarise(ran: usize, skipped: &[(&Scenario, Obstacle)], qemu: &Qemu) {
    println!("\n{ran} scenarios ran on QEMU {}, {} could not", qemu.version, skipped.len());
    for (scenario, obstacle) in skipped {
        println!("    not run: {} ({obstacle})", scenario.name);
    }
}

fn list(scenarios: &[Scenario]) {
    for scenario in scenarios {
        let needs: Vec<String> = scenario.needs.iter().map(Need::to_string).collect();
        let needs = if needs.is_empty() { String::new() } else { format!(" (needs {})", needs.join(", ")) };
        println!("{:<30} {}{needs}", scenario.name, scenario.about);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::machine::Processor;
    use crate::qemu::Version;

    #[test]
    fn a_test_that_no_machine_runs_is_a_failure() {
        let outcome = |ran: &str, skipped: &str| Outcome {
            tests: vec![(ran.to_string(), Ok(()))],
            skipped: vec![(skipped.to_string(), "a device".to_string())],
            ..Outcome::default()
        };
        let mut seen = Seen::default();
        seen.enter(&matrix::all()[0], &outcome("a", "b"));
        assert_eq!(seen.by_default, Some(BTreeSet::from(["a".to_string()])));
        assert_eq!(seen.run_nowhere().map(|(test, _)| test).collect::<Vec<_>>(), ["b"]);
        seen.enter(&matrix::all()[1], &outcome("b", "a"));
        assert_eq!(seen.run_nowhere().count(), 0);
    }

    #[test]
    fn scenarios_none_of_which_can_be_run_are_a_failure() {
        let qemu = Qemu { program: "/nonexistent/qemu".into(), version: Version(7, 2) };
        let stage = Stage {
            qemu: &qemu,
            kernels: &BTreeMap::new(),
            processor: Processor::Emulated,
            folder: Path::new("/nonexistent"),
            tests: None,
            cmdline: "",
            total: TOTAL,
        };
        let newer = Scenario { needs: &[Need::AtLeast(Version(10, 0))], ..Scenario::DEFAULT };
        let mut total = Score { passed: 1361, failures: vec![] };
        Options::default().run_scenarios(&[newer], &stage, &mut total).unwrap();
        let reason = "none of those asked for can be run on QEMU 7.2".to_string();
        assert_eq!(total, Score { passed: 1361, failures: vec![("scenarios".to_string(), reason)] });
    }

    #[test]
    fn naming_tests_asks_for_just_those() {
        let all = Options::default().scenarios().unwrap();
        assert_eq!(all.len(), matrix::all().len());
        let some = Options { tests: Some("dma::*".into()), ..Options::default() }.scenarios().unwrap();
        let nothing_else = Expect::AllPass { disk_reads: 0, disk_writes: 0 };
        assert!(!some.is_empty() && some.iter().all(|scenario| scenario.expect == nothing_else));
        let selftest = Options {
            tests: Some("selftest::panics".into()),
            scenario: Some("selftest-*".into()),
            ..Options::default()
        };
        let names: Vec<&str> = selftest.scenarios().unwrap().iter().map(|scenario| scenario.name).collect();
        assert_eq!(names, ["selftest-panic"]);
        let wrong = Options { scenario: Some("nothing-*".into()), ..Options::default() };
        assert!(wrong.scenarios().is_err());
    }
}
