//! What the kernel has to keep of a program, and what it must not take over from it.

use core::arch::asm;

use attacker::LEFT;

/// How long registers are watched: some slices of the scheduler.
const WATCH_NS: u64 = 60_000_000;

/// A number in a register changed.
const CHANGED: u64 = 1;

/// Whether registers keep what is in them, over preemption and over calls.
pub fn watch() -> u64 {
    let end_ns = runtime::now_ns() + WATCH_NS;
    while runtime::now_ns() < end_ns {
        if !keeps_registers() {
            return CHANGED;
        }
    }
    LEFT
}

/// Fills all registers, lets time pass, calls the kernel, and compares.
fn keeps_registers() -> bool {
    let different: u64;
    // SAFETY: registers are saved and put back, and the call (for the time) changes nothing but RAX.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "mov rbx, 0x1111",
            "mov rcx, 0x2222",
            "mov rdx, 0x3333",
            "mov rsi, 0x4444",
            "mov rdi, 0x5555",
            "mov rbp, 0x6666",
            "mov r8, 0x7777",
            "mov r9, 0x8888",
            "mov r10, 0x9999",
            "mov r11, 0xaaaa",
            "mov r12, 0xbbbb",
            "mov r13, 0xcccc",
            "mov r14, 0xdddd",
            "mov r15, 20000",
            "2:",
            "dec r15",
            "jnz 2b",
            "mov eax, {now}",
            "int {vector}",
            "xor eax, eax",
            "sub rbx, 0x1111",
            "or rax, rbx",
            "sub rcx, 0x2222",
            "or rax, rcx",
            "sub rdx, 0x3333",
            "or rax, rdx",
            "sub rsi, 0x4444",
            "or rax, rsi",
            "sub rdi, 0x5555",
            "or rax, rdi",
            "sub rbp, 0x6666",
            "or rax, rbp",
            "sub r8, 0x7777",
            "or rax, r8",
            "sub r9, 0x8888",
            "or rax, r9",
            "sub r10, 0x9999",
            "or rax, r10",
            "sub r11, 0xaaaa",
            "or rax, r11",
            "sub r12, 0xbbbb",
            "or rax, r12",
            "sub r13, 0xcccc",
            "or rax, r13",
            "sub r14, 0xdddd",
            "or rax, r14",
            "or rax, r15",
            "pop rbp",
            "pop rbx",
            now = const abi::Call::Now as u32,
            vector = const abi::VECTOR,
            out("rax") different,
            out("rcx") _,
            out("rdx") _,
            out("rsi") _,
            out("rdi") _,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
            out("r12") _,
            out("r13") _,
            out("r14") _,
            out("r15") _,
        );
    }
    different == 0
}

/// Sets the direction, AC, NT and ID flags and loads every segment register, and calls the kernel. Whatever it does
/// then it does with flags and segments of its own, or it would not come back.
pub fn set_flags_and_call() -> u64 {
    let time: u64;
    // SAFETY: the flags are put back; the call changes nothing but RAX.
    unsafe {
        asm!(
            "mov eax, ss",
            "mov ds, eax",
            "mov es, eax",
            "mov fs, eax",
            "mov gs, eax",
            "pushfq",
            "pushfq",
            "or dword ptr [rsp], 0x244400",
            "popfq",
            "mov eax, {now}",
            "int {vector}",
            "popfq",
            now = const abi::Call::Now as u32,
            vector = const abi::VECTOR,
            out("rax") time,
        );
    }
    if abi::decode(time).is_ok() { LEFT } else { CHANGED }
}
