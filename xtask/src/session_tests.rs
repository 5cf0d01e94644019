//! The restart protocol against guests that are lists of what each boot reports.

use std::time::Duration;

use super::*;
use crate::boot::Overrun;
use crate::control::Record;

const HUNG: Ending = Ending::Overrun(Overrun::Silent(Duration::from_secs(1)));

/// Plays boots that report these lines and end so; returns the outcome and what each boot was asked to start after.
fn play_boots(boots: &[(&str, Ending)]) -> (Outcome, Vec<Option<String>>) {
    let mut asked = Vec::new();
    let outcome = play(|after| {
        asked.push(after.map(String::from));
        let (lines, ending) = boots.get(asked.len() - 1).expect("a boot too many");
        let record = Record::read(lines.as_bytes());
        Ok((
            Report {
                ending: ending.clone(),
                record,
                typed: Vec::new(),
                last_lines: vec!["last line".into()],
            },
            Vec::new(),
        ))
    });
    (outcome.unwrap(), asked)
}

fn passed(outcome: &Outcome) -> Vec<&str> {
    outcome.tests.iter().filter(|(_, verdict)| verdict.is_ok()).map(|(name, _)| name.as_str()).collect()
}

fn failed(outcome: &Outcome) -> Vec<&str> {
    let all = outcome.tests.iter().chain(&outcome.checks);
    all.filter(|(_, verdict)| verdict.is_err()).map(|(name, _)| name.as_str()).collect()
}

#[test]
fn a_run_without_trouble_is_one_boot() {
    let (outcome, _) =
        play_boots(&[("begin a\nok a\nbegin b\nok b\ndone 2 0\n", Ending::Guest(GuestVerdict::Passed))]);
    assert_eq!((passed(&outcome), failed(&outcome), outcome.boots), (vec!["a", "b"], vec![], 1));
    assert!(outcome.broken_off.is_empty());
}

#[test]
fn a_failing_test_that_lets_the_others_go_on_needs_no_second_boot() {
    let lines = "begin a\nfail a because\nbegin b\nok b\ndone 1 1\n";
    let (outcome, _) = play_boots(&[(lines, Ending::Guest(GuestVerdict::TestsFailed))]);
    assert_eq!((passed(&outcome), failed(&outcome), outcome.boots), (vec!["b"], vec!["a"], 1));
}

#[test]
fn a_test_that_takes_the_guest_down_is_charged_and_the_next_boot_starts_after_it() {
    for ending in
        [Ending::Guest(GuestVerdict::Panicked), Ending::NoVerdict, HUNG, Ending::Qemu("signal: 6".into())]
    {
        let (outcome, asked) = play_boots(&[
            ("begin a\nok a\nbegin b\n", ending),
            ("begin c\nok c\ndone 1 0\n", Ending::Guest(GuestVerdict::Passed)),
        ]);
        assert_eq!((passed(&outcome), failed(&outcome)), (vec!["a", "c"], vec!["b"]));
        assert_eq!(asked, [None, Some("b".to_string())]);
        assert_eq!(outcome.broken_off.len(), 1);
    }
}

#[test]
fn a_test_that_reported_its_failure_before_the_guest_ended_counts_once() {
    for verdict in [GuestVerdict::Panicked, GuestVerdict::DeadlineMissed] {
        let (outcome, asked) = play_boots(&[
            ("begin a\nfail a deadline\n", Ending::Guest(verdict)),
            ("done 0 0\n", Ending::Guest(GuestVerdict::Passed)),
        ]);
        assert_eq!((passed(&outcome), failed(&outcome)), (vec![], vec!["a"]));
        assert_eq!(asked[1].as_deref(), Some("a"));
    }
}

#[test]
fn a_guest_that_stops_between_tests_or_says_too_little_is_a_failure() {
    let (outcome, _) = play_boots(&[
        ("begin a\nok a\n", HUNG),
        ("begin b\nok b\ndone 1 0\n", Ending::Guest(GuestVerdict::Passed)),
    ]);
    assert_eq!((passed(&outcome), failed(&outcome)), (vec!["a", "b"], vec!["after a"]));
    // Good results and a good exit code, but no `done`: not all may have run.
    let (outcome, _) = play_boots(&[
        ("begin a\nok a\n", Ending::Guest(GuestVerdict::Passed)),
        ("done 0 0\n", Ending::Guest(GuestVerdict::Passed)),
    ]);
    assert_eq!(failed(&outcome), ["after a"]);
}

#[test]
fn an_exit_code_that_belies_the_results_is_a_failure() {
    for (lines, ending) in [
        ("begin a\nok a\ndone 1 0\n", Ending::Guest(GuestVerdict::TestsFailed)),
        ("begin a\nok a\ndone 1 0\n", Ending::Guest(GuestVerdict::Panicked)),
        ("begin a\nok a\ndone 1 0\n", Ending::NoVerdict),
        ("begin a\nok a\ndone 1 0\n", HUNG),
    ] {
        let (outcome, _) = play_boots(&[(lines, ending)]);
        assert_eq!((passed(&outcome), failed(&outcome)), (vec!["a"], vec!["end of the run"]));
    }
    let lines = "begin a\nfail a x\ndone 0 1\n";
    let (outcome, _) = play_boots(&[(lines, Ending::Guest(GuestVerdict::Passed))]);
    assert_eq!(failed(&outcome), ["a", "end of the run"]);
}

#[test]
fn a_kernel_that_begins_no_test_is_not_booted_again() {
    let (outcome, _) = play_boots(&[("", Ending::Guest(GuestVerdict::Panicked))]);
    assert_eq!((failed(&outcome), outcome.boots), (vec!["boot"], 1));
}

#[test]
fn a_guest_that_starts_over_is_stopped() {
    let (outcome, _) = play_boots(&[("begin a\nok a\nbegin b\n", HUNG), ("begin a\nok a\ndone 1 0\n", HUNG)]);
    assert_eq!(outcome.boots, 2);
    assert_eq!(failed(&outcome), ["b", "order of tests"]);
    assert_eq!(passed(&outcome), ["a"], "the second boot's results do not count twice");
}

#[test]
fn restarts_are_bounded() {
    let lines: Vec<String> = (0..MOST_BOOTS).map(|n| format!("begin t{n:03}\n")).collect();
    let boots: Vec<(&str, Ending)> = lines.iter().map(|line| (line.as_str(), HUNG)).collect();
    let (outcome, _) = play_boots(&boots);
    assert_eq!(outcome.boots, MOST_BOOTS);
    assert!(failed(&outcome).contains(&"restarts"));
}

#[test]
fn complaints_about_the_protocol_are_failures() {
    let (outcome, _) =
        play_boots(&[("begin a\nok a\nnonsense\ndone 1 0\n", Ending::Guest(GuestVerdict::Passed))]);
    assert_eq!(failed(&outcome), ["control channel"]);
}
