//! A scenario's boots: one, and one more after each test that took the guest down.
//!
//! The guest runs its tests in the order of their names. When one ends the guest (a panic, a deadline, a hang, a
//! reset), it is charged with that, and the next boot starts with the test after it (`test-after=NAME`). So every
//! test runs once, whatever the others do. A boot that gets no further than the one before ends the session.

use anyhow::Result;

use crate::boot::{Ending, Report, Verdict as GuestVerdict};
use crate::control::Verdict;

/// More boots than this: the kernel is broken, not a test.
const MOST_BOOTS: usize = 25;

/// What is checked of every boot: that the guest keeps to the protocol of the control channel.
pub const CONTROL_CHANNEL: &str = "control channel";

/// What came of a scenario.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The in-kernel tests.
    pub tests: Vec<(String, Verdict)>,
    /// Tests that were not run, and what the machine lacks for them.
    pub skipped: Vec<(String, String)>,
    /// What the host found by itself: compared disk ranges, and whether boots ended as they said.
    pub checks: Vec<(String, Verdict)>,
    /// The boots that ended before their time.
    pub broken_off: Vec<BrokenOff>,
    pub boots: usize,
}

/// A boot that ended before its time, and what it last showed.
#[derive(Debug)]
pub struct BrokenOff {
    pub boot: usize,
    pub ending: Ending,
    pub last_lines: Vec<String>,
}

/// Boots until every test has run. `boot` boots once, with the test after which to start.
pub fn play(
    mut boot: impl FnMut(Option<&str>) -> Result<(Report, Vec<(String, Verdict)>)>,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut after: Option<String> = None;
    loop {
        let (report, checks) = boot(after.as_deref())?;
        outcome.boots += 1;
        outcome.checks.extend(checks);
        after = match outcome.absorb(report, after.as_deref()) {
            Some(culprit) => Some(culprit),
            None => return Ok(outcome),
        };
        if outcome.boots == MOST_BOOTS {
            outcome.complain("restarts", format!("gave up after {MOST_BOOTS} boots"));
            return Ok(outcome);
        }
    }
}

impl Outcome {
    /// Takes in one boot's report. Returns the test after which the next boot has to start, if one is needed.
    fn absorb(&mut self, report: Report, after: Option<&str>) -> Option<String> {
        let record = report.record;
        let last = record.last_begun().map(String::from);
        let backwards = match (after, record.first_begun()) {
            (Some(after), Some(first)) if first <= after => {
                Some(format!("asked to start after {after}, the guest began with {first}"))
            }
            _ => None,
        };
        self.complain_of(&record.complaints);
        if let Some(reason) = backwards {
            self.complain("order of tests", reason);
            return None;
        }
        self.tests.extend(record.results);
        self.skipped.extend(record.skipped);
        if let Some((_, failed)) = record.done {
            let expected = if failed == 0 { GuestVerdict::Passed } else { GuestVerdict::TestsFailed };
            if report.ending != Ending::Guest(expected) {
                self.complain("end of the run", format!("after the last test, {}", report.ending));
                self.keep(report.ending, report.last_lines);
            }
            return None;
        }
        let culprit = self.charge(record.open, last, &report.ending);
        self.keep(report.ending, report.last_lines);
        culprit
    }

    /// Charges a boot that broke off to the test that ran, or else to the one that had just ended.
    fn charge(&mut self, open: Option<String>, last: Option<String>, ending: &Ending) -> Option<String> {
        let said_so = matches!(ending, Ending::Guest(GuestVerdict::Panicked | GuestVerdict::DeadlineMissed));
        if let Some(name) = open {
            self.tests.push((name, Err(ending.to_string())));
        } else if let Some(name) = &last {
            let failed = self.tests.last().is_some_and(|(_, verdict)| verdict.is_err());
            if !(failed && said_so) {
                self.complain(&format!("after {name}"), ending.to_string());
            }
        } else {
            self.complain("boot", format!("no test began: {ending}"));
        }
        last
    }

    /// Counts what was wrong with a boot's control channel as failed.
    pub fn complain_of(&mut self, complaints: &[String]) {
        for complaint in complaints {
            self.complain(CONTROL_CHANNEL, complaint.clone());
        }
    }

    fn complain(&mut self, what: &str, reason: String) {
        self.checks.push((what.to_string(), Err(reason)));
    }

    fn keep(&mut self, ending: Ending, last_lines: Vec<String>) {
        self.broken_off.push(BrokenOff { boot: self.boots, ending, last_lines });
    }

    /// How the boots that broke off ended, in words.
    pub fn endings(&self) -> String {
        let endings: Vec<String> = self.broken_off.iter().map(|boot| boot.ending.to_string()).collect();
        if endings.is_empty() { "none broke off".into() } else { endings.join(", ") }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
