//! Commands that show the IOMMU at work.

use alloc::{format, string::String, vec::Vec};

use iommu::{
    PciAddress,
    dump::{
        DomainKind, DomainReport, GroupReport, GroupStanding, InterruptReport, MappingReport, UnitReport,
        Visitor,
    },
    fault::{Fault, FaultTarget},
    interrupts::Sender,
};

use suites::reports;

use super::{Command, Shell, UsageError, tables};
use crate::{arch::interrupts, println};

pub(super) static COMMANDS: &[Command] = &[
    Command {
        name: "units",
        arguments: "",
        help: "remapping units: what they are and what is on",
        run: units,
    },
    Command {
        name: "groups",
        arguments: "",
        help: "what can be isolated from the rest: who has it, and its faults",
        run: groups,
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
        if self.shown == 0 {
            println!(
                "unit  registers   segment  version  bits  domains  translation  queue  interrupts  storms"
            );
        }
        self.shown += 1;
        let on = |on: bool| if on { "on" } else { "off" };
        let (major, minor) = unit.version;
        println!(
            "{:4}  {:10}  {:7}  {:>7}  {:4}  {:7}  {:11}  {:5}  {:10}  {:6}",
            unit.unit,
            format!("{}", unit.base),
            unit.segment,
            format!("{major}.{minor}"),
            unit.address_bits,
            unit.domains,
            translation_of(unit),
            on(unit.queues_invalidations()),
            if unit.remaps_interrupts() { "remapped" } else { "as sent" },
            unit.fault_storms,
        );
        println!("      CAP {:#018x}  ECAP {:#018x}", unit.capability, unit.extended_capability);
        println!("      GSTS {:#010x}  FSTS {:#010x}", unit.global_status, unit.fault_status);
        if !unit.alive {
            println!("      DOES NOT ANSWER: what is behind it is stopped");
        }
    }
}

/// How a unit translates, in a word or two.
fn translation_of(unit: &UnitReport) -> &'static str {
    match (unit.translates(), unit.is_scalable()) {
        (false, _) => "off",
        (true, false) => "on",
        (true, true) if unit.first_stage => "first stage",
        (true, true) => "scalable",
    }
}

/// How a group stands, in words.
fn words_of(standing: GroupStanding) -> &'static str {
    match standing {
        GroupStanding::Free => "free",
        GroupStanding::Claimed => "claimed",
        GroupStanding::Quarantined { on_scratch_page: true, .. } => "quarantine: scratch page",
        GroupStanding::Quarantined { .. } => "quarantine: blocked",
    }
}

/// A line for each of a group's functions: what is known of the group before the first.
fn print_functions(shell: &Shell<'_>, group: &str, functions: &[PciAddress]) {
    for (number, &function) in functions.iter().enumerate() {
        let group = if number == 0 { group } else { "" };
        println!("{group:52}  {function}  {}", shell.name_of(function));
    }
}

fn groups(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [] = arguments else { return Err(UsageError) };
    println!("{:52}  function      device", "group  standing                     faults  reserved");
    shell.machine.iommu.visit(&mut Groups { shell });
    Ok(())
}

struct Groups<'a> {
    shell: &'a Shell<'a>,
}

impl Visitor for Groups<'_> {
    fn group(&mut self, group: &GroupReport<'_>) {
        let reserved_kib = group.reserved.iter().map(|range| range.bytes).sum::<u64>() >> 10;
        let reserved = if reserved_kib == 0 { "-".into() } else { format!("{reserved_kib} KiB") };
        let (standing, faults) = (words_of(group.standing), group.faults);
        let row = format!("{:5}  {standing:24}  {faults:>9}  {reserved:>8}", group.group);
        print_functions(self.shell, &row, group.functions);
    }
}

fn domains(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let mappings = match arguments {
        [] => false,
        ["-v"] => true,
        _ => return Err(UsageError),
    };
    println!("{:52}  function      device", "group  domain        levels     pages    faults");
    let mut shown = Domains { shell, mappings, group: None };
    shell.machine.iommu.visit(&mut shown);
    shown.finish();
    Ok(())
}

/// A group is printed when it is known whether a domain belongs to it: with the domain, or before the next group.
struct Domains<'a> {
    shell: &'a Shell<'a>,
    mappings: bool,
    group: Option<Row>,
}

struct Row {
    group: usize,
    faults: u64,
    functions: Vec<PciAddress>,
    standing: GroupStanding,
}

impl Domains<'_> {
    fn finish(&mut self) {
        let Some(Row { group, faults, functions, standing }) = self.group.take() else { return };
        let scratch = matches!(standing, GroupStanding::Quarantined { on_scratch_page: true, .. });
        let domain = if scratch { "scratch page" } else { "blocked" };
        let row = format!("{group:5}  {domain:12}       -         -  {faults:8}");
        print_functions(self.shell, &row, &functions);
    }
}

impl Visitor for Domains<'_> {
    fn group(&mut self, group: &GroupReport<'_>) {
        self.finish();
        let GroupReport { group, functions, faults, standing, .. } = *group;
        self.group = Some(Row { group, faults, functions: functions.to_vec(), standing });
    }

    fn domain(&mut self, domain: &DomainReport) {
        if let Some(Row { group, faults, functions, .. }) = self.group.take() {
            let DomainReport { levels, mapped_pages, .. } = domain;
            let name = name_of_domain(domain);
            let row = format!("{group:5}  {name:12}  {levels:6}  {mapped_pages:8}  {faults:8}");
            print_functions(self.shell, &row, &functions);
        }
    }

    fn created_domain(&mut self, domain: &DomainReport, groups: usize) {
        self.finish();
        let DomainReport { levels, mapped_pages, .. } = domain;
        let name = name_of_domain(domain);
        println!(
            "    -  {name:12}  {levels:6}  {mapped_pages:8}         -       {groups} groups are assigned to it"
        );
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

/// What a domain is called.
fn name_of_domain(domain: &DomainReport) -> String {
    match domain.kind {
        DomainKind::Kernel => format!("{}", domain.number),
        DomainKind::Identity => format!("{} identity", domain.number),
        DomainKind::Assigned => format!("{} assigned", domain.number),
        DomainKind::Shared => format!("{} shared", domain.number),
    }
}

fn irt(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let [] = arguments else { return Err(UsageError) };
    let mut shown = Entries { shell, shown: 0 };
    shell.machine.iommu.visit(&mut shown);
    if shown.shown == 0 {
        println!("no interrupt is remapped");
    }
    println!("vectors that nobody had asked for: {}", interrupts::unexpected());
    Ok(())
}

struct Entries<'a> {
    shell: &'a Shell<'a>,
    shown: usize,
}

impl Entries<'_> {
    /// What may use an entry, in words.
    fn name_of(&self, sender: Option<Sender>) -> &'static str {
        let Some(Sender::Function(source) | Sender::Functions { source, .. }) = sender else { return "" };
        match self.shell.name_of(source.function()) {
            // Devices that are no PCI functions have ids of their own; of those only I/O APICs are in use here.
            "" => "I/O APIC",
            name => name,
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
    let mut shown = Faults { shell, shown: 0 };
    shell.machine.iommu.visit(&mut shown);
    if shown.shown == 0 {
        println!("nothing was blocked");
    }
    let faults = reports::faults(&shell.machine.iommu);
    let is_last = |(index, fault): &(usize, &Fault)| {
        faults[index + 1..].iter().all(|later| later.source != fault.source)
    };
    // Those of the most recent sources: each way is some lines.
    const WAYS_MAX: usize = 4;
    let mut last: Vec<&Fault> = faults.iter().enumerate().filter(is_last).map(|(_, fault)| fault).collect();
    last.drain(..last.len().saturating_sub(WAYS_MAX));
    last.into_iter().for_each(|fault| print_way(shell, fault));
    Ok(())
}

/// The entries that `fault` went by, as they are now.
fn print_way(shell: &Shell<'_>, fault: &Fault) {
    let Fault { source, access, .. } = *fault;
    match fault.target {
        FaultTarget::Address(address) => {
            println!("the way of the last {access} of {source}, at {address}, as it is now:");
            if !tables::print_way(shell, source.function(), Some(address)) {
                println!("  {source} is no function of a group");
            }
        }
        FaultTarget::Interrupt(Some(index)) => {
            println!("the entry of the last interrupt of {source}, as it is now:");
            let unit = reports::group(&shell.machine.iommu, source.function()).and_then(|group| group.unit);
            let entries = reports::interrupts(&shell.machine.iommu);
            let is_it =
                |entry: &&InterruptReport| entry.index == index && unit.is_none_or(|unit| unit == entry.unit);
            match entries.iter().find(is_it) {
                Some(entry) => Entries { shell, shown: 0 }.interrupt(entry),
                None => println!("  entry {index} is not present"),
            }
        }
        FaultTarget::Interrupt(None) => {}
    }
}

struct Faults<'a> {
    shell: &'a Shell<'a>,
    shown: usize,
}

impl Visitor for Faults<'_> {
    fn fault(&mut self, fault: &Fault) {
        if self.shown == 0 {
            println!(
                "source        device                          access        target              reason"
            );
        }
        self.shown += 1;
        let Fault { source, access, reason, .. } = fault;
        let (access, target) = match fault.target {
            FaultTarget::Address(address) => (format!("{access}"), format!("{address}")),
            FaultTarget::Interrupt(Some(index)) => ("interrupt".into(), format!("entry {index}")),
            FaultTarget::Interrupt(None) => ("interrupt".into(), String::new()),
        };
        let name = self.shell.name_of(source.function());
        println!("{:12}  {name:30}  {access:12}  {target:18}  {reason}", format!("{source}"));
    }

    fn lost_faults(&mut self, count: u64) {
        if count > 0 {
            println!("{count} more found no room in the ring");
        }
    }

    fn stranger_faults(&mut self, count: u64) {
        if count > 0 {
            println!("{count} in all came from sources that belong to no group");
        }
    }
}
