//! The watching of a boot, with a shell script in QEMU's place.

use super::*;
use crate::workspace::Workspace;

const PATIENT: Limits = Limits {
    silence: Duration::from_secs(20),
    total: Duration::from_secs(60),
    interactive: false,
    cut: None,
    hands: None,
    typed: &[],
};

/// Runs `script` as QEMU; `$console` and `$control` are its files.
fn watch_script(name: &str, script: &str, limits: Limits) -> Report {
    let folder = Workspace::locate().unwrap().scratch("unit-tests").unwrap().join(name);
    fs::create_dir_all(&folder).unwrap();
    let logs = Logs::within(&folder);
    // What an earlier boot left must not be taken for this one's.
    fs::write(&logs.control, "begin stale\nok stale\ndone 1 0\n").unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", script]).env("console", &logs.console).env("control", &logs.control);
    let report = watch(command, &logs, Some(limits)).unwrap();
    fs::remove_dir_all(folder).unwrap();
    report
}

#[test]
fn exit_codes_become_endings() {
    for (code, ending) in [
        (0, Ending::NoVerdict),
        (33, Ending::Guest(Verdict::Passed)),
        (35, Ending::Guest(Verdict::TestsFailed)),
        (37, Ending::Guest(Verdict::Panicked)),
        (39, Ending::Guest(Verdict::DeadlineMissed)),
    ] {
        assert_eq!(watch_script(&format!("exit-{code}"), &format!("exit {code}"), PATIENT).ending, ending);
    }
    // QEMU's own failure, a verdict that nobody defined, and a QEMU that something killed.
    for (name, script) in [("own", "exit 1"), ("undefined", "exit 41"), ("killed", "kill -9 $$")] {
        assert!(matches!(watch_script(name, script, PATIENT).ending, Ending::Qemu(_)), "{script}");
    }
}

#[test]
fn the_record_is_this_boots_own() {
    let report = watch_script("record", "printf 'begin a\\nok a\\ndone 1 0\\n' > $control; exit 33", PATIENT);
    assert_eq!(report.record.results, [("a".to_string(), Ok(()))]);
    let nothing = watch_script("nothing", "exit 1", PATIENT);
    assert!(nothing.record.results.is_empty() && nothing.record.done.is_none());
}

#[test]
fn what_qemu_says_is_kept_where_it_failed() {
    let report = watch_script("refused", "echo 'no such device' >&2; exit 1", PATIENT);
    assert_eq!(report.last_lines, ["no such device"]);
    let report = watch_script("comments", "echo comment >&2; echo end > $console; exit 33", PATIENT);
    assert_eq!(report.last_lines, ["end"]);
}

#[test]
fn a_silent_guest_is_ended_and_its_last_lines_are_kept() {
    let limits = Limits { silence: Duration::from_millis(300), ..PATIENT };
    let script = "seq 1 100 > $console; echo 'begin a' > $control; exec sleep 1000";
    let started = Instant::now();
    let report = watch_script("silent", script, limits);
    assert_eq!(report.ending, Ending::Overrun(Overrun::Silent(limits.silence)));
    assert!(started.elapsed() < Duration::from_secs(15));
    assert_eq!(report.record.open.as_deref(), Some("a"));
    assert_eq!(report.last_lines.len(), TAIL_LINES);
    assert_eq!(report.last_lines.last().unwrap(), "100");
}

#[test]
fn a_guest_that_talks_for_ever_meets_the_total_limit() {
    let limits = Limits { total: Duration::from_millis(700), ..PATIENT };
    let report = watch_script("chatty", "while :; do echo x >> $console; sleep 0.05; done", limits);
    assert_eq!(report.ending, Ending::Overrun(Overrun::Total(limits.total)));
}

#[test]
fn a_guest_that_goes_on_talking_is_not_silent() {
    let limits = Limits { silence: Duration::from_millis(1500), ..PATIENT };
    let script = "for i in 1 2 3 4 5 6; do echo x >> $console; sleep 0.5; done; exit 33";
    assert_eq!(watch_script("talking", script, limits).ending, Ending::Guest(Verdict::Passed));
}

#[test]
fn a_qemu_that_ignores_the_request_to_end_is_killed() {
    let limits = Limits { silence: Duration::from_millis(200), ..PATIENT };
    // Short sleeps: what the killed shell leaves behind must not outlive the test by much.
    let report = watch_script("stubborn", "trap '' TERM; while :; do sleep 0.2; done", limits);
    assert_eq!(report.ending, Ending::Overrun(Overrun::Silent(limits.silence)));
}

#[test]
fn once_the_tests_are_done_an_interactive_guest_has_all_the_time() {
    let limits = Limits { silence: Duration::from_millis(400), interactive: true, ..PATIENT };
    let script = "echo 'done 0 0' > $control; sleep 1.5; exit 33";
    assert_eq!(watch_script("shell", script, limits).ending, Ending::Guest(Verdict::Passed));
    let script = "echo 'begin a' > $control; exec sleep 30";
    let overrun = Ending::Overrun(Overrun::Silent(limits.silence));
    assert_eq!(watch_script("no-shell", script, limits).ending, overrun);
}

#[test]
fn the_power_goes_some_time_after_what_it_waits_for() {
    let cut = Cut { key: "flushed", reports: 2, then: Duration::from_millis(300) };
    let limits = Limits { cut: Some(cut), ..PATIENT };
    // Who could still do something when asked to end would write a third value.
    let script = "trap 'echo value flushed 3 >> $control; exit 0' TERM\n\
         printf 'begin a\\nvalue other 1\\nvalue flushed 1\\n' > $control\n\
         sleep 1; echo 'value flushed 2' >> $control; while :; do sleep 0.05; done";
    let started = Instant::now();
    let report = watch_script("cut", script, limits);
    assert_eq!(report.ending, Ending::Overrun(Overrun::Cut));
    assert!(started.elapsed() >= Duration::from_millis(1300));
    assert_eq!(report.record.values.len(), 3);
    // A guest that ends before is no power cut.
    let early = watch_script("cut-early", "echo 'value flushed 1' > $control; exit 33", limits);
    assert_eq!(early.ending, Ending::Guest(Verdict::Passed));
}
