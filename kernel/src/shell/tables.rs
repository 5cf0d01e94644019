//! The tables that a request goes through, from the root down.

use iommu::{
    Iova, PciAddress, SourceId,
    dump::{Leads, StepReport, TableKind, Visitor},
};
use suites::reports;

use super::{Command, Shell, UsageError};
use crate::println;

pub(super) static COMMANDS: &[Command] = &[Command {
    name: "tables",
    arguments: "FUNCTION [IOVA]",
    help: "a function's way through the tables: to what is mapped, or for one address",
    run: tables,
}];

fn tables(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let (name, address) = match arguments {
        [name] => (name, None),
        [name, address] => (name, Some(parse(address).ok_or(UsageError)?)),
        _ => return Err(UsageError),
    };
    let Some(function) = shell.find(name) else {
        println!("there is no function {name}");
        return Ok(());
    };
    println!("{function}  {}", shell.name_of(function));
    if !print_way(shell, function, address) {
        println!("no remapping unit covers it");
    } else if address.is_none() {
        let mappings = reports::group(&shell.machine.iommu, function).unwrap_or_default().mappings;
        mappings.iter().for_each(|mapping| println!("  {mapping}"));
    }
    Ok(())
}

/// Prints the ways of `function`'s requests, for `address` or as far as they all go. Returns whether a unit covers it.
pub(super) fn print_way(shell: &Shell<'_>, function: PciAddress, address: Option<Iova>) -> bool {
    shell.machine.iommu.trace(function, address, &mut Way)
}

/// An address in hexadecimal, with or without 0x.
fn parse(text: &str) -> Option<Iova> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok().map(Iova::new)
}

struct Way;

impl Visitor for Way {
    fn way(&mut self, source: SourceId, unit: usize) {
        println!("requests of {source} at unit {unit}");
        println!("  table    entry  {:34}  leads to", "value");
    }

    fn step(&mut self, step: &StepReport) {
        let (table, entry) = match step.table {
            TableKind::Root => ("root".into(), alloc::string::String::new()),
            TableKind::Context => ("context".into(), alloc::string::String::new()),
            TableKind::PasidDirectory => ("pasids".into(), alloc::string::String::new()),
            TableKind::Pasid => ("pasid".into(), alloc::string::String::new()),
            TableKind::Page { level, index } => (alloc::format!("level {level}"), alloc::format!("{index}")),
        };
        let leads = match step.leads {
            Leads::Nowhere => "nowhere: not present".into(),
            Leads::On => "the next table".into(),
            Leads::Memory { start, read, write } => {
                let right = |on, letter| if on { letter } else { '-' };
                alloc::format!("memory at {start} {}{}", right(read, 'r'), right(write, 'w'))
            }
        };
        println!("  {table:7}  {entry:>5}  {:#034x}  {leads}", step.raw);
    }
}
