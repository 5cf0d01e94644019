//! Tests that misbehave when asked to, so that the tool that watches them can be tested.

use core::ptr;

use harness::{Context, DEFAULT_DEADLINE_MS, Failure, TestCase};
use x86::dtables::{DescriptorTablePointer, lidt};

use crate::{arch, cmdline::Misbehaviour};

static PANICS: TestCase = case("selftest::panics", panics);
static HANGS: TestCase = case("selftest::hangs", hangs);
static TRIPLE_FAULTS: TestCase = case("selftest::triple_faults", triple_faults);

const fn case(path: &'static str, run: fn(&Context<'_>) -> Result<(), Failure>) -> TestCase {
    TestCase { path, deadline_ms: DEFAULT_DEADLINE_MS, lacks: |_| None, run }
}

/// The test that misbehaves in the given way.
pub fn misbehaving(how: Misbehaviour) -> &'static TestCase {
    match how {
        Misbehaviour::Panic => &PANICS,
        Misbehaviour::Hang => &HANGS,
        Misbehaviour::TripleFault => &TRIPLE_FAULTS,
    }
}

fn panics(_context: &Context<'_>) -> Result<(), Failure> {
    panic!("as asked for");
}

/// With interrupts off, so that no watchdog of the kernel's own sees it but another CPU's.
fn hangs(_context: &Context<'_>) -> Result<(), Failure> {
    arch::disable();
    loop {
        core::hint::spin_loop();
    }
}

fn triple_faults(_context: &Context<'_>) -> Result<(), Failure> {
    arch::disable();
    // SAFETY: an empty table makes the next exception the machine's last, which is what is asked for.
    unsafe {
        lidt(&DescriptorTablePointer::<u64> { limit: 0, base: ptr::null() });
        core::arch::asm!("ud2", options(noreturn));
    }
}
