//! Commands about the kernel itself.

use core::sync::atomic::Ordering::Relaxed;

use harness::Totals;
use iommu::dump::{GroupReport, UnitReport, Visitor};

use super::{Command, Shell, UsageError, commands};
use crate::{
    arch::{self, ExitCode, apic_errors, clock, interrupts},
    cmdline, console, memory, println, smp, testing, threads,
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
    Command { name: "stats", arguments: "", help: "memory, interrupts, units and faults", run: stats },
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

fn stats(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
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
    println!("errors of local APICs: {}", apic_errors::count());
    println!("mapped  {} buffers", shell.machine.iommu.live_mappings());
    let mut faults = Counts::default();
    shell.machine.iommu.visit(&mut faults);
    let Counts { groups, strangers, lost } = faults;
    println!("faults  {groups} of groups, {strangers} of nobody, {lost} found no room in the ring");
    println!("log     {} lines", console::lines());
    Ok(())
}

/// What the units have done and blocked so far.
#[derive(Default)]
struct Counts {
    groups: u64,
    strangers: u64,
    lost: u64,
}

impl Visitor for Counts {
    fn unit(&mut self, unit: &UnitReport) {
        let UnitReport { unit, doorbells, descriptors, .. } = unit;
        println!("unit    {unit}: {descriptors} invalidations behind {doorbells} doorbells");
    }

    fn group(&mut self, group: &GroupReport<'_>) {
        self.groups += group.faults;
    }

    fn lost_faults(&mut self, count: u64) {
        self.lost = count;
    }

    fn stranger_faults(&mut self, count: u64) {
        self.strangers = count;
    }
}

fn exit(_shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [] = arguments else { return Err(UsageError) };
    arch::exit(ExitCode::Success)
}
