//! Domains of other owners than the kernel, and who is in them.

use alloc::{format, string::String};

use iommu::{DmaDomain, PciAddress, dump::GroupStanding};
use suites::reports;

use super::{Command, Shell, UsageError};
use crate::println;

pub(super) static COMMANDS: &[Command] = &[
    Command {
        name: "assign",
        arguments: "FUNCTION to DOMAIN",
        help: "give a function's group to the owner of a domain, or of a `new` one",
        run: assign,
    },
    Command {
        name: "deassign",
        arguments: "FUNCTION",
        help: "reset a function and take its group out of its domain",
        run: deassign,
    },
    Command {
        name: "destroy",
        arguments: "DOMAIN",
        help: "end a domain that is empty, or over a space",
        run: destroy,
    },
];

/// Whether the group of `function` is assigned to somebody.
fn is_assigned(shell: &Shell<'_>, function: PciAddress) -> bool {
    reports::group(&shell.machine.iommu, function).is_some_and(|group| group.is_assigned())
}

/// Why `function`, called `name`, is not given to anybody now: what has a driver, or is in quarantine, is released
/// first.
fn why_not(shell: &Shell<'_>, name: &str, function: PciAddress) -> Option<String> {
    let group = reports::group(&shell.machine.iommu, function)?;
    match group.standing {
        Some(GroupStanding::Claimed) if !group.is_assigned() => {
            Some(format!("{name} has a driver of the kernel's"))
        }
        Some(GroupStanding::Quarantined { .. }) => {
            Some(format!("{name} is in quarantine; `release {name}` ends that"))
        }
        _ => None,
    }
}

/// The domain that is called `name`; a line that says why there is none.
fn find_domain(shell: &Shell<'_>, name: &str) -> Option<DmaDomain> {
    let domain = name.parse().ok().and_then(|number| shell.machine.iommu.domain(number));
    if domain.is_none() {
        println!("there is no domain {name} that could be given a device");
    }
    domain
}

fn assign(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [name, "to", domain] = arguments else { return Err(UsageError) };
    let Some(function) = shell.find(name) else {
        println!("there is no function {name}");
        return Ok(());
    };
    let iommu = &shell.machine.iommu;
    if let Some(reason) = why_not(shell, name, function) {
        println!("{reason}");
        return Ok(());
    }
    let is_new = *domain == "new";
    let domain = match *domain {
        "new" => iommu.create_domain(&[function]).inspect_err(|error| println!("{error}")).ok(),
        number => find_domain(shell, number),
    };
    let Some(domain) = domain else { return Ok(()) };
    match shell.machine.assign(function, &domain) {
        Ok(_) => {
            println!("{name} was reset and is in domain {}; `deassign {name}` takes it out", domain.number())
        }
        Err(error) => {
            println!("{error}");
            if is_new && let Err(error) = domain.destroy() {
                println!("{error}");
            }
        }
    }
    Ok(())
}

fn deassign(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [name] = arguments else { return Err(UsageError) };
    match shell.find(name).filter(|&function| is_assigned(shell, function)) {
        Some(function) => match shell.machine.release(function) {
            Ok(()) => println!("{name} was reset and is free"),
            Err(error) => println!("{error}"),
        },
        None => println!("{name} is assigned to nobody"),
    }
    Ok(())
}

fn destroy(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [name] = arguments else { return Err(UsageError) };
    let Some(domain) = find_domain(shell, name) else { return Ok(()) };
    match domain.destroy() {
        Ok(()) => println!("domain {name} is gone"),
        Err(error) => println!("{error}"),
    }
    Ok(())
}
