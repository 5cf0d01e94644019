use std::{string::String, sync::Mutex, vec, vec::Vec};

use super::*;
use crate::Failure;

#[derive(Default)]
struct Recorder {
    console: Mutex<String>,
    control: Mutex<Vec<String>>,
    armed_for_ns: Mutex<Option<u64>>,
}

impl Machine for Recorder {
    fn print(&self, text: fmt::Arguments<'_>) {
        self.console.lock().unwrap().push_str(&std::format!("{text}"));
    }

    fn send(&self, line: fmt::Arguments<'_>) {
        self.control.lock().unwrap().push(std::format!("{line}"));
    }

    fn now_ns(&self) -> u64 {
        500
    }

    fn arm_watchdog(&self, deadline_ns: u64) {
        *self.armed_for_ns.lock().unwrap() = Some(deadline_ns);
    }

    fn disarm_watchdog(&self) {
        *self.armed_for_ns.lock().unwrap() = None;
    }
}

const fn case(path: &'static str, run: fn(&Context<'_>) -> Result<(), Failure>) -> TestCase {
    TestCase { path, deadline_ms: 3, lacks: |_| None, run }
}

static ALPHA: TestCase = case("suites::disk::alpha", |context| {
    let recorder = context.environment::<&Recorder>().unwrap();
    assert_eq!(*recorder.armed_for_ns.lock().unwrap(), Some(3_000_500));
    assert_eq!(running().unwrap().name(), "disk::alpha");
    Ok(())
});
static BETA: TestCase = case("suites::disk::beta", |_| {
    crate::check_eq!(1 + 1, 3);
    Ok(())
});
static GAMMA: TestCase = case("kernel::tests::memory::gamma", |_| Err(Failure::new("two\nlines")));
static ABSENT: TestCase = TestCase {
    path: "edu::absent",
    deadline_ms: 1,
    lacks: |_| Some("the device"),
    run: |_| panic!("was run"),
};

static ALL: [&TestCase; 4] = [&GAMMA, &BETA, &ABSENT, &ALPHA];
const EVERYTHING: Selection<'_> = Selection { glob: "*", from: None, after: None };

/// One at a time: the test that runs is global.
static TURN: Mutex<()> = Mutex::new(());

fn run(selection: &Selection<'_>) -> (Totals, String, Vec<String>) {
    static RECORDER: Recorder = Recorder {
        console: Mutex::new(String::new()),
        control: Mutex::new(Vec::new()),
        armed_for_ns: Mutex::new(None),
    };
    let _turn = TURN.lock().unwrap();
    let environment: &Recorder = &RECORDER;
    let totals = run_tests(&ALL, selection, &Context::new(&RECORDER, &environment));
    assert!(running().is_none());
    assert_eq!(*RECORDER.armed_for_ns.lock().unwrap(), None);
    let console = core::mem::take(&mut *RECORDER.console.lock().unwrap());
    (totals, console, core::mem::take(&mut *RECORDER.control.lock().unwrap()))
}

#[test]
fn a_run_reports_every_test_in_order() {
    let (totals, console, control) = run(&EVERYTHING);
    assert_eq!(totals, Totals { passed: 1, failed: 2 });
    let lines: Vec<&str> = console.lines().collect();
    assert_eq!(lines[0], "test disk::alpha ... ok");
    assert!(lines[1].starts_with("test disk::beta ... FAILED (1 + 1 is 2, not 3 (tests.rs:"), "{}", lines[1]);
    assert_eq!(lines[2], "test edu::absent ... skipped (this machine lacks the device)");
    assert_eq!(lines.last(), Some(&"1 passed, 2 failed"));
    assert_eq!(control[..2], ["begin disk::alpha", "ok disk::alpha"]);
    assert_eq!(
        control[4..],
        ["skip edu::absent the device", "begin memory::gamma", "fail memory::gamma two lines", "done 1 2"]
    );
}

#[test]
fn a_run_can_start_anywhere() {
    let names = |selection: Selection<'_>| -> Vec<String> {
        let (.., control) = run(&selection);
        control.iter().filter_map(|line| line.strip_prefix("begin ")).map(String::from).collect()
    };
    assert_eq!(names(Selection { from: Some("disk::b"), ..EVERYTHING }), ["disk::beta", "memory::gamma"]);
    assert_eq!(names(Selection { from: Some("disk::beta"), ..EVERYTHING }), ["disk::beta", "memory::gamma"]);
    assert_eq!(names(Selection { after: Some("disk::beta"), ..EVERYTHING }), ["memory::gamma"]);
    assert_eq!(names(Selection { glob: "disk::*", ..EVERYTHING }), ["disk::alpha", "disk::beta"]);
    assert_eq!(names(Selection { glob: "none", ..EVERYTHING }), Vec::<String>::new());
}

#[test]
fn a_test_ended_from_outside_is_charged_by_name() {
    static ENDED: TestCase = case("suites::late::ended", |context| {
        fail_running(context.machine, format_args!("took {} ms", 3));
        Ok(())
    });
    let _turn = TURN.lock().unwrap();
    let recorder = Recorder::default();
    let context = Context::new(&recorder, &());
    RUNNING.store(ptr::from_ref(&ENDED).cast_mut(), Ordering::Release);
    (ENDED.run)(&context).unwrap();
    RUNNING.store(ptr::null_mut(), Ordering::Release);
    assert_eq!(*recorder.console.lock().unwrap(), "test late::ended ... FAILED (took 3 ms)\n");
    assert_eq!(*recorder.control.lock().unwrap(), vec!["fail late::ended took 3 ms"]);
    fail_running(&recorder, format_args!("nothing runs"));
    assert_eq!(recorder.control.lock().unwrap().len(), 1);
}
