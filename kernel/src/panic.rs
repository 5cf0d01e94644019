//! The end by accident: what is printed, and how the machine stops.

use core::{
    fmt,
    panic::PanicInfo,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::{
    arch::{self, Cpu, ExitCode, backtrace},
    console, smp, testing, threads,
};

/// The CPU that reports, plus one; 0 if none does.
static REPORTER: AtomicUsize = AtomicUsize::new(0);

/// A report of a panic or a fatal exception: made line by line, it ends the machine.
#[must_use]
pub struct Report(());

impl Report {
    /// Stops all other CPUs and begins a report. If this CPU is making one already, the machine ends at once; if
    /// another is, this CPU just stops.
    pub fn begin() -> Self {
        arch::disable();
        let this = Cpu::current().index() + 1;
        match REPORTER.compare_exchange(0, this, Relaxed, Relaxed) {
            Ok(_) => {}
            Err(reporter) if reporter == this => {
                console::print_at_end(format_args!("\nanother failure while one was being reported\n"));
                arch::exit(ExitCode::Panic);
            }
            Err(_) => smp::stop_here(),
        }
        smp::stop_others();
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
        self.addresses(addresses);
    }

    fn addresses(&self, addresses: impl Iterator<Item = u64>) {
        for (depth, address) in addresses.enumerate() {
            self.line(format_args!("  #{depth} {address:#x}"));
        }
    }

    /// Adds where the other CPUs were.
    pub fn other_cpus(&self) {
        let this = Cpu::current().index();
        for cpu in smp::online().filter(|cpu| cpu.index() != this) {
            if !cpu.is_stopped() {
                self.line(format_args!("cpu {} did not stop", cpu.index()));
                continue;
            }
            self.line(format_args!("cpu {} was in thread {}:", cpu.index(), threads::name_on(cpu)));
            let [rip, rbp] = cpu.stopped_at();
            self.addresses(backtrace::from_frame(rip, rbp));
        }
    }

    /// Charges the test that runs, if one does, and ends the machine.
    pub fn end(self, reason: fmt::Arguments<'_>) -> ! {
        self.other_cpus();
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
