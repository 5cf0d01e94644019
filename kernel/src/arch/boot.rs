//! From the PVH entry point to Rust.
//!
//! The loader enters in 32-bit protected mode with paging off and the physical address of `hvm_start_info` in EBX
//! (the entry is found through the Xen note of type 18, `XEN_ELFNOTE_PHYS32_ENTRY`). This code maps the first 4 GiB
//! three times with 2 MiB pages: at their own addresses, in the direct map, and (the first 1 GiB) where the kernel is
//! linked. That lasts until [`crate::memory`] has built the final address space.

use core::arch::global_asm;

global_asm!(
    r#"
    .set KERNEL_BASE, 0xffffffff80000000
    .set EFER, 0xc0000080
    .set EFER_LME_NXE, (1 << 8) | (1 << 11)
    .set CR0_PG_WP_NE_MP, (1 << 31) | (1 << 16) | (1 << 5) | (1 << 1)
    .set CR0_EM_TS, (1 << 2) | (1 << 3)
    .set CR4_PAE, 1 << 5
    .set PRESENT_WRITABLE, 3
    .set PRESENT_WRITABLE_LARGE, 0x83

    .section .note.pvh, "a", @note
    .balign 4
    .long 4                         # length of the name
    .long 8                         # length of the description
    .long 18                        # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry - KERNEL_BASE

    .section .bss.boot_tables, "aw", @nobits
    .balign 4096
boot_pml4:      .skip 4096
boot_pdpt:      .skip 4096
boot_pdpt_high: .skip 4096
boot_pd:        .skip 4 * 4096

    .section .rodata.boot_gdt, "a", @progbits
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08: 64-bit code, accessed
    .quad 0x00cf93000000ffff        # 0x10: data, accessed
boot_gdt_pointer:
    .word 3 * 8 - 1
    .quad boot_gdt - KERNEL_BASE

    .section .text.boot, "ax", @progbits
    .code32
    .global pvh_entry
pvh_entry:
    cli
    cld

    # Root: the low half and the direct map share one table, the kernel's slot has its own.
    movl $(boot_pdpt - KERNEL_BASE + PRESENT_WRITABLE), %eax
    movl %eax, (boot_pml4 - KERNEL_BASE)
    movl %eax, (boot_pml4 - KERNEL_BASE + 256 * 8)
    movl $(boot_pdpt_high - KERNEL_BASE + PRESENT_WRITABLE), %eax
    movl %eax, (boot_pml4 - KERNEL_BASE + 511 * 8)

    # Four directories of 1 GiB each.
    movl $(boot_pd - KERNEL_BASE + PRESENT_WRITABLE), %eax
    movl %eax, (boot_pdpt_high - KERNEL_BASE + 510 * 8)
    movl $(boot_pdpt - KERNEL_BASE), %edi
    movl $4, %ecx
1:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    loop 1b

    # 2048 pages of 2 MiB.
    movl $PRESENT_WRITABLE_LARGE, %eax
    movl $(boot_pd - KERNEL_BASE), %edi
    movl $2048, %ecx
2:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 2b

    movl %cr4, %eax
    orl $CR4_PAE, %eax
    movl %eax, %cr4
    movl $(boot_pml4 - KERNEL_BASE), %eax
    movl %eax, %cr3
    # Every CPU with VT-d has no-execute, so this needs no check.
    movl $EFER, %ecx
    rdmsr
    orl $EFER_LME_NXE, %eax
    wrmsr
    movl %cr0, %eax
    andl $~CR0_EM_TS, %eax
    orl $CR0_PG_WP_NE_MP, %eax
    movl %eax, %cr0

    lgdt (boot_gdt_pointer - KERNEL_BASE)
    ljmp $0x08, $(boot_long_mode - KERNEL_BASE)

    .code64
boot_long_mode:
    movabsq $boot_high, %rax
    jmpq *%rax
boot_high:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movabsq $__boot_stack_end, %rsp
    xorl %ebp, %ebp                 # the end of every backtrace
    movl %ebx, %edi
    callq {main}
    ud2
    "#,
    main = sym crate::kernel_main,
    options(att_syntax),
);
