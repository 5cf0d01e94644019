//! Commands about PCI functions and disks.

use alloc::string::String;

use drivers::block::{self, BlockDevice, Operation, Transfer};
use iommu::PageBuffer;

use super::{Command, Shell, UsageError, name_of};
use crate::{demo, println};

pub(super) static COMMANDS: &[Command] = &[
    Command { name: "lspci", arguments: "", help: "PCI functions", run: lspci },
    Command {
        name: "sriov",
        arguments: "FUNCTION COUNT",
        help: "give a function so many virtual ones; 0 takes them away",
        run: sriov,
    },
    Command {
        name: "disk",
        arguments: "[NAME read BLOCK]",
        help: "list the disks, or show a block of one",
        run: disk,
    },
];

fn lspci(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [] = arguments else { return Err(UsageError) };
    for function in shell.machine.hotplug.each() {
        let name = name_of(&function);
        println!("{}  {:04x}:{:04x}  {name}", function.address, function.id.vendor, function.id.device);
    }
    Ok(())
}

fn sriov(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [name, count] = arguments else { return Err(UsageError) };
    let count = count.parse().map_err(|_| UsageError)?;
    let Some(function) = shell.find(name) else {
        println!("there is no function {name}");
        return Ok(());
    };
    let hotplug = &shell.machine.hotplug;
    if count == 0 {
        match hotplug.disable_virtual(function) {
            Ok(()) => println!("{name} has no virtual functions"),
            Err(error) => println!("{error}"),
        }
        return Ok(());
    }
    match hotplug.enable_virtual(function, count) {
        Ok(found) => found.iter().for_each(|function| println!("{}", function.address)),
        Err(error) => println!("{error}"),
    }
    Ok(())
}

fn disk(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let disks = (0..).map_while(|number| shell.machine.disk_at(number)).enumerate();
    match arguments {
        [] => disks.for_each(|(number, disk)| show(number, &*disk)),
        [name, "read", block] => {
            let first = block.parse().map_err(|_| UsageError)?;
            match disks.map(|(number, disk)| (disk_name(number), disk)).find(|(own, _)| own == name) {
                Some((_, disk)) => read(shell, &*disk, first),
                None => println!("there is no disk {name}"),
            }
        }
        _ => return Err(UsageError),
    }
    Ok(())
}

fn disk_name(number: usize) -> String {
    alloc::format!("disk{number}")
}

fn show(number: usize, disk: &dyn BlockDevice) {
    let info = disk.info();
    let mib = (info.blocks.saturating_mul(info.block_bytes.into())) >> 20;
    println!(
        "{:8} {}  {:11} {mib} MiB, {} blocks of {} bytes{}; queues {}, requests at a time {}, resets {}",
        disk_name(number),
        disk.dma().function(),
        info.driver,
        info.blocks,
        info.block_bytes,
        if info.read_only { ", read-only" } else { "" },
        disk.queues(),
        disk.depth(),
        disk.resets(),
    );
}

fn read(shell: &Shell<'_>, disk: &dyn BlockDevice, first: u64) {
    let Some(buffer) = PageBuffer::zeroed(1) else {
        println!("no memory for a buffer");
        return;
    };
    let transfer = Transfer { first, blocks: 1, buffer };
    match block::transfer(&shell.machine.host, disk, Operation::Read(transfer)) {
        Ok(Some(buffer)) => demo::dump(&buffer[..disk.info().block_bytes as usize]),
        Ok(None) => println!("the buffer did not come back"),
        Err(error) => println!("{error}"),
    }
}
