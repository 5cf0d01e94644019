//! Domains of other owners than the kernel, and who is in them.

use iommu::{DmaDomain, PciAddress, dump::DomainKind};
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
    Command { name: "destroy", arguments: "DOMAIN", help: "end a domain that is empty", run: destroy },
];

/// Whether the group of `function` is in a domain that was created.
fn is_assigned(shell: &Shell<'_>, function: PciAddress) -> bool {
    let domain = reports::group(&shell.machine.iommu, function).and_then(|group| group.domain);
    domain.is_some_and(|domain| domain.kind == DomainKind::Assigned)
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
    let group = reports::group(iommu, function).and_then(|group| group.domain);
    if group.is_some_and(|domain| domain.kind != DomainKind::Assigned) {
        println!("{name} has a driver of the kernel's");
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
