//! Commands about the kernel itself.

use core::sync::atomic::Ordering::Relaxed;

use harness::Totals;

use super::{Command, Shell, UsageError, commands};
use crate::{
    arch::{self, ExitCode, clock, interrupts},
    cmdline, memory, println, smp, testing, threads,
};

pub(super) static COMMANDS: &[Command] = &[
    Command { name: "help", arguments: "", help: "list the commands", run: help },
    Command {
        name: "tests",
        arguments: "[GLOB]",
        help: "list the tests, or run those that match",
        run: tests,
    },
    Command { name: "bench", arguments: "GLOB", help: "run the benchmarks that match", run: bench },
    Command { name: "cpus", arguments: "", help: "the CPUs, and what they run", run: cpus },
    Command { name: "stats", arguments: "", help: "memory and interrupts", run: stats },
    Command { name: "exit", arguments: "", help: "power off", run: exit },
];

fn help(_shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [] = arguments else { return Err(UsageError) };
    for Command { name, arguments, help, .. } in commands() {
        println!("  {:24} {help}", alloc::format!("{name} {arguments}"));
    }
    Ok(())
}

fn tests(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    match arguments {
        [] => testing::names().iter().for_each(|name| println!("{name}")),
        [glob] => {
            let Totals { .. } = testing::run(
                cmdline::Selection { glob, from: None, after: None },
                core::iter::empty(),
                shell.machine,
            );
        }
        _ => return Err(UsageError),
    }
    Ok(())
}

fn bench(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [glob] = arguments else { return Err(UsageError) };
    testing::bench(glob, shell.machine);
    Ok(())
}

fn cpus(_shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [] = arguments else { return Err(UsageError) };
    println!("cpu  APIC id  interrupts  switches  flushes  thread");
    for cpu in smp::online() {
        println!(
            "{:3}  {:7}  {:10}  {:8}  {:7}  {}",
            cpu.index(),
            cpu.apic_id(),
            cpu.interrupts.load(Relaxed),
            cpu.switches.load(Relaxed),
            cpu.flushes_done.load(Relaxed),
            threads::running_on(cpu),
        );
    }
    println!("all TLBs flushed {} times", smp::flushes());
    Ok(())
}

fn stats(_shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [] = arguments else { return Err(UsageError) };
    println!("up      {} s", clock::now_ns() / clock::NS_PER_S);
    let frames = memory::frames::statistics();
    println!("cpus    {}", smp::count());
    println!("heap    {} bytes in small blocks", memory::small_bytes());
    let (used, mapped) = memory::stacks::count();
    println!("stacks  {used} in use, {mapped} mapped");
    println!("memory  {} of {} frames free, {} in one piece", frames.free, frames.total, frames.largest_free);
    for vector in (u8::MIN..=u8::MAX).filter(|&vector| interrupts::arrived(vector) > 0) {
        println!("vector  {vector:#04x} arrived {} times", interrupts::arrived(vector));
    }
    println!("vectors that nobody had asked for: {}", interrupts::unexpected());
    Ok(())
}

fn exit(_shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [] = arguments else { return Err(UsageError) };
    arch::exit(ExitCode::Success)
}
