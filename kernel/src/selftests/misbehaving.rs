//! Tests that misbehave when asked to, so that the tool that watches them can be tested.

use core::ptr;

use harness::{Context, DEFAULT_DEADLINE_MS, Failure, TestCase};
use x86::dtables::{DescriptorTablePointer, lidt};

use crate::{
    arch::{self, clock::NS_PER_S, interrupts},
    cmdline::Misbehaviour,
    sync::{IrqMutex, Rank},
};

static PANICS: TestCase = case("selftest::panics", panics);
static HANGS: TestCase = case("selftest::hangs", hangs);
static TRIPLE_FAULTS: TestCase = case("selftest::triple_faults", triple_faults);
static LOCK_ORDER: TestCase = case("selftest::takes_locks_out_of_order", takes_locks_out_of_order);
static UNMASKED_LOCK: TestCase =
    case("selftest::holds_a_lock_with_interrupts_on", holds_a_lock_with_interrupts_on);

const fn case(path: &'static str, run: fn(&Context<'_>) -> Result<(), Failure>) -> TestCase {
    TestCase { path, deadline_ms: DEFAULT_DEADLINE_MS, lacks: |_| None, run }
}

/// The test that misbehaves in the given way.
pub fn misbehaving(how: Misbehaviour) -> &'static TestCase {
    match how {
        Misbehaviour::Panic => &PANICS,
        Misbehaviour::Hang => &HANGS,
        Misbehaviour::TripleFault => &TRIPLE_FAULTS,
        Misbehaviour::LockOrder => &LOCK_ORDER,
        Misbehaviour::UnmaskedLock => &UNMASKED_LOCK,
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

/// No deadlock, as nobody else takes them: it is noticed all the same.
fn takes_locks_out_of_order(_context: &Context<'_>) -> Result<(), Failure> {
    let (first, second) = (IrqMutex::new(Rank::Device, ()), IrqMutex::new(Rank::WaitQueue, ()));
    let _held = second.lock();
    let _too_late = first.lock();
    Ok(())
}

/// The handler does not take that lock: it is noticed all the same.
fn holds_a_lock_with_interrupts_on(context: &Context<'_>) -> Result<(), Failure> {
    let lock = IrqMutex::new(Rank::Device, ());
    let _held = lock.lock();
    super::interrupts::send_to_self(interrupts::RESCHEDULE);
    let deadline_ns = context.now_ns() + NS_PER_S;
    // SAFETY: this is what must not be done, and ends the machine as it should; no handler takes this lock.
    unsafe { arch::enable() };
    while context.now_ns() < deadline_ns {
        core::hint::spin_loop();
    }
    arch::disable();
    Ok(())
}

fn triple_faults(_context: &Context<'_>) -> Result<(), Failure> {
    arch::disable();
    // SAFETY: an empty table makes the next exception the machine's last, which is what is asked for.
    unsafe {
        lidt(&DescriptorTablePointer::<u64> { limit: 0, base: ptr::null() });
        core::arch::asm!("ud2", options(noreturn));
    }
}
