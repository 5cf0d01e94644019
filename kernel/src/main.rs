//! The kernel: from the boot loader's hands to the first thread, and from there to tests and shell.
#![no_std]
#![no_main]

extern crate alloc;

mod acpi;
mod arch;
mod boot_info;
mod cmdline;
mod console;
mod control;
mod demo;
mod devices;
mod memory;
mod panic;
mod platform;
mod process;
mod programs;
mod selftests;
mod shell;
mod smp;
mod status_page;
mod sync;
mod testing;
mod threads;

use alloc::{boxed::Box, string::String};
use core::fmt::Display;

use arch::{ExitCode, clock};
use boot_info::{BootInfo, Region};
use cmdline::Options;
use mm::PhysAddr;
use platform::Kernel;
use shell::Shell;
use suites::{Machine, power_cut};

/// Where the boot code leads, on the boot stack with interrupts off. `start_info` is the physical address of the
/// loader's `hvm_start_info`.
extern "C" fn kernel_main(start_info: u32) -> ! {
    arch::Cpu::install(0);
    console::init();
    arch::idt::init();
    let boot = start_memory(start_info);
    start_cpu();
    threads::init();
    let command_line = String::from(boot.command_line());
    let (rsdp, memory_map) = (boot.rsdp, boot.regions().to_vec());
    let main = Box::new(move || main(&command_line, rsdp, &memory_map));
    threads::spawn("main", main).unwrap_or_else(|error| fatal(&error));
    threads::idle()
}

/// Reads what the loader left, and makes all memory usable.
fn start_memory(start_info: u32) -> BootInfo {
    // SAFETY: the boot tables are active, and nothing has used any memory outside the image yet.
    let boot = unsafe { BootInfo::read(start_info.into()) }.unwrap_or_else(|error| fatal(&error));
    // SAFETY: as above; this is the only call.
    let bytes = unsafe { memory::init(&boot) }.unwrap_or_else(|error| fatal(&error));
    log::info!("{} MiB of RAM in {} regions", bytes >> 20, boot.regions().len());
    if boot.regions_ignored > 0 {
        log::warn!("{} regions of the memory map ignored", boot.regions_ignored);
    }
    boot
}

/// Gives this CPU its stacks for exceptions, its clock and its interrupts.
fn start_cpu() {
    let stacks =
        [(); 3].map(|()| memory::stacks::Stack::leak_new().unwrap_or_else(|| fatal(&"no memory for stacks")));
    // SAFETY: this CPU does so once, with new stacks, and no other CPU has loaded the interrupt table.
    unsafe {
        arch::gdt::load(stacks);
        arch::idt::use_interrupt_stacks();
    }
    arch::user::init();
    arch::cache::init();
    arch::memory_types::init();
    arch::legacy_pic::disable();
    let (tsc_hz, source) = clock::init();
    arch::apic::init().unwrap_or_else(|error| fatal(&error));
    let mode = if arch::apic::is_x2apic() { "x2APIC" } else { "xAPIC" };
    log::info!("clock at {} MHz ({source:?}), {mode}", tsc_hz / 1_000_000);
}

/// The first thread.
fn main(command_line: &str, rsdp: Option<PhysAddr>, memory_map: &[Region]) {
    let options = read_options(command_line);
    let tables = read_tables(rsdp);
    smp::start_others(&tables.cpus);
    arch::io_apic::init(&tables.io_apics);
    if let Err(error) = arch::apic_errors::start_reports() {
        log::error!("errors of local APICs are not reported: {error}");
    }
    let kernel = Kernel::new(&tables);
    let parts = devices::start(&kernel, &tables, memory_map, &options).unwrap_or_else(|error| fatal(&error));
    let machine = Machine::new(parts);

    if let Err(error) = shell::input::init(&machine.iommu, tables.isa_wire(console::ISA_IRQ)) {
        log::error!("the serial line has no interrupt: {error}");
    }
    run_tests(&options, &machine);
    demo::run(&machine);
    if !options.exit {
        Shell { machine: &machine }.run();
    }
    arch::exit(ExitCode::Success)
}

fn read_options(command_line: &str) -> Options<'_> {
    let options = cmdline::parse(command_line, |word| log::warn!("{word}"));
    log::set_max_level(options.log);
    options
}

/// What the firmware says; nothing at all if it says nothing that makes sense.
fn read_tables(rsdp: Option<PhysAddr>) -> acpi::Tables {
    let Some(rsdp) = rsdp else {
        log::warn!("no ACPI tables");
        return acpi::Tables::default();
    };
    acpi::read(rsdp).unwrap_or_else(|error| {
        log::error!("{error}");
        acpi::Tables::default()
    })
}

/// Runs what the command line selects. With failures, and if nobody is there to look at them, the machine ends here.
fn run_tests(options: &Options<'_>, machine: &Machine) {
    let mut failed = 0;
    if options.tests.glob != "none" {
        let misbehaving = options.selftest.map(selftests::misbehaving);
        let extra = misbehaving.into_iter().chain(options.power_cut.map(power_cut::case_of));
        failed += testing::run(options.tests, extra, machine).failed;
    }
    if let Some(glob) = options.bench {
        failed += testing::bench(glob, machine);
    }
    if failed > 0 && options.exit {
        arch::exit(ExitCode::TestsFailed);
    }
}

/// The machine cannot go on.
fn fatal(error: &dyn Display) -> ! {
    log::error!("{error}");
    arch::exit(ExitCode::Panic)
}
