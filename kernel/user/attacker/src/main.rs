//! A program that does what it may not. Which of the things it is to do, the number says that it is started with.
#![no_std]
#![no_main]

mod calls;
mod disk;
mod edu;
mod registers;

use core::{arch::asm, hint::black_box, ptr};

use attacker::{Attack, DIRECT_MAP, KERNEL_CODE, LEFT};

runtime::main!(attack);

/// What an attack returns after which it should not have been there any more.
const STILL_HERE: u64 = 1;

fn attack(number: u64) -> u64 {
    match Attack::from_number(number) {
        Some(Attack::Nothing) => LEFT,
        Some(Attack::Spin) => loop {
            core::hint::spin_loop();
        },
        Some(Attack::Sleep) => {
            runtime::sleep_until(u64::MAX);
            STILL_HERE
        }
        Some(Attack::Registers) => registers::watch(),
        Some(Attack::Flags) => registers::set_flags_and_call(),
        Some(Attack::Calls) => calls::all_wrong(),
        Some(Attack::Exhaust) => calls::exhaust(),
        Some(Attack::UseAfterUnmap) => calls::use_after_unmap(),
        Some(Attack::Leftovers) => calls::look_for_leftovers(),
        Some(Attack::Flood) => calls::flood(),
        Some(Attack::Panic) => panic!("as asked for"),
        Some(Attack::EduCopies) => edu::run(edu::copy),
        Some(Attack::EduReachesKernel) => edu::run(|edu| edu::reach(edu, edu::KERNEL)),
        Some(Attack::EduReachesKernelsHalf) => edu::run(|edu| edu::reach(edu, KERNEL_CODE)),
        Some(Attack::EduReachesDirectMap) => edu::run(|edu| edu::reach(edu, DIRECT_MAP)),
        Some(Attack::EduReachesWhatItHad) => edu::run(edu::reach_what_it_had),
        Some(Attack::EduWritesWhatItMayRead) => edu::run(edu::write_what_it_may_read),
        Some(Attack::EduBeyondRegisters) => edu::run(edu::read_beyond_registers),
        Some(Attack::EduCalls) => calls::all_wrong_about_a_device(),
        Some(Attack::EduWritesCode) => edu::run(edu::write_code),
        Some(Attack::EduChurns) => edu::run(edu::churn),
        Some(Attack::DiskLies) => disk::lie(),
        Some(Attack::DiskNeverAnswers) => disk::never_answer(),
        Some(Attack::DiskUninvited) => disk::intrude(),
        Some(Attack::EduWritesForEver) => edu::run(edu::write_for_ever),
        Some(other) => {
            // SAFETY: it is what it is: each of them ends the program.
            unsafe { misbehave(other) };
            STILL_HERE
        }
        None => STILL_HERE,
    }
}

/// Does what the CPU does not let a program do.
///
/// # Safety
/// Nothing that the program has is valid if this returns.
unsafe fn misbehave(attack: Attack) {
    // SAFETY: the caller's promise.
    unsafe {
        match attack {
            Attack::ReadKernel => drop(black_box((DIRECT_MAP as *const u8).read_volatile())),
            Attack::WriteKernel => (KERNEL_CODE as *mut u8).write_volatile(0),
            Attack::ExecuteKernel => jump(KERNEL_CODE),
            Attack::ReadNull => asm!("mov al, [{}]", in(reg) 0_u64, out("al") _),
            Attack::WriteCode => (runtime::exit as *mut u8).write_volatile(0),
            Attack::ExecuteStack => {
                const RETURN: u8 = 0xc3;
                let code = RETURN;
                jump(ptr::from_ref(black_box(&code)) as u64);
            }
            Attack::OverflowStack => asm!("2:", "push rax", "jmp 2b"),
            Attack::JumpAstray => jump(1 << 47),
            Attack::Divide => asm!("div {0:e}", in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _),
            Attack::Halt => asm!("hlt"),
            Attack::DisableInterrupts => asm!("cli"),
            Attack::Port => asm!("out dx, al", in("dx") 0xf4_u16, in("al") 0x10_u8),
            Attack::WriteMsr => asm!("wrmsr", in("ecx") 0xc000_0102_u32, in("eax") 0, in("edx") 0),
            Attack::LoadTable => asm!("mov cr3, {}", in(reg) 0_u64),
            Attack::SetGsBase => asm!("wrgsbase {}", in(reg) DIRECT_MAP),
            Attack::StoreDescriptors => {
                let mut descriptors = [0_u64; 2];
                asm!("sgdt [{}]", in(reg) &mut descriptors);
                black_box(descriptors);
            }
            Attack::RaiseInterrupt => asm!("int 0x30"),
            Attack::RaiseException => asm!("int 3"),
            Attack::Trace => asm!("pushfq", "or dword ptr [rsp], 0x100", "popfq", "nop"),
            Attack::Sse => asm!("xorps xmm0, xmm0"),
            Attack::X87 => asm!("fninit"),
            Attack::Syscall => asm!("syscall", out("rcx") _, out("r11") _),
            Attack::Sysenter => asm!("sysenter"),
            _ => {}
        }
    }
}

/// # Safety
/// Nothing is valid if this returns.
unsafe fn jump(address: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("call {}", in(reg) address, clobber_abi("C")) };
}
