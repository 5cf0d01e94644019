//! Taking devices from their drivers, and giving them back.

use iommu::PciAddress;

use super::{Command, Shell, UsageError};
use crate::println;

pub(super) static COMMANDS: &[Command] = &[
    Command {
        name: "quarantine",
        arguments: "FUNCTION",
        help: "take from a function's group all that it may reach",
        run: quarantine,
    },
    Command {
        name: "release",
        arguments: "FUNCTION",
        help: "reset a function, end its quarantine, start its driver anew",
        run: release,
    },
];

/// The function that is written like that, with its segment or without.
fn find(shell: &Shell<'_>, name: &str) -> Option<PciAddress> {
    let mut addresses = shell.machine.functions.iter().map(|function| function.address);
    addresses.find(|address| {
        let text = alloc::format!("{address}");
        text == name || text.strip_prefix("0000:") == Some(name)
    })
}

fn quarantine(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [name] = arguments else { return Err(UsageError) };
    match find(shell, name).map(|function| shell.machine.iommu.quarantine(function)) {
        Some(Ok(())) => println!("{name} reaches nothing any more; `release {name}` gives it back"),
        Some(Err(error)) => println!("{error}"),
        None => println!("there is no function {name}"),
    }
    Ok(())
}

fn release(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [name] = arguments else { return Err(UsageError) };
    match find(shell, name).map(|function| shell.machine.restart(function)) {
        Some(Ok(true)) => println!("{name} was reset, and its driver has started anew"),
        Some(Ok(false)) => println!("{name} was reset and is free"),
        Some(Err(error)) => println!("{error}"),
        None => println!("there is no function {name}"),
    }
    Ok(())
}
