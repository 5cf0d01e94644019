//! The kernel's side of the test harness.

use core::{any::Any, fmt};

use harness::{Context, Machine, Selection, TestCase, Totals};

use crate::{
    arch::{self, ExitCode, clock},
    cmdline, console, control,
    panic::Report,
    threads,
};

/// The kernel as the runner sees it.
struct Kernel;

impl Machine for Kernel {
    fn print(&self, text: fmt::Arguments<'_>) {
        console::print(text);
    }

    fn send(&self, line: fmt::Arguments<'_>) {
        control::send(line);
    }

    fn now_ns(&self) -> u64 {
        clock::now_ns()
    }

    fn arm_watchdog(&self, deadline_ns: u64) {
        threads::set_watchdog(deadline_ns);
    }

    fn disarm_watchdog(&self) {
        threads::clear_watchdog();
    }
}

/// The kernel where a test has ended it: the console's lock may be held for ever.
struct DyingKernel;

impl Machine for DyingKernel {
    fn print(&self, text: fmt::Arguments<'_>) {
        console::print_at_end(text);
    }

    fn send(&self, line: fmt::Arguments<'_>) {
        control::send_at_end(line);
    }

    fn now_ns(&self) -> u64 {
        clock::now_ns()
    }

    fn arm_watchdog(&self, _deadline_ns: u64) {}

    fn disarm_watchdog(&self) {}
}

/// Runs the tests that are asked for, of all that there are and the `extra` ones that the command line adds.
/// `environment` is what they get to see of the machine.
pub fn run(
    selection: cmdline::Selection<'_>,
    extra: impl Iterator<Item = &'static TestCase>,
    environment: &(dyn Any + Sync),
) -> Totals {
    let cmdline::Selection { glob, from, after } = selection;
    let registered = harness::tests().iter().copied();
    let cases: alloc::vec::Vec<&TestCase> = registered.chain(extra).collect();
    harness::run_tests(&cases, &Selection { glob, from, after }, &Context::new(&Kernel, environment))
}

/// Runs the benchmarks that `glob` matches. Returns how many failed.
pub fn bench(glob: &str, environment: &(dyn Any + Sync)) -> usize {
    harness::run_benches(harness::benches(), glob, &Context::new(&Kernel, environment))
}

/// Names of the registered tests, sorted.
pub fn names() -> alloc::vec::Vec<&'static str> {
    let mut names: alloc::vec::Vec<_> = harness::tests().iter().map(|case| case.name()).collect();
    names.sort_unstable();
    names
}

/// Reports the test that runs as failed, if there is one: the machine is about to end.
pub fn fail_running(reason: fmt::Arguments<'_>) {
    harness::fail_running(&DyingKernel, reason);
}

/// The test that runs has taken too long. Called by the timer's interrupt, so that no test can keep it from coming but
/// by turning interrupts off.
pub fn deadline_missed() -> ! {
    let report = Report::begin();
    report.backtrace(arch::backtrace::here());
    report.other_cpus();
    let deadline_ms = harness::running().map_or(0, |case| case.deadline_ms);
    fail_running(format_args!("not over after {deadline_ms} ms"));
    arch::exit(ExitCode::DeadlineMissed)
}
