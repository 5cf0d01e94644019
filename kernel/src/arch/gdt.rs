//! Segments and the task state of one CPU.

use core::{mem::size_of, ptr};

use x86::{
    Ring,
    bits64::task::TaskStateSegment,
    dtables::{DescriptorTablePointer, lgdt},
    segmentation::SegmentSelector,
    task::load_tr,
};

use super::cpu::Cpu;

/// The code segment, also in the boot GDT.
pub const CODE_SELECTOR: SegmentSelector = SegmentSelector::new(1, Ring::Ring0);
const TASK_SELECTOR: SegmentSelector = SegmentSelector::new(3, Ring::Ring0);
/// The segments of programs in ring 3. Unlike `syscall` and `sysret`, gates ask for no order of them.
pub const USER_DATA_SELECTOR: SegmentSelector = SegmentSelector::new(5, Ring::Ring3);
pub const USER_CODE_SELECTOR: SegmentSelector = SegmentSelector::new(6, Ring::Ring3);

/// 64-bit code, present, accessed.
const CODE: u64 = 0x00af_9b00_0000_ffff;
/// Writable data, present, accessed.
const DATA: u64 = 0x00cf_9300_0000_ffff;
/// As both, for ring 3.
const USER_CODE: u64 = CODE | RING_3;
const USER_DATA: u64 = DATA | RING_3;
/// DPL 3.
const RING_3: u64 = 3 << 45;

/// The exceptions that get a stack of their own, because the current one may be unusable when they come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum InterruptStack {
    /// A fault while delivering another: a stack overflow, most likely.
    DoubleFault = 1,
    /// May come at any instruction, also where the stack is being switched.
    Nmi = 2,
    /// As the NMI.
    MachineCheck = 3,
}

impl InterruptStack {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::DoubleFault, Self::Nmi, Self::MachineCheck];
}

/// The GDT and the TSS of one CPU.
pub struct Descriptors {
    table: [u64; 7],
    task: TaskStateSegment,
}

impl Descriptors {
    pub const fn new() -> Self {
        Self { table: [0, CODE, DATA, 0, 0, USER_DATA, USER_CODE], task: TaskStateSegment::new() }
    }
}

/// Loads this CPU's own descriptors, with the given tops of the stacks of [`InterruptStack::ALL`].
///
/// # Safety
/// Called once on each CPU. The stacks are mapped, used for nothing else, and stay.
pub unsafe fn load(stack_tops: [u64; InterruptStack::ALL.len()]) {
    let descriptors = Cpu::current().descriptors.get();
    // SAFETY: only this CPU uses its descriptors, and they are not loaded yet, so nothing else reads them.
    let Descriptors { table, task } = unsafe { &mut *descriptors };
    for (stack, top) in InterruptStack::ALL.into_iter().zip(stack_tops) {
        task.set_ist(stack as usize - 1, top);
    }
    // No I/O permission map: its offset lies beyond the limit.
    task.iomap_base = size_of::<TaskStateSegment>() as u16;
    [table[3], table[4]] = task_descriptor(ptr::from_ref(task) as u64);
    // SAFETY: the table lives as long as the CPU, and holds the segments in use at the selectors they were loaded by;
    // the task selector names the descriptor just written.
    unsafe {
        lgdt(&DescriptorTablePointer::new(table));
        load_tr(TASK_SELECTOR);
    }
}

/// Sets where this CPU's stack begins when something interrupts ring 3. Called with interrupts off.
///
/// # Safety
/// There is room for a trap frame below `top`, which is aligned to 16 bytes, whenever this CPU is in ring 3.
pub unsafe fn set_kernel_stack(top: u64) {
    let task = Cpu::current().descriptors.get();
    // SAFETY: only this CPU uses its descriptors, and the processor reads this field on leaving ring 3 only.
    unsafe { (*task).task.set_rsp(Ring::Ring0, top) };
}

/// The two words of a descriptor for an available 64-bit TSS at `base`.
const fn task_descriptor(base: u64) -> [u64; 2] {
    const AVAILABLE_TSS_PRESENT: u64 = 0x89 << 40;
    let limit = size_of::<TaskStateSegment>() as u64 - 1;
    let low = limit | (base & 0xff_ffff) << 16 | AVAILABLE_TSS_PRESENT | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}
