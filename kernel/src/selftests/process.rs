//! Programs in ring 3: what they can do to the kernel and to each other, which is nothing, and what is left of them.

use alloc::{boxed::Box, sync::Arc, vec, vec::Vec};
use core::ptr::NonNull;

use attacker::{Attack, LEFT};
use harness::{Failure, check, check_eq, failure, test};
use mm::{PAGE_BYTES, PhysRange, table::x86::X86Access};
use x86::controlregs::{self, Cr0, Cr4};

use crate::{
    arch::{
        Cpu,
        clock::{self, NS_PER_S},
        user::{self, Exception},
    },
    memory::{self, KernelTables, UserTable, frames},
    process::{self, Ending, PROCESSES_MAX, Process, StartError},
    programs, smp, threads,
};

/// How long a process may take for something that it does at once.
const SOON_NS: u64 = 20 * NS_PER_S;

fn start(attack: Attack) -> Result<Arc<Process>, Failure> {
    process::start("attacker", attack as u64, Vec::new()).map_err(|error| failure!("{attack:?}: {error}"))
}

pub(super) fn end_of(process: &Process) -> Result<Ending, Failure> {
    process.wait(clock::now_ns() + SOON_NS).ok_or(failure!("{process} does not end"))
}

fn run(attack: Attack) -> Result<Ending, Failure> {
    end_of(&*start(attack)?)
}

/// What has to come of an attack that the CPU does not let pass.
fn is_stopped(attack: Attack, exception: &Exception) -> bool {
    let fault = |is_expected: fn(&crate::arch::PageFault) -> bool| {
        exception.page_fault.as_ref().is_some_and(is_expected)
    };
    match attack {
        Attack::ReadKernel => fault(|it| it.is_protection() && it.address == attacker::DIRECT_MAP),
        Attack::WriteKernel => fault(|it| it.is_protection() && it.is_write()),
        Attack::ExecuteKernel => fault(|it| it.is_protection() && it.is_fetch()),
        Attack::ReadNull => fault(|it| !it.is_protection() && it.address == 0),
        Attack::WriteCode => {
            fault(|it| it.is_protection() && it.is_write() && abi::IMAGE.contains(&it.address))
        }
        Attack::ExecuteStack => {
            fault(|it| it.is_protection() && it.is_fetch() && it.address < abi::STACK_TOP)
        }
        Attack::OverflowStack => fault(|it| {
            it.is_write() && it.address / PAGE_BYTES == (abi::STACK_TOP - abi::STACK_BYTES) / PAGE_BYTES - 1
        }),
        Attack::UseAfterUnmap => fault(|it| !it.is_protection() && it.address == abi::MEMORY.start),
        Attack::Divide => exception.is_named("divide error"),
        Attack::Trace => exception.is_named("debug"),
        Attack::X87 => exception.is_named("device not available"),
        Attack::Sse | Attack::SetGsBase | Attack::Syscall => exception.is_named("invalid opcode"),
        // AMD's CPUs do not have it in 64-bit mode, Intel's were told of no segment for it.
        Attack::Sysenter => exception.is_named("invalid opcode") || exception.is_named("general protection"),
        // The CPU jumps first, where the emulated one finds no page.
        Attack::JumpAstray => exception.is_named("general protection") || exception.page_fault.is_some(),
        _ => exception.is_named("general protection"),
    }
}

test! {
    /// Whatever a program does that it may not is its own end, is reported as what it is, and changes nothing else.
    fn attacks_are_the_attackers_end(_context) {
        let free = process::total_pages();
        for &attack in Attack::ALL {
            let expected = match attack {
                Attack::Spin | Attack::Sleep | Attack::Exhaust | Attack::Flood => continue,
                // Those that follow are about a device.
                Attack::EduCopies => break,
                Attack::Nothing | Attack::Flags | Attack::Registers | Attack::Calls | Attack::Leftovers => Some(LEFT),
                Attack::Panic => Some(101),
                Attack::StoreDescriptors if !user::protections().contains(Cr4::CR4_ENABLE_UMIP) => Some(1),
                _ => None,
            };
            match (run(attack)?, expected) {
                (Ending::Exited(code), Some(expected)) => check_eq!(code, expected, "{attack:?}"),
                (Ending::Fault(exception), None) => check!(is_stopped(attack, &exception), "{attack:?}: {exception}"),
                (Ending::Astray(_), None) => check_eq!(attack, Attack::JumpAstray),
                (ending, _) => return Err(failure!("{attack:?} {ending}")),
            }
        }
        check_eq!(process::total_pages(), free, "pages of processes");
    }
}

test! {
    /// Every CPU keeps ring 0 out of what is open to ring 3, as far as it can, and ring 3 away from the FPU.
    fn each_cpu_keeps_the_rings_apart(context) {
        for cpu in smp::online().map(Cpu::index) {
            let seen = Arc::new(crate::sync::IrqMutex::new(crate::sync::Rank::Device, None));
            let result = seen.clone();
            let look = Box::new(move || {
                // SAFETY: reading them changes nothing.
                *result.lock() = Some(unsafe { (controlregs::cr0(), controlregs::cr4()) });
            });
            let thread = threads::spawn_on(cpu, "look", look).map_err(|error| failure!("{error}"))?;
            check!(thread.join(context.now_ns() + SOON_NS), "cpu {cpu} does not answer");
            let Some((cr0, cr4)) = *seen.lock() else { return Err(failure!("cpu {cpu} saw nothing")) };
            check!(cr4.contains(user::protections()), "cpu {cpu}: {cr4:?}");
            check!(!cr4.intersects(Cr4::CR4_ENABLE_SSE | Cr4::CR4_ENABLE_FSGSBASE), "cpu {cpu}: {cr4:?}");
            check!(cr0.contains(Cr0::CR0_EMULATE_COPROCESSOR), "cpu {cpu}: {cr0:?}");
        }
    }
}

test! {
    /// Processes that never give the CPU back get no more than their share of it, and end when they are killed.
    deadline_ms = 60_000,
    fn loops_are_preempted_and_can_be_killed(context) {
        let count = (smp::count() + 2).min(PROCESSES_MAX);
        let mut spinning = Vec::new();
        for _ in 0..count {
            spinning.push(start(Attack::Spin)?);
        }
        // This thread gets its turn among them.
        for _ in 0..5 {
            threads::sleep_until(context.now_ns() + 10 * clock::NS_PER_MS);
        }
        check_eq!(run(Attack::Nothing)?, Ending::Exited(LEFT));
        for process in &spinning {
            check_eq!(process.wait(0), None);
            process.kill();
            check_eq!(end_of(process)?, Ending::Killed);
        }
        check_eq!(process::total_pages(), 0);
    }
}

test! {
    /// A process ends when it is killed also where no timer and no device interrupts it: alone on its CPU.
    deadline_ms = 60_000,
    fn what_nothing_interrupts_can_be_killed(context) {
        const ROUNDS: usize = 60;
        // Other things interrupt a CPU a few times a second: for so many rounds these are too few.
        let deadline_ns = context.now_ns() + 10 * NS_PER_S;
        for _ in 0..ROUNDS {
            let process = start(Attack::Spin)?;
            threads::sleep_until(context.now_ns() + 5 * clock::NS_PER_MS);
            process.kill();
            check_eq!(process.wait(deadline_ns), Some(Ending::Killed));
        }
    }
}

test! {
    /// A process that waits in the kernel ends as well when it is killed.
    fn what_waits_can_be_killed(_context) {
        let process = start(Attack::Sleep)?;
        check_eq!(process.wait(clock::now_ns() + 50 * clock::NS_PER_MS), None);
        process.kill();
        check_eq!(end_of(&process)?, Ending::Killed);
        check!(process::find(process.pid).is_none(), "it is still in the list");
    }
}

test! {
    /// Processes that are preempted for each other find all their registers as they left them.
    deadline_ms = 60_000,
    fn registers_are_each_processes_own(_context) {
        let mut watching = Vec::new();
        for _ in 0..smp::count() + 2 {
            watching.push(start(Attack::Registers)?);
        }
        for process in &watching {
            check_eq!(end_of(process)?, Ending::Exited(LEFT));
        }
    }
}

test! {
    /// There is a bound to how many processes there are. Nothing is left of one too many, nor of a program that is
    /// none.
    deadline_ms = 60_000,
    fn processes_are_bounded(_context) {
        let mut sleeping = Vec::new();
        for _ in 0..PROCESSES_MAX {
            sleeping.push(start(Attack::Sleep)?);
        }
        let pages = process::total_pages();
        check_eq!(process::all().count(), PROCESSES_MAX);
        check!(matches!(process::start("attacker", 0, Vec::new()), Err(StartError::TooMany)), "there is one too many");
        check!(matches!(process::start("nobody", 0, Vec::new()), Err(StartError::NoSuchProgram)), "nobody was started");
        let damaged = programs::File { name: "damaged", bytes: &programs::FILES[0].bytes[..1000] };
        check!(process::start_file(&damaged, 0, Vec::new()).is_err(), "half a program was started");
        check_eq!(process::total_pages(), pages);
        for process in &sleeping {
            process.kill();
        }
        for process in &sleeping {
            check_eq!(end_of(process)?, Ending::Killed);
        }
        check_eq!(process::all().count(), 0);
        check_eq!(process::total_pages(), 0);
    }
}

test! {
    /// A process gets no more memory than it may have, and all of it again after it gave it back.
    fn memory_of_a_process_is_bounded(_context) {
        const MOST: u64 = process::PAGES_MAX as u64;
        let Ending::Exited(pages) = run(Attack::Exhaust)? else { return Err(failure!("it did not exit")) };
        check!(pages < MOST && pages > MOST - 100, "{pages} pages of {MOST}");
        check_eq!(process::total_pages(), 0);
    }
}

test! {
    /// What a program leaves in memory, no other one finds.
    fn new_memory_is_empty(_context) {
        for _ in 0..10 {
            check_eq!(run(Attack::Leftovers)?, Ending::Exited(LEFT));
        }
    }
}

test! {
    /// A program cannot fill the log.
    fn a_flood_of_lines_is_stopped(context) {
        let began_ns = context.now_ns();
        let Ending::Exited(taken) = run(Attack::Flood)? else { return Err(failure!("it did not exit")) };
        let seconds = (context.now_ns() - began_ns) / NS_PER_S + 1;
        check!((32..=32 + 10 * seconds).contains(&taken), "{taken} lines in {seconds} s");
    }
}

test! {
    /// However processes end, the memory of the machine is as it was.
    deadline_ms = 60_000,
    fn processes_give_their_memory_back(_context) {
        const ROUNDS: usize = 40;
        let round = || {
            check_eq!(run(Attack::Leftovers)?, Ending::Exited(LEFT));
            check!(matches!(run(Attack::ReadKernel)?, Ending::Fault(_)), "it read the kernel's memory");
            let process = start(Attack::Spin)?;
            process.kill();
            check_eq!(end_of(&process)?, Ending::Killed);
            Ok(())
        };
        round()?;
        let before = frames::statistics().free;
        for _ in 0..ROUNDS {
            round()?;
        }
        // Others may have taken or given some; one page that each process loses would be three times as many as this.
        let after = frames::statistics().free;
        check!(after + ROUNDS > before, "{before} frames were free, and now {after}");
        check_eq!(process::total_pages(), 0);
    }
}

test! {
    /// What is taken from a process that goes on is out of every CPU's TLB before it is anybody else's.
    fn what_a_process_gives_back_is_flushed(_context) {
        const TIMES: u64 = 64;
        let table = UserTable::new(KernelTables).ok_or(failure!("no table"))?;
        // As long as a page, and so one.
        let page = vec![0_u8; PAGE_BYTES as usize];
        let at = memory::physical(NonNull::from(&page[0]), PAGE_BYTES as usize).ok_or(failure!("where?"))?;
        let range = PhysRange::new(at, PAGE_BYTES);
        for _ in 0..TIMES {
            // SAFETY: in the lower half, and no CPU ever has this table.
            unsafe { table.map(abi::MEMORY.start, range, X86Access::NO_EXECUTE) }?;
            let before = smp::flushes();
            table.unmap(abi::MEMORY.start, PAGE_BYTES)?;
            check!(smp::flushes() > before, "nobody was asked");
            check!(table.access_at(abi::MEMORY.start).is_none(), "it is mapped still");
        }
    }
}
