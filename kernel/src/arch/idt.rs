//! The interrupt descriptor table: 256 entry stubs that end in [`super::traps::handle_trap`], or in [`super::user`] if
//! they came from ring 3.

use core::{arch::global_asm, cell::UnsafeCell};

use x86::{
    dtables::{DescriptorTablePointer, lidt},
    msr::IA32_GS_BASE,
};

use super::{
    gdt::{CODE_SELECTOR, InterruptStack},
    user::UserContext,
};

/// Number of vectors.
pub const VECTORS: usize = 256;

// Each stub is padded to 16 bytes, so that the address of one follows from its vector. The CPU pushes an error code
// for some exceptions only; the others get a zero, so that all frames look alike. It pushes none for an interrupt, and
// an APIC delivers vectors from 16 on, those of exceptions too: there the alignment of the stack tells what came, for
// the CPU aligns it to 16 bytes before it pushes five words or six. The kernel neither uses nor saves vector registers,
// and no program can use them (see `user`).
//
// There are three ways on. What interrupts the kernel is handled and returned from. What interrupts ring 3 comes on the
// end of a `UserContext`, is saved there, and goes on where the kernel went to ring 3. What has a stack of its own
// comes at any instruction, also between entry and `swapgs`; there the GS base itself says whose it is: the kernel's is
// in the upper half, and programs have no way to set one.
global_asm!(
    r#"
    .section .text.traps, "ax", @progbits
    .balign 16
    .global trap_stubs
trap_stubs:
    .set vector, 0
    .rept 256
        .balign 16
        # 8 and 10 to 14 come with an error code.
        .if (vector < 16) && ((0x7d00 >> vector) & 1)
        # 17, 21, 29 and 30 do if they are exceptions.
        .elseif (vector < 32) && ((0x60220000 >> vector) & 1)
            testb $8, %spl
            jz 1f
            pushq $0
        1:
        .else
            pushq $0
        .endif
        pushq $vector
        .if vector == 2 || vector == 8 || vector == 18
        jmp trap_on_own_stack
        .else
        jmp trap_common
        .endif
        .set vector, vector + 1
    .endr

.macro push_registers
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
.endm

.macro handle_here
    # No direction, no AC (which would let the kernel use pages of programs), whatever the interrupted code had.
    pushq $2
    popfq
    movq %rsp, %rdi
    # A frame like a call's, so that backtraces go on where the trap came from.
    pushq 17 * 8(%rsp)
    pushq %rbp
    movq %rsp, %rbp
    # The CPU aligned the stack to 16 bytes before it pushed; 24 words later it is aligned again.
    callq {handle_trap}
    addq $16, %rsp
.endm

.macro return_from_trap
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rbx
    popq %rax
    addq $16, %rsp
    iretq
.endm

trap_common:
    # The ring of the interrupted code.
    testb $3, 3 * 8(%rsp)
    jnz trap_from_user
    push_registers
    handle_here
    return_from_trap

trap_from_user:
    swapgs
    push_registers
    movq {kernel_stack}(%rsp), %rsp
    pushq $2
    popfq
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    retq

trap_on_own_stack:
    push_registers
    movl ${gs_base}, %ecx
    rdmsr
    xorl %ebx, %ebx
    testl %edx, %edx
    js 1f
    swapgs
    incl %ebx
1:
    handle_here
    testl %ebx, %ebx
    jz 2f
    swapgs
2:
    return_from_trap
    "#,
    handle_trap = sym super::traps::handle_trap,
    kernel_stack = const UserContext::KERNEL_STACK,
    gs_base = const IA32_GS_BASE,
    options(att_syntax),
);

unsafe extern "C" {
    /// The first of 256 stubs, 16 bytes each.
    static trap_stubs: [[u8; 16]; VECTORS];
}

/// DPL 3 of a gate.
const RING_3: u8 = 3 << 5;

/// A gate: where a vector leads.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Gate {
    offset_low: u16,
    selector: u16,
    stack: u8,
    kind: u8,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}

impl Gate {
    const EMPTY: Self =
        Self { offset_low: 0, selector: 0, stack: 0, kind: 0, offset_middle: 0, offset_high: 0, reserved: 0 };

    /// An interrupt gate (interrupts off on entry), present, which no `int` instruction of a program may use.
    fn interrupt(handler: u64, stack: u8) -> Self {
        Self {
            offset_low: handler as u16,
            selector: CODE_SELECTOR.bits(),
            stack,
            kind: 0x8e,
            offset_middle: (handler >> 16) as u16,
            offset_high: (handler >> 32) as u32,
            reserved: 0,
        }
    }
}

struct Table(UnsafeCell<[Gate; VECTORS]>);

// SAFETY: written only by `init` and `use_interrupt_stacks`, on the first CPU before others run.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new([Gate::EMPTY; VECTORS]));

/// Fills the table and loads it on this CPU. Exceptions use the current stack until
/// [`use_interrupt_stacks`] is called.
pub fn init() {
    let stubs = &raw const trap_stubs as u64;
    for vector in 0..VECTORS {
        let handler = stubs + (vector * size_of::<[u8; 16]>()) as u64;
        // SAFETY: one CPU runs, with interrupts off, and the table is not loaded yet.
        unsafe { (*TABLE.0.get())[vector] = Gate::interrupt(handler, 0) };
    }
    // SAFETY: as above.
    unsafe { (*TABLE.0.get())[usize::from(abi::VECTOR)].kind |= RING_3 };
    load();
}

/// Loads the table on this CPU.
pub fn load() {
    // SAFETY: the table is static, and its gates lead to the stubs.
    unsafe { lidt(&DescriptorTablePointer::new(&*TABLE.0.get())) };
}

/// Gives the exceptions of [`InterruptStack`] their own stacks.
///
/// # Safety
/// This CPU, and every one that loads the table later, has a task state with these stacks.
pub unsafe fn use_interrupt_stacks() {
    for (vector, stack) in
        [(8, InterruptStack::DoubleFault), (2, InterruptStack::Nmi), (18, InterruptStack::MachineCheck)]
    {
        // SAFETY: one byte is written; one CPU runs, and none of these exceptions is expected here.
        unsafe { (*TABLE.0.get())[vector].stack = stack as u8 };
    }
}
