//! Tests that misbehave when asked to, so that the tool that watches them can be tested.

use alloc::boxed::Box;
use core::ptr;

use harness::{Context, DEFAULT_DEADLINE_MS, Failure, TestCase};
use x86::dtables::{DescriptorTablePointer, lidt};

use crate::{
    arch::{
        self,
        clock::NS_PER_S,
        interrupts::{self, Handler},
    },
    cmdline::Misbehaviour,
    sync::{IrqMutex, Rank},
};

static PANICS: TestCase = case("selftest::panics", panics);
static HANGS: TestCase = case("selftest::hangs", hangs);
static TRIPLE_FAULTS: TestCase = case("selftest::triple_faults", triple_faults);
static LOCK_ORDER: TestCase = case("selftest::takes_locks_out_of_order", takes_locks_out_of_order);
static UNMASKED_LOCK: TestCase =
    case("selftest::holds_a_lock_with_interrupts_on", holds_a_lock_with_interrupts_on);
static ALLOCATING_HANDLER: TestCase = case("selftest::allocates_in_an_interrupt", allocates_in_an_interrupt);
static LOGGING_HANDLER: TestCase = case("selftest::logs_in_an_interrupt", logs_in_an_interrupt);

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
        Misbehaviour::AllocatingHandler => &ALLOCATING_HANDLER,
        Misbehaviour::LoggingHandler => &LOGGING_HANDLER,
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

/// Memory is there, and nobody holds the heap's lock: it is noticed all the same.
fn allocates_in_an_interrupt(context: &Context<'_>) -> Result<(), Failure> {
    in_an_interrupt(context, Box::new(|| drop(core::hint::black_box(Box::new(0_u64)))))
}

/// A line is harmless: it is noticed all the same.
fn logs_in_an_interrupt(context: &Context<'_>) -> Result<(), Failure> {
    in_an_interrupt(context, Box::new(|| log::warn!("from a handler")))
}

/// Lets `handler` run once, in an interrupt.
fn in_an_interrupt(context: &Context<'_>, handler: Handler) -> Result<(), Failure> {
    let vector = interrupts::allocate(handler).ok_or_else(|| harness::failure!("no vector is free"))?;
    let arrived = interrupts::arrived(vector.number());
    super::interrupts::send_to_self(vector.number());
    let deadline_ns = context.now_ns() + NS_PER_S;
    while interrupts::arrived(vector.number()) == arrived && context.now_ns() < deadline_ns {
        core::hint::spin_loop();
    }
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
