//! The local APIC of this CPU, by MSRs (x2APIC) or memory (xAPIC).

use core::{
    arch::asm,
    fmt,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use iommu::platform::MsiMessage;
use mm::PhysAddr;
use spin::Once;
use x86::{
    apic::xapic::{
        XAPIC_EOI, XAPIC_ESR, XAPIC_ICR0, XAPIC_ICR1, XAPIC_ID, XAPIC_ISR0, XAPIC_LVT_ERROR, XAPIC_LVT_LINT0,
        XAPIC_LVT_LINT1, XAPIC_LVT_TIMER, XAPIC_SVR, XAPIC_TIMER_CURRENT_COUNT, XAPIC_TIMER_DIV_CONF,
        XAPIC_TIMER_INIT_COUNT, XAPIC_TPR,
    },
    cpuid::CpuId,
    msr::{IA32_APIC_BASE, IA32_TSC_DEADLINE, rdmsr, wrmsr},
};

use super::{InterruptGuard, clock, cpu::Cpu, interrupts};
use crate::memory;

const BASE_X2APIC_ENABLE: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;
const SOFTWARE_ENABLE: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
const TIMER_TSC_DEADLINE: u32 = 0b10 << 17;
/// The timer counts the bus clock undivided.
const DIVIDE_BY_1: u32 = 0b1011;
const WINDOW_BYTES: usize = 4096;

/// How the registers are reached: the same way on all CPUs.
enum Access {
    /// The window of the CPU that executes the access.
    Memory(NonNull<u32>),
    /// MSR 0x800 and up.
    Msr,
}

// SAFETY: the window shows each CPU its own registers; it is mapped for ever and accessed by volatile operations.
unsafe impl Send for Access {}
// SAFETY: as for `Send`.
unsafe impl Sync for Access {}

static ACCESS: Once<Access> = Once::new();
/// Ticks of the one-shot timer per second, or 0 if it takes TSC deadlines.
static TIMER_HZ: AtomicU64 = AtomicU64::new(0);

/// No way to this CPU's interrupts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoApic;

impl fmt::Display for NoApic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this CPU has no local APIC, or no memory to reach it")
    }
}

impl core::error::Error for NoApic {}

/// Turns this CPU's APIC on, with the timer stopped, and finds out how fast that counts.
///
/// # Errors
/// The CPU has no APIC, or its window could not be mapped.
pub fn init() -> Result<(), NoApic> {
    let features = CpuId::new().get_feature_info().ok_or(NoApic)?;
    if !features.has_apic() {
        return Err(NoApic);
    }
    let access = ACCESS.try_call_once(|| {
        if features.has_x2apic() { Ok(Access::Msr) } else { map_window().ok_or(NoApic).map(Access::Memory) }
    })?;
    // SAFETY: the mode goes from off or xAPIC to what the CPU reports, which is a legal transition.
    unsafe {
        let mode = if matches!(access, Access::Msr) { BASE_ENABLE | BASE_X2APIC_ENABLE } else { BASE_ENABLE };
        wrmsr(IA32_APIC_BASE, rdmsr(IA32_APIC_BASE) | mode);
    }
    write(XAPIC_TPR, 0);
    write(XAPIC_SVR, SOFTWARE_ENABLE | u32::from(interrupts::SPURIOUS));
    write(XAPIC_LVT_LINT0, MASKED);
    write(XAPIC_LVT_LINT1, MASKED);
    write(XAPIC_LVT_ERROR, u32::from(interrupts::APIC_ERROR));
    Cpu::current().set_apic_id(read_id());
    init_timer(features.has_tsc_deadline());
    Ok(())
}

/// Whether the registers are reached by MSRs.
pub fn is_x2apic() -> bool {
    matches!(ACCESS.get(), Some(Access::Msr))
}

fn map_window() -> Option<NonNull<u32>> {
    // SAFETY: the CPU has an APIC, so it has this MSR.
    let base = unsafe { rdmsr(IA32_APIC_BASE) } & 0x000f_ffff_ffff_f000;
    memory::map_registers(PhysAddr::checked(base)?, WINDOW_BYTES).map(NonNull::cast)
}

fn init_timer(has_deadline: bool) {
    if has_deadline {
        write(XAPIC_LVT_TIMER, u32::from(interrupts::TIMER) | TIMER_TSC_DEADLINE);
        return;
    }
    write(XAPIC_TIMER_DIV_CONF, DIVIDE_BY_1);
    write(XAPIC_LVT_TIMER, MASKED);
    if TIMER_HZ.load(Relaxed) == 0 {
        TIMER_HZ.store(measure_timer_hz(), Relaxed);
    }
    write(XAPIC_LVT_TIMER, u32::from(interrupts::TIMER));
}

/// Counts timer ticks against the TSC for 10 ms.
fn measure_timer_hz() -> u64 {
    const WINDOW_NS: u64 = 10 * clock::NS_PER_MS;
    let counter = || read(XAPIC_TIMER_CURRENT_COUNT);
    write(XAPIC_TIMER_INIT_COUNT, u32::MAX);
    let first = clock::sample(counter);
    let end = clock::now_ns() + WINDOW_NS;
    while clock::now_ns() < end {
        core::hint::spin_loop();
    }
    let last = clock::sample(counter);
    write(XAPIC_TIMER_INIT_COUNT, 0);
    let ticks = u128::from(first.count.saturating_sub(last.count));
    let hz = ticks * u128::from(clock::tsc_hz()) / u128::from((last.tsc - first.tsc).max(1));
    // Not 0, which stands for TSC deadlines.
    u64::try_from(hz).unwrap_or(u64::MAX).max(1)
}

/// Makes the timer of this CPU fire once, at `deadline_ns` or a little later; at once if that is in the past.
pub fn arm_timer(deadline_ns: u64) {
    let hz = TIMER_HZ.load(Relaxed);
    if hz == 0 {
        // A deadline of 0 would disarm the timer.
        let deadline = clock::ns_to_tsc(deadline_ns).max(1);
        // SAFETY: the CPU has TSC deadlines, or `TIMER_HZ` would not be 0.
        unsafe { wrmsr(IA32_TSC_DEADLINE, deadline) };
        return;
    }
    let delay_ns = u128::from(deadline_ns.saturating_sub(clock::now_ns()));
    let ticks = (delay_ns * u128::from(hz)).div_ceil(u128::from(clock::NS_PER_S));
    // One that is too far away for the counter fires early; the scheduler then arms it again.
    write(XAPIC_TIMER_INIT_COUNT, u32::try_from(ticks).unwrap_or(u32::MAX).max(1));
}

/// Tells the APIC that the interrupt in service has been handled.
pub fn acknowledge() {
    write(XAPIC_EOI, 0);
}

/// What one CPU sends to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ipi {
    /// An interrupt.
    Vector(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// Makes the CPU wait for a [`Startup`](Self::Startup), whatever it was doing.
    Init,
    /// Starts a waiting CPU in real mode, at the start of this page of memory.
    Startup(u8),
}

impl Ipi {
    /// Vector and delivery mode as in the interrupt command register.
    const fn command(self) -> u32 {
        const ASSERT: u32 = 1 << 14;
        ASSERT
            | match self {
                Self::Vector(vector) => vector as u32,
                Self::Nmi => 0b100 << 8,
                Self::Init => 0b101 << 8,
                Self::Startup(page) => 0b110 << 8 | page as u32,
            }
    }
}

/// Whether this CPU can send something to the CPU with `apic_id`.
pub fn can_address(apic_id: u32) -> bool {
    is_x2apic() || apic_id < 0xff
}

/// Sends `ipi` to the CPU with `apic_id`, or to none if an xAPIC cannot address it. What was written to memory before
/// is seen by its handler.
pub fn send(apic_id: u32, ipi: Ipi) {
    // Both halves of the register belong to one command.
    let _guard = InterruptGuard::new();
    match (ACCESS.get(), u8::try_from(apic_id)) {
        (Some(Access::Msr), _) => {
            // Unlike a write to memory, one to these registers does not wait for earlier ones.
            // SAFETY: fences have no other effect; the mode is on, and the command is a legal one.
            unsafe {
                asm!("mfence", "lfence", options(nostack, preserves_flags));
                wrmsr(msr(XAPIC_ICR0), u64::from(apic_id) << 32 | u64::from(ipi.command()));
            }
        }
        (Some(Access::Memory(_)), Ok(id)) => {
            wait_for_delivery();
            write(XAPIC_ICR1, u32::from(id) << 24);
            write(XAPIC_ICR0, ipi.command());
        }
        _ => {}
    }
}

/// Waits until the xAPIC takes a command: a few microseconds at most, unless it is broken, and then nothing helps.
fn wait_for_delivery() {
    const DELIVERY_PENDING: u32 = 1 << 12;
    const ROUNDS_MAX: usize = 1_000_000;
    for _ in 0..ROUNDS_MAX {
        if read(XAPIC_ICR0) & DELIVERY_PENDING == 0 {
            return;
        }
        core::hint::spin_loop();
    }
}

/// Makes this CPU's APIC deliver `vector` to it.
pub fn send_to_self(vector: u8) {
    // Sent where it is meant to arrive.
    let _guard = InterruptGuard::new();
    send(Cpu::current().apic_id(), Ipi::Vector(vector));
}

/// Whether the APIC delivered `vector` and waits for its acknowledgement.
pub fn in_service(vector: u8) -> bool {
    let register = XAPIC_ISR0 + u32::from(vector) / 32 * 0x10;
    ACCESS.get().is_some() && read(register) & 1 << (vector % 32) != 0
}

/// The errors since the last call, as the error status register has them.
pub fn take_errors() -> u32 {
    // A write makes the register show what accumulated.
    write(XAPIC_ESR, 0);
    read(XAPIC_ESR)
}

/// The message that raises `vector` on the CPU with `apic_id`, without interrupt remapping. `None` if the id does not
/// fit into the eight bits there are for it, or means all CPUs.
pub fn message(apic_id: u32, vector: u8) -> Option<MsiMessage> {
    let message = MsiMessage { address: 0xfee0_0000 | u64::from(apic_id) << 12, data: u32::from(vector) };
    has_message(apic_id).then_some(message)
}

/// Whether there is a [`message`] to the CPU with `apic_id`.
pub fn has_message(apic_id: u32) -> bool {
    apic_id < 0xff
}

fn read_id() -> u32 {
    let id = read(XAPIC_ID);
    if is_x2apic() { id } else { id >> 24 }
}

fn read(register: u32) -> u32 {
    match ACCESS.get() {
        // SAFETY: the register lies inside the mapped window.
        Some(Access::Memory(base)) => unsafe { base.byte_add(register as usize).read_volatile() },
        // SAFETY: the mode is on, and all registers used here exist in it.
        Some(Access::Msr) => unsafe { rdmsr(msr(register)) as u32 },
        None => 0,
    }
}

fn write(register: u32, value: u32) {
    match ACCESS.get() {
        // SAFETY: as in `read`; the values written are ones that the registers allow.
        Some(Access::Memory(base)) => unsafe { base.byte_add(register as usize).write_volatile(value) },
        // SAFETY: as above.
        Some(Access::Msr) => unsafe { wrmsr(msr(register), u64::from(value)) },
        None => {}
    }
}

/// x2APIC registers are numbered as the xAPIC's are, in steps of one instead of 16 bytes.
const fn msr(register: u32) -> u32 {
    0x800 + (register >> 4)
}
