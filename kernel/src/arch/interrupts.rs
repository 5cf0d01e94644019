//! Vectors above the exceptions: who handles which, and what happens when one arrives.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use x86::{io::inb, irq::NONMASKABLE_INTERRUPT_VECTOR};

use super::{apic, apic_errors, cpu::Cpu, device_rate, idt::VECTORS};
use crate::{
    smp,
    sync::{IrqMutex, Rank},
    threads,
};

/// The legacy interrupt controllers, masked for good, are moved here: a spurious interrupt of theirs does no harm.
pub const LEGACY_BASE: u8 = 0x20;
/// Vectors given out by [`allocate`], lowest first. The APIC serves higher vectors first.
const DYNAMIC: core::ops::Range<u8> = 0x30..0xf0;
/// The timer of the local APIC.
pub const TIMER: u8 = 0xf0;
/// Another CPU has something for this one to do.
pub const RESCHEDULE: u8 = 0xf1;
/// Another CPU changed the address space.
pub const FLUSH: u8 = 0xf2;
/// How programs call the kernel. Nothing raises it.
pub const CALL: u8 = abi::VECTOR;
/// The local APIC's error interrupt.
pub const APIC_ERROR: u8 = 0xfe;
/// What the local APIC delivers when an interrupt went away before it was taken. Not acknowledged.
pub const SPURIOUS: u8 = 0xff;

/// What to do when a vector arrives: runs with interrupts off, must not block or allocate.
pub type Handler = Box<dyn Fn() + Send + Sync>;

/// A handler, and whether its vector is a device's, which may be raised too often.
struct Slot {
    handler: Handler,
    is_of_device: bool,
}

static HANDLERS: [IrqMutex<Option<Slot>>; VECTORS] = [const { IrqMutex::new(Rank::Handler, None) }; VECTORS];
static ARRIVED: [AtomicU64; VECTORS] = [const { AtomicU64::new(0) }; VECTORS];
static UNEXPECTED: AtomicU64 = AtomicU64::new(0);

/// A vector with a handler. Dropping it frees the vector: after that the handler neither runs nor is running.
///
/// Its device must no longer raise it then, or the interrupt counts as unexpected, or as the next owner's.
#[derive(Debug)]
pub struct Vector(u8);

impl Vector {
    /// The number that a message carries.
    pub fn number(&self) -> u8 {
        self.0
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        // Out of the lock first: dropping a handler may free memory, whose locks come later.
        let slot = HANDLERS[usize::from(self.0)].lock().take();
        drop(slot);
    }
}

/// A free vector, with `handler` installed; `None` if there is none.
///
/// The handler runs in the interrupt, under a lock of its vector: it must be short, and must not block, allocate or
/// free, nor allocate vectors.
pub fn allocate(handler: Handler) -> Option<Vector> {
    put(Slot { handler, is_of_device: false })
}

/// As [`allocate`], for a device: one that raises the vector too often is [heard of less often](device_rate).
pub fn allocate_for_device(handler: Handler) -> Option<Vector> {
    put(Slot { handler, is_of_device: true })
}

fn put(new: Slot) -> Option<Vector> {
    for vector in DYNAMIC {
        let mut slot = HANDLERS[usize::from(vector)].lock();
        if slot.is_none() {
            *slot = Some(new);
            return Some(Vector(vector));
        }
    }
    None
}

/// Whether `vector` has a handler, or a meaning of its own.
pub fn is_used(vector: u8) -> bool {
    matches!(vector, 0..LEGACY_BASE | TIMER | RESCHEDULE | FLUSH | CALL | APIC_ERROR | SPURIOUS)
        || HANDLERS[usize::from(vector)].lock().is_some()
}

/// How often `vector` arrived.
pub fn arrived(vector: u8) -> u64 {
    ARRIVED[usize::from(vector)].load(Relaxed)
}

/// How many interrupts arrived that nobody had asked for.
pub fn unexpected() -> u64 {
    UNEXPECTED.load(Relaxed)
}

/// An interrupt arrived.
pub(super) fn dispatch(vector: u8) {
    let cpu = Cpu::current();
    debug_assert!(cpu.held_locks.is_empty(), "interrupt {vector:#x} came while locks were held");
    cpu.end_idle();
    cpu.enter_interrupt();
    ARRIVED[usize::from(vector)].fetch_add(1, Relaxed);
    let mut is_of_device = false;
    match vector {
        TIMER => threads::timer_interrupt(),
        RESCHEDULE => cpu.request_reschedule(),
        FLUSH => smp::serve_flush(),
        SPURIOUS => {}
        APIC_ERROR => match apic::take_errors() {
            0 => count_unexpected(),
            errors => apic_errors::record(errors),
        },
        vector => is_of_device = run_handler(vector),
    }
    // An `int` instruction raises a vector without the APIC: acknowledging it would acknowledge another interrupt.
    if apic::in_service(vector) && !(is_of_device && is_put_off(cpu, vector)) {
        apic::acknowledge();
    }
    if vector == TIMER {
        // Nothing else is in service by now.
        (0..cpu.device_rate.take_in_service()).for_each(|_| apic::acknowledge());
    }
    cpu.leave_interrupt();
    if cpu.take_reschedule() {
        threads::preempt();
    }
}

/// Whether `vector`, an exception's, is an interrupt: some device raised it, and nothing stopped it. It is counted and
/// acknowledged then. No thread is preempted: the handler may be on a stack that belongs to this CPU.
pub(super) fn is_stray(vector: u8) -> bool {
    let stray = apic::in_service(vector);
    if stray {
        ARRIVED[usize::from(vector)].fetch_add(1, Relaxed);
        UNEXPECTED.fetch_add(1, Relaxed);
        apic::acknowledge();
    }
    stray
}

/// Whether a non-maskable interrupt has no cause that the chip set knows of. A device can raise one where interrupts
/// are not remapped. It is counted then.
pub(super) fn is_stray_nmi() -> bool {
    const SYSTEM_CONTROL: u16 = 0x61;
    const SYSTEM_ERROR: u8 = 1 << 7;
    const CHANNEL_CHECK: u8 = 1 << 6;
    // SAFETY: reading the port tells and changes nothing else.
    let status = unsafe { inb(SYSTEM_CONTROL) };
    let stray = status & (SYSTEM_ERROR | CHANNEL_CHECK) == 0;
    if stray {
        ARRIVED[usize::from(NONMASKABLE_INTERRUPT_VECTOR)].fetch_add(1, Relaxed);
        UNEXPECTED.fetch_add(1, Relaxed);
    }
    stray
}

/// Returns whether the vector is a device's.
fn run_handler(vector: u8) -> bool {
    match &*HANDLERS[usize::from(vector)].lock() {
        Some(Slot { handler, is_of_device }) => {
            handler();
            *is_of_device
        }
        None => {
            count_unexpected();
            false
        }
    }
}

/// Whether devices interrupt `cpu`, which is this one, too often, so that it acknowledges `vector` with its timer's
/// next interrupt.
fn is_put_off(cpu: &Cpu, vector: u8) -> bool {
    let entered_ns = cpu.device_rate.enter(vector);
    if let Some(now_ns) = entered_ns {
        threads::arm_timer_at(now_ns.saturating_add(device_rate::WINDOW_NS));
    }
    entered_ns.is_some()
}

fn count_unexpected() {
    UNEXPECTED.fetch_add(1, Relaxed);
}
