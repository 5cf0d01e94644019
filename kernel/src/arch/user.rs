//! Ring 3: going there, and what comes back.
//!
//! Programs call the kernel by an interrupt gate ([`abi::VECTOR`]), as everything else comes too. `syscall` would be
//! faster and is the less plain choice: it leaves the program's stack in place, so that each instruction before the
//! switch is one at which an NMI finds a stack that it must not use, and `sysret` faults in ring 0, on the program's
//! stack, if the program's RIP is not canonical. A gate switches stacks by itself, and `iretq` finds a frame whose
//! every field the kernel has checked or written.
//!
//! The kernel itself always runs on its own page table: a program's is loaded on the way to ring 3, and left on the way
//! back before anything else. So no table of a program is in use on any CPU but in ring 3, and one whose program does
//! not run can be given back. The kernel's memory is in each of them, out of ring 3's reach, as entry and exit need it.
//! It never follows a pointer of a program: see `process::space`.
//!
//! Nothing saves the registers of x87 and SSE: the kernel does not use them, and a program that does gets an exception
//! ([`init`]), which is its end. Programs for `x86_64-unknown-none` have no such instructions.

use core::{
    arch::naked_asm,
    fmt,
    mem::offset_of,
    ptr,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use abi::Registers;
use mm::PhysAddr;
use x86::{
    controlregs::{self, Cr0, Cr4},
    cpuid::CpuId,
    irq,
};

use super::{
    disable, enable,
    gdt::{self, USER_CODE_SELECTOR, USER_DATA_SELECTOR},
    interrupts,
    traps::{self, PageFault, TrapFrame},
};

/// Always set in RFLAGS.
const RESERVED: u64 = 1 << 1;
const INTERRUPTS_ON: u64 = 1 << 9;
/// The flags that are a program's own: results of arithmetic, the direction, AC and ID.
const OWN_FLAGS: u64 = 0x0024_0cd5;

/// Turns on what this CPU has to keep ring 0 and ring 3 apart, and off what programs are not to use.
pub fn init() {
    // SAFETY: the kernel neither runs nor reads what is open to ring 3, uses no FPU, and these bits do nothing else in
    // ring
    // 0. Without the bits taken away programs can neither use SSE or AVX, nor set the GS base, nor count events.
    unsafe {
        let unwanted =
            Cr4::CR4_ENABLE_SSE | Cr4::CR4_ENABLE_OS_XSAVE | Cr4::CR4_ENABLE_FSGSBASE | Cr4::CR4_ENABLE_PPMC;
        controlregs::cr4_write((controlregs::cr4() | protections()).difference(unwanted));
        controlregs::cr0_write(controlregs::cr0() | Cr0::CR0_EMULATE_COPROCESSOR);
    }
}

/// The bits of CR4 by which the kernel can neither execute (SMEP) nor access (SMAP) what is open to ring 3, and ring 3
/// cannot ask where the kernel's tables are (UMIP): as many of them as the CPU has.
pub fn protections() -> Cr4 {
    let mut found = Cr4::empty();
    if let Some(features) = CpuId::new().get_extended_feature_info() {
        found.set(Cr4::CR4_ENABLE_SMEP, features.has_smep());
        found.set(Cr4::CR4_ENABLE_SMAP, features.has_smap());
        found.set(Cr4::CR4_ENABLE_UMIP, features.has_umip());
    }
    found
}

/// The registers of a program while it is not in ring 3.
#[repr(C, align(16))]
pub struct UserContext {
    /// On leaving ring 3 the CPU's stack is the end of this.
    frame: TrapFrame,
    /// Where the kernel's stack was when it went to ring 3.
    kernel_stack: u64,
}

// The CPU aligns its stack to 16 bytes before it pushes the frame.
const _: () = assert!(size_of::<TrapFrame>().is_multiple_of(16) && offset_of!(UserContext, frame) == 0);

/// Why a program is not in ring 3 any more.
#[derive(Debug)]
pub enum Trap {
    /// Something else needed the CPU. It has been handled.
    Interrupt,
    /// The program called the kernel: see [`UserContext::call`].
    Call,
    /// The program did what it may not.
    Exception(Exception),
}

/// What a program did that it may not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    vector: u8,
    error: u64,
    /// What it tried to reach, if that was the problem.
    pub page_fault: Option<PageFault>,
    /// Where.
    pub rip: u64,
}

impl Exception {
    /// Whether that is what the exception is called.
    pub fn is_named(&self, name: &str) -> bool {
        traps::name(self.vector) == name
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.page_fault {
            Some(fault) => write!(f, "{fault}")?,
            None => write!(f, "{}, error code {:#x}", traps::name(self.vector), self.error)?,
        }
        write!(f, ", at {:#x}", self.rip)
    }
}

impl UserContext {
    /// Where [`super::idt`] finds the kernel's stack.
    pub(super) const KERNEL_STACK: usize = offset_of!(Self, kernel_stack);

    /// A program that starts at `entry` with the stack `stack` and `argument` as that of a function.
    pub fn new(entry: u64, stack: u64, argument: u64) -> Self {
        // As after a call, for whose return address there is room.
        let frame = TrapFrame { rip: entry, rsp: stack - 8, rdi: argument, ..TrapFrame::default() };
        Self { frame, kernel_stack: 0 }
    }

    /// Where the program goes on.
    pub fn rip(&self) -> u64 {
        self.frame.rip
    }

    /// Goes to ring 3 with the page table at `root`, until something happens there, and not at all if `stop` is set.
    /// Who sets it and then interrupts all CPUs does not find it there any more. Interrupts are on before and after.
    ///
    /// # Safety
    /// `root` is a table with the kernel's half in it, and nothing of the kernel's is open to ring 3 there. It stays so
    /// until this returns. [`rip`](Self::rip) is in the lower half, below its last page: `iretq` faults on what is not
    /// canonical.
    pub unsafe fn run(&mut self, root: PhysAddr, stop: &AtomicBool) -> Trap {
        // First, or the interrupt might come between the look and the way there.
        disable();
        if stop.load(SeqCst) {
            // SAFETY: they were on before, so that no lock was held.
            unsafe { enable() };
            return Trap::Interrupt;
        }
        let frame = &mut self.frame;
        frame.cs = USER_CODE_SELECTOR.bits().into();
        frame.ss = USER_DATA_SELECTOR.bits().into();
        frame.rflags = frame.rflags & OWN_FLAGS | RESERVED | INTERRUPTS_ON;
        let context = ptr::from_mut(self);
        // SAFETY: interrupts are off until ring 3, so that this is the CPU it happens on; what interrupts ring 3 writes
        // the frame, which is borrowed exclusively, and goes on here. The kernel's own code, stack and data are in both
        // tables.
        unsafe {
            gdt::set_kernel_stack(context as u64 + size_of::<TrapFrame>() as u64);
            let own_root = controlregs::cr3();
            controlregs::cr3_write(root.as_u64());
            enter(context);
            controlregs::cr3_write(own_root);
        }
        let trap = self.trap();
        // SAFETY: they were on before, so that no lock was held.
        unsafe { enable() };
        trap
    }

    /// What brought the CPU back, with interrupts still off.
    fn trap(&self) -> Trap {
        let TrapFrame { vector, error, rip, .. } = self.frame;
        match vector as u8 {
            // A device that can raise any vector is no call.
            interrupts::CALL if !super::apic::in_service(interrupts::CALL) => Trap::Call,
            vector @ traps::FIRST_OF_APIC..32 if interrupts::is_stray(vector) => Trap::Interrupt,
            vector @ 0..32 => {
                let page_fault = (vector == irq::PAGE_FAULT_VECTOR)
                    .then(|| PageFault { address: traps::fault_address(), error });
                Trap::Exception(Exception { vector, error, page_fault, rip })
            }
            vector => {
                interrupts::dispatch(vector);
                Trap::Interrupt
            }
        }
    }

    /// The call that the program makes.
    pub fn call(&self) -> Registers {
        let TrapFrame { rax, rdi, rsi, rdx, r10, r8, .. } = self.frame;
        Registers { number: rax, arguments: [rdi, rsi, rdx, r10, r8] }
    }

    /// What the call returns.
    pub fn answer(&mut self, value: u64) {
        self.frame.rax = value;
    }
}

/// Goes to ring 3 with the registers of `context`. Returns when something interrupts it; then they are saved there.
///
/// # Safety
/// Interrupts are off, and the frame is one that `iretq` takes to ring 3. As for [`UserContext::run`].
#[unsafe(naked)]
unsafe extern "C" fn enter(context: *mut UserContext) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi + {kernel_stack}], rsp",
        "mov rsp, rdi",
        // What another program has left in them. The kernel does not use them, and GS not before it is its own again.
        "xor eax, eax",
        "mov ds, eax",
        "mov es, eax",
        "mov fs, eax",
        "swapgs",
        "mov gs, eax",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rbp",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rbx",
        "pop rax",
        // Vector and error code.
        "add rsp, 16",
        "iretq",
        kernel_stack = const UserContext::KERNEL_STACK,
    )
}
