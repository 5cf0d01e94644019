//! What the machine lacks, for tests that need it. A test that gets no machine runs, and fails.

use drivers::{
    block, nvme,
    pci::{Class, Function, Id, Sriov},
};
use harness::Context;

use super::{Isolation, Machine};
use crate::reports;

/// For tests that move data, isolated or not.
pub fn dma(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    (machine.isolation() == Isolation::Refused).then_some("a remapping unit")
}

/// For tests that choose addresses, or expect something to be blocked.
pub fn unit(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    (machine.isolation() != Isolation::Enforced).then_some("a remapping unit in use")
}

/// For tests that move data by `edu`.
pub fn edu(context: &Context<'_>) -> Option<&'static str> {
    dma(context).or_else(|| edus(context, 1))
}

/// For tests of an `edu` that nobody has claimed and that firmware reserves memory for.
pub fn reserved_edu(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    idle_edu(context).or_else(|| {
        let group = machine.idle_edu().and_then(|function| reports::group(&machine.iommu, function));
        group.is_none_or(|group| group.reserved.is_empty()).then_some("memory reserved for an edu device")
    })
}

/// For tests of an `edu` that is trusted with all of RAM.
pub fn trusted_edu(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    let is_trusted = machine.isolation() == Isolation::Trusted;
    if is_trusted { edus(context, 1) } else { Some("iommu=passthrough") }
}

/// For tests that attack by `edu`.
pub fn isolated_edu(context: &Context<'_>) -> Option<&'static str> {
    unit(context).or_else(|| edus(context, 1))
}

/// For tests that let an `edu` write and not read.
pub fn write_only_edu(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    let first_stage = reports::units(&machine.iommu).iter().any(|unit| unit.first_stage);
    isolated_edu(context).or_else(|| first_stage.then_some("memory for writes alone"))
}

/// For tests of the machine that has everything between devices and the unit.
pub fn topologies(context: &Context<'_>) -> Option<&'static str> {
    const CHIP_SET_BRIDGE: Id = Id { vendor: 0x8086, device: 0x244e };
    let machine = Machine::of(context).ok()?;
    let has_it = machine.functions.iter().any(|function| function.id == CHIP_SET_BRIDGE);
    unit(context).or_else(|| (!has_it).then_some("bridges of all kinds"))
}

/// For tests that aim interrupts of an `edu`.
pub fn remapped_edu(context: &Context<'_>) -> Option<&'static str> {
    isolated_edu(context).or_else(|| remapping(context))
}

/// For tests that aim interrupts of one `edu` at another.
pub fn two_remapped_edus(context: &Context<'_>) -> Option<&'static str> {
    two_isolated_edus(context).or_else(|| remapping(context))
}

/// For tests that attack one `edu` by another.
pub fn two_isolated_edus(context: &Context<'_>) -> Option<&'static str> {
    unit(context).or_else(|| edus(context, 2))
}

/// For tests that attack by an `edu` that nobody has claimed.
pub fn idle_edu(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    unit(context).or_else(|| machine.idle_edu().is_none().then_some("an edu device to leave unclaimed"))
}

/// For tests that give an `edu` to a process.
pub fn idle_remapped_edu(context: &Context<'_>) -> Option<&'static str> {
    idle_edu(context).or_else(|| remapping(context))
}

/// For tests that cannot give one to a process, as it could raise any interrupt.
pub fn idle_unremapped_edu(context: &Context<'_>) -> Option<&'static str> {
    let is_remapped = remapping(context).is_none();
    idle_edu(context).or_else(|| is_remapped.then_some("interrupts that are not remapped"))
}

/// For tests that give an `edu` the address space of a program.
pub fn shareable_spaces(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    let first_stage = reports::units(&machine.iommu).iter().all(|unit| unit.first_stage);
    idle_remapped_edu(context).or_else(|| (!first_stage).then_some("first-stage tables"))
}

/// For tests that turn virtual functions on.
pub fn virtual_functions(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    let offers =
        |function: Function| Sriov::open(&*machine.host, &function).is_some_and(|sriov| sriov.offered() > 1);
    let none = !machine.hotplug.each().any(offers);
    unit(context).or_else(|| none.then_some("a device with virtual functions"))
}

/// For tests that give virtual functions of an NVMe controller to processes, beside one that has a disk.
pub fn virtual_disks(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    let offers = |function: Function| {
        function.class == nvme::CLASS && Sriov::open(&*machine.host, &function).is_some()
    };
    let none = !machine.hotplug.each().any(offers);
    served_disk(context).or_else(|| none.then_some("an NVMe controller with virtual functions"))
}

/// For tests that move data by NVMe.
pub fn nvme(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    dma(context).or_else(|| (!machine.has_nvme()).then_some("an NVMe controller"))
}

/// For tests that attack by NVMe.
pub fn isolated_nvme(context: &Context<'_>) -> Option<&'static str> {
    unit(context).or_else(|| nvme(context))
}

/// For tests that attack by NVMe while a disk is read.
pub fn isolated_nvme_and_disk(context: &Context<'_>) -> Option<&'static str> {
    isolated_nvme(context).or_else(|| disk(context))
}

/// For tests that attack by NVMe what the kernel has mapped for a disk: what is mapped for a process's is not listed.
pub fn isolated_nvme_and_kernels_disk(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    isolated_nvme_and_disk(context).or_else(|| machine.served_disk.then_some("a disk that the kernel drives"))
}

/// For tests that need a disk.
pub fn disk(context: &Context<'_>) -> Option<&'static str> {
    dma(context).or_else(|| no_disk(context))
}

/// For tests that need a disk, and somebody who keeps the machine from running.
pub fn attended_disk(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    (!machine.plugs).then_some("somebody at the machine").or_else(|| disk(context))
}

/// For tests that block a disk.
pub fn isolated_disk(context: &Context<'_>) -> Option<&'static str> {
    unit(context).or_else(|| no_disk(context))
}

/// For tests that map something for a disk that they block: the table of a process is its own to map in.
pub fn mappable_disk(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    let is_shared = machine.served_disk && machine.shares_spaces;
    isolated_disk(context).or_else(|| is_shared.then_some("a disk that has no address space"))
}

/// For tests of a disk that is driven by a process.
pub fn served_disk(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    isolated_disk(context).or_else(|| (!machine.served_disk).then_some("disk=process"))
}

/// For tests that need a network.
pub fn net(context: &Context<'_>) -> Option<&'static str> {
    dma(context).or_else(|| no_net(context))
}

/// For tests that block a network device.
pub fn isolated_net(context: &Context<'_>) -> Option<&'static str> {
    unit(context).or_else(|| no_net(context))
}

/// For tests that fetch files from the host.
pub fn net_host(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    net(context).or_else(|| machine.net_port.is_none().then_some("a host that serves files"))
}

/// For tests that attack a network device by NVMe.
pub fn isolated_nvme_and_net_host(context: &Context<'_>) -> Option<&'static str> {
    isolated_nvme(context).or_else(|| net_host(context))
}

/// For tests that serve pages to the host.
pub fn visitors(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    net(context).or_else(|| (machine.visitors == 0).then_some("visitors"))
}

fn no_net(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    let none = !machine.functions.iter().any(drivers::net::is_candidate);
    none.then_some("a network device")
}

/// For tests that give displays to processes, and have somebody look at their screens.
pub fn displays(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    let is_display = |function: &Function| function.class.base == Class::DISPLAY;
    let none = !machine.plugs || !machine.functions.iter().any(is_display);
    unit(context).or_else(|| remapping(context)).or_else(|| none.then_some("displays that are looked at"))
}

/// For tests that have devices plugged in.
pub fn plugs(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    (!machine.plugs).then_some("devices to plug in").or_else(|| unit(context))
}

fn remapping(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    (!machine.remaps_interrupts()).then_some("interrupt remapping in use")
}

fn edus(context: &Context<'_>, needed: usize) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    (machine.edus() < needed).then_some(if needed > 1 { "two edu devices" } else { "an edu device" })
}

fn no_disk(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    let none = !machine.functions.iter().any(block::is_candidate);
    none.then_some("a disk")
}
