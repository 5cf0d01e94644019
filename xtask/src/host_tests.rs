//! The workspace's tests on the host: runs them, adds up their counts, shows those that fail.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::judge::Score;
use crate::workspace::{Workspace, shown};

/// The tests of the default members; those of the second host by themselves, as another kernel builds `mm` and `iommu`,
/// without the features that members of this workspace ask for; those of the table engine without the frame allocator,
/// for kernels that bring their own; and those of `iommu` compiled for loom: there, no others can run.
const RUNS: [&[&str]; 4] = [
    &["--no-fail-fast"],
    &["--no-fail-fast", "--package", "second-host"],
    &["--no-fail-fast", "--package", "mm", "--no-default-features", "--lib", "--test", "table"],
    &["--package", "interleavings", "interleavings"],
];

/// Runs all of them, even after a failure.
pub fn run(workspace: &Workspace) -> Result<Score> {
    let mut total = Score::default();
    for arguments in RUNS {
        let score = run_some(workspace, arguments)?;
        total.passed += score.passed;
        total.failures.extend(score.failures);
    }
    Ok(total)
}

fn run_some(workspace: &Workspace, arguments: &[&str]) -> Result<Score> {
    let mut command = workspace.cargo("test");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", shown(&command)))?;
    let mut counts = Counts::default();
    let output = child.stdout.take().context("cargo has no output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        counts.enter(&line);
        if worth_showing(&line) {
            println!("{line}");
        }
    }
    let status = child.wait()?;
    Ok(counts.score(status.success(), &status.to_string()))
}

/// The sum of the summaries of all test binaries.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
    names: Vec<String>,
}

impl Counts {
    fn enter(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.names.push(name.to_string());
        }
        let Some(summary) = line.strip_prefix("test result: ") else { return };
        for part in summary.split([';', '.']) {
            let mut words = part.split_whitespace();
            if let (Some(count), Some(what)) = (words.next(), words.next()) {
                let count = count.parse().unwrap_or(0);
                match what {
                    "passed" => self.passed += count,
                    "failed" => self.failed += count,
                    _ => {}
                }
            }
        }
    }

    fn score(self, success: bool, status: &str) -> Score {
        let mut failures: Vec<(String, String)> =
            self.names.into_iter().map(|name| (name, "see above".to_string())).collect();
        // A test binary that died, or that did not build, has no line for what it did not run.
        while failures.len() < self.failed {
            failures.push(("a host test".into(), "failed without being named".into()));
        }
        if !success && failures.is_empty() {
            failures.push(("cargo test".into(), format!("did not finish ({status})")));
        }
        if success && self.passed == 0 {
            failures.push(("host tests".into(), "none ran".into()));
        }
        Score { passed: self.passed, failures }
    }
}

/// Everything but the hundreds of tests that pass.
fn worth_showing(line: &str) -> bool {
    let passed = line.starts_with("test ") && line.ends_with(" ... ok");
    !passed
        && !line.is_empty()
        && !line.starts_with("running ")
        && !line.starts_with("test result: ok. 0 passed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(lines: &str) -> Counts {
        let mut counts = Counts::default();
        lines.lines().for_each(|line| counts.enter(line));
        counts
    }

    #[test]
    fn summaries_add_up() {
        let counts = counts(
            "running 2 tests\ntest a::b ... ok\ntest a::c ... FAILED\n\
             test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             test result: ok. 41 passed; 0 failed; 2 ignored; 0 measured; 7 filtered out; finished in 1.27s\n",
        );
        assert_eq!(counts, Counts { passed: 42, failed: 1, names: vec!["a::c".into()] });
        let score = counts.score(false, "exit status: 101");
        assert_eq!((score.passed, score.failures.len()), (42, 1));
    }

    /// What `cargo tree` says of who has features of `mm` turned on in a build of `package` alone.
    fn features_of_mm(package: &str) -> String {
        let workspace = Workspace::locate().expect("a workspace");
        let mut command = workspace.cargo("tree");
        command.args(["--package", package, "--edges", "normal,dev,features", "--invert", "mm"]);
        let output = command.output().expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    #[test]
    fn the_second_host_brings_its_own_frames() {
        let has_frames = |package| features_of_mm(package).contains("mm feature \"frames\"");
        assert!(has_frames("kernel"));
        assert!(!has_frames("second-host"));
    }

    #[test]
    fn a_build_that_breaks_or_runs_nothing_is_a_failure() {
        let score = |counts: Counts, success| counts.score(success, "exit status: 101").failures.len();
        assert_eq!(score(counts(""), false), 1);
        assert_eq!(score(counts(""), true), 1);
        let some = "test result: ok. 3 passed; 0 failed; 0 ignored";
        assert_eq!(score(counts(some), true), 0);
        assert_eq!(score(counts(some), false), 1, "another test binary died");
        assert_eq!(score(counts("test result: FAILED. 0 passed; 2 failed; 0 ignored"), false), 2);
    }

    #[test]
    fn what_passes_is_not_shown() {
        assert!(!worth_showing("test a ... ok") && !worth_showing("") && !worth_showing("running 3 tests"));
        assert!(
            worth_showing("test a ... FAILED") && worth_showing("thread 'a' panicked at src/lib.rs:1:1:")
        );
    }
}
