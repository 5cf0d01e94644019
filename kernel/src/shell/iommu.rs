//! Commands that show the IOMMU at work.

use drivers::pci::{Function, class_name, device_name};
use iommu::{
    dump::{DomainReport, GroupReport, GroupStanding, InterruptReport, MappingReport, UnitReport, Visitor},
    fault::Fault,
    interrupts::Sender,
};

use super::{Command, Shell, UsageError};
use crate::{arch::interrupts, println};

pub(super) static COMMANDS: &[Command] = &[
    Command {
        name: "units",
        arguments: "",
        help: "remapping units: what they are and what is on",
        run: units,
    },
    Command {
        name: "domains",
        arguments: "[-v]",
        help: "groups and their domains; -v: what is mapped",
        run: domains,
    },
    Command {
        name: "irt",
        arguments: "",
        help: "interrupt-remapping entries: who may raise what, and how often it came",
        run: irt,
    },
    Command { name: "faults", arguments: "", help: "the last requests that were blocked", run: faults },
];

fn units(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [] = arguments else { return Err(UsageError) };
    let mut shown = Units { shown: 0 };
    shell.machine.iommu.visit(&mut shown);
    if shown.shown == 0 {
        println!("no remapping unit is in use");
    }
    Ok(())
}

struct Units {
    shown: usize,
}

impl Visitor for Units {
    fn unit(&mut self, unit: &UnitReport) {
        let on = |on: bool| if on { "on" } else { "off" };
        let (major, minor) = unit.version;
        println!(
            "unit {}  registers {}  segment {}  version {major}.{minor}",
            unit.unit, unit.base, unit.segment
        );
        println!("  CAP {:#018x}  ECAP {:#018x}", unit.capability, unit.extended_capability);
        println!("  GSTS {:#010x}  FSTS {:#010x}", unit.global_status, unit.fault_status);
        println!(
            "  translation {}  queue {}  interrupt remapping {}",
            on(unit.translates()),
            on(unit.queues_invalidations()),
            on(unit.remaps_interrupts()),
        );
        println!("  {} address bits, {} domain ids in use", unit.address_bits, unit.domains);
        if !unit.alive {
            println!("  DOES NOT ANSWER: what is behind it is stopped");
        }
        self.shown += 1;
    }
}

fn domains(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let mappings = match arguments {
        [] => false,
        ["-v"] => true,
        _ => return Err(UsageError),
    };
    println!("group  domain  levels     pages  faults  functions");
    let mut shown = Domains { mappings, group: None };
    shell.machine.iommu.visit(&mut shown);
    shown.finish();
    Ok(())
}

/// A group is printed when it is known whether a domain belongs to it: with the domain, or before the next group.
struct Domains {
    mappings: bool,
    group: Option<(usize, u64, alloc::string::String)>,
}

/// What is behind the functions of a group that is in quarantine.
fn remark(standing: GroupStanding) -> &'static str {
    match standing {
        GroupStanding::Quarantined { on_scratch_page: true, .. } => " (quarantine, scratch page)",
        GroupStanding::Quarantined { .. } => " (quarantine)",
        GroupStanding::Free | GroupStanding::Claimed => "",
    }
}

impl Domains {
    fn finish(&mut self) {
        if let Some((group, faults, functions)) = self.group.take() {
            println!("{group:5}  blocked      -         -  {faults:6}  {functions}");
        }
    }
}

impl Visitor for Domains {
    fn group(&mut self, group: &GroupReport<'_>) {
        self.finish();
        let names: alloc::vec::Vec<_> =
            group.functions.iter().map(|function| alloc::format!("{function}")).collect();
        let functions = names.join(" ") + remark(group.standing);
        self.group = Some((group.group, group.faults, functions));
    }

    fn domain(&mut self, domain: &DomainReport) {
        if let Some((group, faults, functions)) = self.group.take() {
            let DomainReport { number, levels, mapped_pages, .. } = domain;
            println!("{group:5}  {number:6}  {levels:6}  {mapped_pages:8}  {faults:6}  {functions}");
        }
    }

    fn mapping(&mut self, mapping: &MappingReport) {
        if self.mappings {
            println!("         {mapping}");
        }
    }

    fn fault(&mut self, _fault: &Fault) {
        self.finish();
    }

    fn lost_faults(&mut self, _count: u64) {
        self.finish();
    }
}

fn irt(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [] = arguments else { return Err(UsageError) };
    let mut shown = Entries { shown: 0, functions: &shell.machine.functions };
    shell.machine.iommu.visit(&mut shown);
    if shown.shown == 0 {
        println!("no interrupt is remapped");
    }
    println!("vectors that nobody had asked for: {}", interrupts::unexpected());
    Ok(())
}

struct Entries<'a> {
    shown: usize,
    functions: &'a [Function],
}

impl Entries<'_> {
    /// What may use an entry, in words.
    fn name_of(&self, sender: Option<Sender>) -> &'static str {
        let Some(Sender::Function(source) | Sender::Functions { source, .. }) = sender else { return "" };
        match self.functions.iter().find(|function| function.address == source.function()) {
            Some(function) => device_name(function.id).unwrap_or_else(|| class_name(function.class)),
            // Devices that are no PCI functions have ids of their own; of those only I/O APICs are in use here.
            None => "I/O APIC",
        }
    }
}

impl Visitor for Entries<'_> {
    fn interrupt(&mut self, entry: &InterruptReport) {
        if self.shown == 0 {
            println!("unit  entry  may be raised by  vector   to APIC  trigger  arrived  device");
        }
        self.shown += 1;
        let InterruptReport { unit, index, vector, apic, .. } = *entry;
        let sender = entry.sender.map_or("ANYBODY".into(), |sender| alloc::format!("{sender}"));
        let trigger = if entry.level_triggered { "level" } else { "edge" };
        let arrived = interrupts::arrived(vector);
        let name = self.name_of(entry.sender);
        println!(
            "{unit:4}  {index:5}  {sender:16}  {vector:#6x}  {apic:#8x}  {trigger:7}  {arrived:7}  {name}"
        );
    }
}

fn faults(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [] = arguments else { return Err(UsageError) };
    let mut shown = Faults { shown: 0 };
    shell.machine.iommu.visit(&mut shown);
    if shown.shown == 0 {
        println!("nothing was blocked");
    }
    Ok(())
}

struct Faults {
    shown: usize,
}

impl Visitor for Faults {
    fn fault(&mut self, fault: &Fault) {
        println!("{fault}");
        self.shown += 1;
    }

    fn lost_faults(&mut self, count: u64) {
        if count > 0 {
            println!("{count} more found no room in the ring");
        }
    }
}
