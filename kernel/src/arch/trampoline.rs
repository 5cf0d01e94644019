//! From real mode, where another CPU starts, to Rust.
//!
//! The code runs wherever a page below 1 MiB is free: it is copied there (see [`crate::smp`]), finds its own address in
//! CS, and fills in the few absolute addresses that it needs itself. It writes to its page only before paging is on;
//! from then on the page needs to be executable at its own address, and nothing more. All CPUs start one at a time.

use core::{
    arch::global_asm,
    slice,
    sync::atomic::{AtomicU64, Ordering::Release},
};

global_asm!(
    r#"
    .set EFER, 0xc0000080
    .set EFER_LME_NXE, (1 << 8) | (1 << 11)
    # Not the bits that turn the caches off, which a CPU has set after power-on.
    .set CR0_WP_NE_ET_MP_PE, (1 << 16) | (1 << 5) | (1 << 4) | (1 << 1) | (1 << 0)
    .set CR0_PG, 1 << 31
    .set CR4_PAE, 1 << 5

    .section .rodata.trampoline, "a", @progbits
    .balign 16
    .global trampoline_start, trampoline_root, trampoline_end
trampoline_start:
    .code16
    cli
    cld
    xorl %ebx, %ebx
    movw %cs, %bx
    movw %bx, %ds
    shll $4, %ebx                   # where this page is
    leal (trampoline_gdt - trampoline_start)(%ebx), %eax
    movl %eax, (trampoline_gdt_base - trampoline_start)
    leal (trampoline_protected - trampoline_start)(%ebx), %eax
    movl %eax, (trampoline_far_protected - trampoline_start)
    leal (trampoline_long - trampoline_start)(%ebx), %eax
    movl %eax, (trampoline_far_long - trampoline_start)
    lgdtl (trampoline_gdt_pointer - trampoline_start)
    movl $CR0_WP_NE_ET_MP_PE, %eax
    movl %eax, %cr0
    ljmpl *(trampoline_far_protected - trampoline_start)

    .code32
trampoline_protected:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $CR4_PAE, %eax
    movl %eax, %cr4
    movl (trampoline_root - trampoline_start)(%ebx), %eax
    movl %eax, %cr3
    movl $EFER, %ecx
    rdmsr
    orl $EFER_LME_NXE, %eax
    wrmsr
    movl %cr0, %eax
    orl $CR0_PG, %eax
    movl %eax, %cr0
    ljmpl *(trampoline_far_long - trampoline_start)(%ebx)

    .code64
trampoline_long:
    movabsq $trampoline_high, %rax
    jmpq *%rax

    .balign 8
trampoline_gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08: 64-bit code, accessed
    .quad 0x00cf93000000ffff        # 0x10: data, accessed
    .quad 0x00cf9b000000ffff        # 0x18: 32-bit code, accessed
trampoline_gdt_pointer:
    .word 4 * 8 - 1
trampoline_gdt_base:
    .long 0
trampoline_far_protected:
    .long 0
    .word 0x18
trampoline_far_long:
    .long 0
    .word 0x08
    .balign 4
trampoline_root:
    .long 0
trampoline_end:

    .section .text.trampoline, "ax", @progbits
trampoline_high:
    movq {stack}(%rip), %rsp
    xorl %ebp, %ebp                 # the end of every backtrace
    callq {main}
    ud2
    "#,
    stack = sym STACK_TOP,
    main = sym crate::smp::started,
    options(att_syntax),
);

// Only their addresses mean anything.
unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_root: u8;
    static trampoline_end: u8;
}

/// The stack of the CPU that starts next.
static STACK_TOP: AtomicU64 = AtomicU64::new(0);

/// Sets the stack of the CPU that starts next.
pub fn set_stack(top: u64) {
    STACK_TOP.store(top, Release);
}

/// The code, to be copied to the start of a page.
pub fn code() -> &'static [u8] {
    // SAFETY: constants between two labels.
    unsafe { slice::from_raw_parts(&raw const trampoline_start, offset_of(&raw const trampoline_end)) }
}

/// Where in [`code`] the 32-bit physical address of the root page table belongs.
pub fn root_offset() -> usize {
    offset_of(&raw const trampoline_root)
}

fn offset_of(label: *const u8) -> usize {
    label as usize - &raw const trampoline_start as usize
}
