//! Whether what came of a scenario is what was expected of it.

use std::collections::BTreeSet;

use harness::glob;

use crate::boot::{Ending, Verdict::Panicked};
use crate::control::Verdict;
use crate::lacks;
use crate::power_cut;
use crate::scenario::{Expect, Scenario};
use crate::session::{CONTROL_CHANNEL, Outcome};

/// A scenario's part of the total.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Score {
    pub passed: usize,
    /// What failed, and why.
    pub failures: Vec<(String, String)>,
}

impl Score {
    fn count(&mut self, name: &str, verdict: Verdict) {
        match verdict {
            Ok(()) => self.passed += 1,
            Err(reason) => self.failures.push((name.to_string(), reason)),
        }
    }
}

/// Counts a scenario's tests and checks, each once, against its expectation.
///
/// `filter` chose the tests. `known` are the tests that the kernel has on an ordinary machine: a scenario that expects
/// failures is held to run all of them. When it is not known which there are, at least one must have run before and one
/// after.
pub fn judge(
    scenario: &Scenario,
    filter: &str,
    outcome: &Outcome,
    known: Option<&BTreeSet<String>>,
) -> Score {
    let mut score = Score::default();
    match scenario.expect {
        Expect::AllPass { disk_reads, disk_writes } => {
            for (name, verdict) in outcome.tests.iter().chain(&outcome.checks) {
                score.count(name, verdict.clone());
            }
            for (key, least) in [("disk-read", disk_reads), ("disk-written", disk_writes)] {
                let seen = outcome.checks.iter().filter(|(name, _)| name.starts_with(key)).count();
                if seen < least {
                    score.count(key, Err(format!("{seen} ranges compared, at least {least} must be")));
                }
            }
        }
        Expect::TheseFail(names) => expect_failures(names, filter, outcome, known, &mut score),
        Expect::PowerCut { keeps } => {
            power_cut::judge(keeps, outcome)
                .into_iter()
                .for_each(|(name, verdict)| score.count(&name, verdict));
            return score;
        }
        Expect::Session => {
            let checks = outcome.checks.iter();
            checks.for_each(|(name, verdict)| score.count(name, verdict.clone()));
            return score;
        }
        Expect::Refusal(words) => {
            score.count("refuses to boot", refusal(words, outcome));
            // That no test began is as it should be.
            let complaints = outcome.checks.iter().filter(|(name, _)| name == CONTROL_CHANNEL);
            complaints.for_each(|(name, verdict)| score.count(name, verdict.clone()));
            return score;
        }
    }
    for (name, reason) in &outcome.skipped {
        if !lacks::excuses(scenario, reason) {
            score.count(name, Err(format!("was skipped: {reason}")));
        }
    }
    for words in scenario.last_words {
        score.count(&format!("says {words:?}"), last_words(words, outcome));
    }
    if outcome.tests.is_empty() {
        score.count("tests", Err("none ran".into()));
    }
    score
}

/// One boot that ended by the kernel's own decision, before any test.
fn refusal(words: &str, outcome: &Outcome) -> Verdict {
    let refused = matches!(&outcome.broken_off[..], [only] if only.ending == Ending::Guest(Panicked));
    if outcome.boots != 1 || !outcome.tests.is_empty() || !refused {
        return Err(format!("{} boots, {} tests, {}", outcome.boots, outcome.tests.len(), outcome.endings()));
    }
    let said = outcome.broken_off[0].last_lines.iter().any(|line| line.contains(words));
    if said { Ok(()) } else { Err(format!("the kernel did not say {words:?}")) }
}

/// Words that a boot that broke off ended with.
fn last_words(words: &str, outcome: &Outcome) -> Verdict {
    let mut lines = outcome.broken_off.iter().flat_map(|boot| &boot.last_lines);
    if lines.any(|line| line.contains(words)) { Ok(()) } else { Err("no boot ended with that".into()) }
}

fn expect_failures(
    names: &[&str],
    filter: &str,
    outcome: &Outcome,
    known: Option<&BTreeSet<String>>,
    score: &mut Score,
) {
    for (name, verdict) in &outcome.tests {
        if !names.contains(&name.as_str()) {
            score.count(name, verdict.clone());
        }
    }
    for (name, verdict) in &outcome.checks {
        score.count(name, verdict.clone());
    }
    for &name in names {
        let times = outcome.tests.iter().filter(|(test, verdict)| test == name && verdict.is_err()).count();
        let verdict =
            if times == 1 { Ok(()) } else { Err(format!("should have failed once, failed {times} times")) };
        score.count(&format!("{name} fails"), verdict);
        score.count(
            &format!("the others run in spite of {name}"),
            others_ran(name, names, filter, outcome, known),
        );
    }
}

fn others_ran(
    name: &str,
    names: &[&str],
    filter: &str,
    outcome: &Outcome,
    known: Option<&BTreeSet<String>>,
) -> Verdict {
    let ran: BTreeSet<&str> = outcome.tests.iter().map(|(test, _)| test.as_str()).collect();
    match known {
        Some(known) => {
            let wanted = |test: &&String| glob::matches(filter, test) && !names.contains(&test.as_str());
            let missing: Vec<&str> =
                known.iter().filter(wanted).map(String::as_str).filter(|test| !ran.contains(test)).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("did not run: {}", missing.join(", "))) }
        }
        None => match (ran.iter().any(|&test| test < name), ran.iter().any(|&test| test > name)) {
            (true, true) => Ok(()),
            (before, after) => Err(format!("ran before it: {before}, ran after it: {after}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::BrokenOff;

    fn outcome(tests: &[(&str, bool)], checks: &[(&str, bool)]) -> Outcome {
        let verdicts = |list: &[(&str, bool)]| {
            let verdict = |good: bool| if good { Ok(()) } else { Err("bad".to_string()) };
            list.iter().map(|&(name, good)| (name.to_string(), verdict(good))).collect()
        };
        Outcome { tests: verdicts(tests), checks: verdicts(checks), boots: 1, ..Outcome::default() }
    }

    fn failures(scenario: &Scenario, outcome: &Outcome, known: Option<&BTreeSet<String>>) -> Vec<String> {
        judge(scenario, "*", outcome, known).failures.into_iter().map(|(name, _)| name).collect()
    }

    const PLAIN: Scenario =
        Scenario { expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 }, ..Scenario::DEFAULT };
    const CRASH: Scenario = Scenario { expect: Expect::TheseFail(&["b::crash"]), ..Scenario::DEFAULT };

    #[test]
    fn tests_and_checks_both_count() {
        let outcome = outcome(&[("a", true), ("b", false)], &[("disk-read 0 8", true), ("boot", false)]);
        let score = judge(&PLAIN, "*", &outcome, None);
        assert_eq!((score.passed, score.failures.len()), (2, 2));
    }

    #[test]
    fn a_scenario_in_which_nothing_ran_fails() {
        assert_eq!(failures(&PLAIN, &Outcome::default(), None), ["tests"]);
    }

    #[test]
    fn a_test_is_not_run_only_where_the_scenario_says_so() {
        let skipped = vec![("edu::reads".to_string(), "an edu device".to_string())];
        let outcome = Outcome { skipped, ..outcome(&[("a", true)], &[]) };
        assert_eq!(failures(&PLAIN, &outcome, None), ["edu::reads"]);
        let bare = Scenario { lacks: &["a disk", "an edu device"], ..PLAIN };
        assert!(failures(&bare, &outcome, None).is_empty());
        let other = Scenario { lacks: &["a disk", "two edu devices"], ..PLAIN };
        assert_eq!(failures(&other, &outcome, None), ["edu::reads"]);
    }

    #[test]
    fn what_a_crash_has_to_say_is_looked_for() {
        let broken = |line: &str| Outcome {
            broken_off: vec![BrokenOff {
                boot: 1,
                ending: Ending::Guest(Panicked),
                last_lines: vec!["first".into(), line.into()],
            }],
            ..outcome(&[("a::before", true), ("b::crash", false), ("c::after", true)], &[])
        };
        let scenario = Scenario { last_words: &["cpu 1 was"], ..CRASH };
        assert!(failures(&scenario, &broken("cpu 1 was there"), None).is_empty());
        assert_eq!(failures(&scenario, &broken("cpu 2 was there"), None), ["says \"cpu 1 was\""]);
    }

    #[test]
    fn too_few_compared_disk_ranges_fail() {
        let enough = outcome(
            &[("a", true)],
            &[
                ("disk-read 0 8", true),
                ("disk-read 8 64", true),
                ("disk-written 9 1", true),
                ("disk-written 10 1", true),
            ],
        );
        assert!(failures(&Scenario::DEFAULT, &enough, None).is_empty());
        let few = outcome(&[("a", true)], &[("disk-read 0 8", true), ("disk-written 9 1", true)]);
        assert_eq!(failures(&Scenario::DEFAULT, &few, None), ["disk-read", "disk-written"]);
    }

    #[test]
    fn an_expected_failure_passes_and_its_absence_fails() {
        let good = outcome(&[("a", true), ("b::crash", false), ("c", true)], &[]);
        assert_eq!(judge(&CRASH, "*", &good, None), Score { passed: 4, failures: vec![] });
        let survived = outcome(&[("a", true), ("b::crash", true), ("c", true)], &[]);
        assert_eq!(failures(&CRASH, &survived, None), ["b::crash fails"]);
        let absent = outcome(&[("a", true), ("c", true)], &[]);
        assert_eq!(failures(&CRASH, &absent, None), ["b::crash fails"]);
        let another = outcome(&[("a", false), ("b::crash", false), ("c", true)], &[]);
        assert_eq!(failures(&CRASH, &another, None), ["a"]);
    }

    #[test]
    fn a_refusal_is_one_boot_that_says_why() {
        let refuse = Scenario { expect: Expect::Refusal("no remapping unit"), ..Scenario::DEFAULT };
        let broken_off =
            |ending, line: &str| vec![BrokenOff { boot: 1, ending, last_lines: vec![line.into()] }];
        let boot = |broken_off| Outcome { broken_off, ..outcome(&[], &[("boot", false)]) };
        let panicked = || Ending::Guest(Panicked);
        let good = boot(broken_off(panicked(), "ERROR: no remapping unit works"));
        assert_eq!(judge(&refuse, "*", &good, None), Score { passed: 1, failures: vec![] });
        for bad in [
            boot(broken_off(panicked(), "something else")),
            boot(broken_off(Ending::NoVerdict, "no remapping unit")),
            Outcome {
                tests: vec![("a".into(), Ok(()))],
                ..boot(broken_off(panicked(), "no remapping unit"))
            },
            outcome(&[("a", true)], &[]),
        ] {
            assert_eq!(failures(&refuse, &bad, None), ["refuses to boot"]);
        }
    }

    #[test]
    fn the_others_must_have_run() {
        let cut_off = outcome(&[("a", true), ("b::crash", false)], &[]);
        assert_eq!(failures(&CRASH, &cut_off, None), ["the others run in spite of b::crash"]);
        let known: BTreeSet<String> = ["a", "c", "d"].map(String::from).into();
        let one_missing = outcome(&[("a", true), ("b::crash", false), ("c", true)], &[]);
        let score = judge(&CRASH, "*", &one_missing, Some(&known));
        assert_eq!(score.failures[0].1, "did not run: d");
        // What the filter leaves out need not run.
        assert!(judge(&CRASH, "[!d]", &one_missing, Some(&known)).failures.is_empty());
        let all = outcome(&[("a", true), ("b::crash", false), ("c", true), ("d", true)], &[]);
        assert!(failures(&CRASH, &all, Some(&known)).is_empty());
    }
}
