//! Commands about PCI functions and the disk.

use drivers::{
    block::{self, BlockDevice, Operation, Transfer},
    pci::{class_name, device_name},
};
use iommu::PageBuffer;

use super::{Command, Shell, UsageError};
use crate::{demo, println};

pub(super) static COMMANDS: &[Command] = &[
    Command { name: "lspci", arguments: "", help: "PCI functions", run: lspci },
    Command { name: "disk", arguments: "read BLOCK", help: "show a block of the disk", run: disk },
];

fn lspci(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [] = arguments else { return Err(UsageError) };
    for function in &shell.machine.functions {
        let name = device_name(function.id).unwrap_or_else(|| class_name(function.class));
        println!("{}  {:04x}:{:04x}  {name}", function.address, function.id.vendor, function.id.device);
    }
    Ok(())
}

fn disk(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let ["read", block] = arguments else { return Err(UsageError) };
    let first = block.parse().map_err(|_| UsageError)?;
    let Ok(disk) = shell.machine.disk() else {
        println!("there is no disk");
        return Ok(());
    };
    let Some(buffer) = PageBuffer::zeroed(1) else {
        println!("no memory for a buffer");
        return Ok(());
    };
    let transfer = Transfer { first, blocks: 1, buffer };
    match block::transfer(&shell.machine.host, &*disk, Operation::Read(transfer)) {
        Ok(Some(buffer)) => demo::dump(&buffer[..disk.info().block_bytes as usize]),
        Ok(None) => println!("the buffer did not come back"),
        Err(error) => println!("{error}"),
    }
    Ok(())
}
