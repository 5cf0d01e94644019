//! Running tests and telling what came of them.

use alloc::vec::Vec;
use core::{
    fmt, ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use crate::{Context, Machine, TestCase, glob};

/// Which tests to run, in sorted order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Selection<'a> {
    /// Only those whose name the pattern matches.
    pub glob: &'a str,
    /// Only this one and those sorted after it.
    pub from: Option<&'a str>,
    /// Only those sorted after this one.
    pub after: Option<&'a str>,
}

impl Selection<'_> {
    fn includes(&self, name: &str) -> bool {
        glob::matches(self.glob, name)
            && self.from.is_none_or(|first| name >= first)
            && self.after.is_none_or(|last| name > last)
    }
}

/// What came of a run.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Totals {
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
}

/// The test that runs, for whoever ends it.
static RUNNING: AtomicPtr<TestCase> = AtomicPtr::new(ptr::null_mut());

/// The test that runs.
pub fn running() -> Option<&'static TestCase> {
    // SAFETY: only `run_tests` stores here, and only pointers to static cases.
    unsafe { RUNNING.load(Ordering::Acquire).as_ref() }
}

/// Reports the test that runs as failed. For what ends a test from outside, and the machine with it.
pub fn fail_running(machine: &dyn Machine, reason: fmt::Arguments<'_>) {
    if let Some(case) = running() {
        report_failure(machine, case.name(), reason);
    }
}

/// Runs those of `cases` that are selected, sorted by name, and reports each.
pub fn run_tests(cases: &[&'static TestCase], selection: &Selection<'_>, context: &Context<'_>) -> Totals {
    let machine = context.machine;
    let mut selected: Vec<_> = cases.iter().filter(|case| selection.includes(case.name())).copied().collect();
    selected.sort_unstable_by_key(|case| case.name());
    let mut totals = Totals::default();
    for case in selected {
        let name = case.name();
        if let Some(lack) = (case.lacks)(context) {
            machine.print(format_args!("test {name} ... skipped (this machine lacks {lack})\n"));
            machine.send(format_args!("skip {name} {lack}"));
        } else if run_one(case, context) {
            totals.passed += 1;
        } else {
            totals.failed += 1;
        }
    }
    let Totals { passed, failed } = totals;
    machine.print(format_args!("{passed} passed, {failed} failed\n"));
    machine.send(format_args!("done {passed} {failed}"));
    totals
}

fn run_one(case: &'static TestCase, context: &Context<'_>) -> bool {
    const NS_PER_MS: u64 = 1_000_000;
    let (machine, name) = (context.machine, case.name());
    machine.send(format_args!("begin {name}"));
    RUNNING.store(ptr::from_ref(case).cast_mut(), Ordering::Release);
    machine.arm_watchdog(machine.now_ns().saturating_add(case.deadline_ms * NS_PER_MS));
    let result = (case.run)(context);
    machine.disarm_watchdog();
    RUNNING.store(ptr::null_mut(), Ordering::Release);
    match &result {
        Ok(()) => {
            machine.print(format_args!("test {name} ... ok\n"));
            machine.send(format_args!("ok {name}"));
        }
        Err(failure) => report_failure(machine, name, format_args!("{failure}")),
    }
    result.is_ok()
}

fn report_failure(machine: &dyn Machine, name: &str, reason: fmt::Arguments<'_>) {
    machine.print(format_args!("test {name} ... FAILED ({reason})\n"));
    machine.send(format_args!("fail {name} {}", OneLine(reason)));
}

/// Text with its line ends turned into spaces.
struct OneLine<'a>(fmt::Arguments<'a>);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Joined<'a, 'b>(&'a mut fmt::Formatter<'b>);
        impl fmt::Write for Joined<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                for (index, line) in text.split(['\r', '\n']).enumerate() {
                    if index > 0 {
                        self.0.write_str(" ")?;
                    }
                    self.0.write_str(line)?;
                }
                Ok(())
            }
        }
        fmt::write(&mut Joined(f), self.0)
    }
}

#[cfg(test)]
mod tests;
