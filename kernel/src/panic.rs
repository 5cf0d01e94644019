//! The end by accident: what is printed, and how the machine stops.

use core::{
    fmt,
    panic::PanicInfo,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use crate::{
    arch::{self, Cpu, ExitCode, backtrace},
    console, testing, threads,
};

static REPORTING: AtomicBool = AtomicBool::new(false);

/// A report of a panic or a fatal exception: made line by line, it ends the machine.
#[must_use]
pub struct Report(());

impl Report {
    /// Begins a report. If that happens while another one is being made, the machine ends at once.
    pub fn begin() -> Self {
        arch::disable();
        if REPORTING.swap(true, Relaxed) {
            console::print_at_end(format_args!("\nanother failure while one was being reported\n"));
            arch::exit(ExitCode::Panic);
        }
        let report = Self(());
        report.line(format_args!(""));
        report
    }

    /// Adds a line.
    pub fn line(&self, text: fmt::Arguments<'_>) {
        console::print_at_end(format_args!("{text}\n"));
    }

    /// Adds return addresses.
    pub fn backtrace(&self, addresses: impl Iterator<Item = u64>) {
        self.line(format_args!("backtrace of thread {}:", threads::current_name()));
        for (depth, address) in addresses.enumerate() {
            self.line(format_args!("  #{depth} {address:#x}"));
        }
    }

    /// Charges the test that runs, if one does, and ends the machine.
    pub fn end(self, reason: fmt::Arguments<'_>) -> ! {
        testing::fail_running(reason);
        arch::exit(ExitCode::Panic)
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let report = Report::begin();
    let cpu = Cpu::current().index();
    match info.location() {
        Some(location) => report.line(format_args!("panic on cpu {cpu} at {location}: {}", info.message())),
        None => report.line(format_args!("panic on cpu {cpu}: {}", info.message())),
    }
    report.backtrace(backtrace::here());
    report.end(format_args!("panic: {}", info.message()))
}
