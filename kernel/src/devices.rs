//! From firmware's tables to devices in use: PCI functions found, remapping units up, disks opened.

use alloc::{boxed::Box, collections::TryReserveError, sync::Arc, vec::Vec};
use core::{any::Any, fmt};

use ::net::Interface;
use drivers::{
    block::{self, BlockDevice},
    host::Host,
    hotplug::Hotplug,
    net, nvme,
    pci::{
        Apertures, BusRange, Claimant, Claims, Function, assign_unconfigured, enumerate, number_unconfigured,
        place_virtual, unconfigure,
    },
    quiet::is_quiet,
};
use iommu::{Iommu, PciAddress, Platform, StartError, platform::Work};
use mm::{PAGE_BYTES, PhysRange};
use suites::{Disks, Memory, OpenDisk, Parts, Plugged, reports};

use crate::{
    acpi,
    arch::{apic, random},
    boot_info::Region,
    cmdline::Options,
    console, memory,
    platform::Kernel,
    process::{self, Giver, NVME_DRIVER},
    status_page,
    threads::SpawnError,
};

/// First and last of the addresses where PCs have the registers of I/O APICs, remapping units and local APICs, and
/// where interrupts are sent to.
const CHIPSET: (u64, u64) = (0xfec0_0000, 0xffff_ffff);

/// Why there are no devices.
#[derive(Debug)]
pub enum DevicesError {
    /// The remapping units could not be brought up.
    Iommu(StartError),
    /// No memory for a list or a thread.
    OutOfMemory,
}

impl fmt::Display for DevicesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iommu(error) => write!(f, "iommu: {error}"),
            Self::OutOfMemory => f.write_str("no memory for the devices"),
        }
    }
}

impl From<SpawnError> for DevicesError {
    fn from(_: SpawnError) -> Self {
        Self::OutOfMemory
    }
}

/// Finds the PCI functions, brings the remapping units up and opens the disks. Nothing does DMA before the units
/// translate.
pub fn start(
    kernel: &Arc<Kernel>,
    tables: &acpi::Tables,
    memory_map: &[Region],
    words: &Options<'_>,
) -> Result<Parts, DevicesError> {
    let host: Arc<dyn Host> = kernel.clone();
    if words.unconfigured_bridges {
        segments(tables)
            .try_for_each(|buses| unconfigure(&*host, buses))
            .map_err(|_| DevicesError::OutOfMemory)?;
    }
    let (mut functions, numbered) = find_functions(&*host, tables)?;
    let mut claims = find_claims(tables, memory_map).map_err(|_| DevicesError::OutOfMemory)?;
    let mut apertures = find_apertures(&*host, memory_map, &claims, &functions)?;
    assign_unconfigured(&*host, &numbered, &functions, &mut apertures)
        .map_err(|_| DevicesError::OutOfMemory)?;
    place_virtual(&*host, &mut functions, &mut apertures);
    functions.iter_mut().for_each(|function| function.measure(&*host));
    let iommu = start_iommu(kernel, tables, &functions, &claims, words.iommu)?;
    add_units(&mut claims, &iommu).map_err(|_| DevicesError::OutOfMemory)?;
    claims.settle(&*host, &mut functions, 0);
    let is_served = |function: &Function| words.served_disk && function.class == nvme::CLASS;
    let disks = open_disks(&host, &iommu, &functions, &is_served);
    let interfaces = open_interfaces(&host, &iommu, &functions)?;
    let plugged = Plugged::new(&host, &iommu, &disks);
    let hotplug = Hotplug::start(&host, &iommu, functions.clone(), apertures, claims, plugged.clone());
    let giver = Giver {
        host: host.clone(),
        iommu: iommu.clone(),
        hotplug: hotplug.clone(),
        disks: disks.clone(),
        shares_spaces: words.shares_spaces,
    };
    for function in functions.iter().filter(|function| is_served(function)) {
        if let Err(error) = process::start_disk(&giver, NVME_DRIVER, 0, function.address) {
            log::info!("{} is no disk: {error}", function.address);
        }
    }
    Ok(Parts {
        host,
        iommu,
        hotplug,
        plugged,
        plugs: words.plugs,
        options: words.iommu,
        records_interrupt_faults: words.interrupt_faults,
        functions,
        disks,
        open_disk: disk_opener(giver, words.served_disk),
        served_disk: words.served_disk,
        shares_spaces: words.shares_spaces,
        interfaces,
        open_interface,
        memory: Arc::new(Frames),
        lines_logged: console::lines,
        stress_s: words.stress_s,
        kills: words.kills,
        bulk_mib: words.bulk_mib,
        net_port: words.net_port,
        fetch_mib: words.fetch_mib,
        visitors: words.visitors,
        hollow_disk: words.hollow_disk,
    })
}

/// The buses of each segment.
fn segments(tables: &acpi::Tables) -> impl Iterator<Item = BusRange> {
    let range = |segment: &acpi::EcamSegment| BusRange {
        segment: segment.segment,
        first: segment.first_bus,
        last: segment.last_bus,
    };
    tables.segments.iter().map(range)
}

/// Every function, and the bridges that firmware had not numbered.
fn find_functions(
    host: &dyn Host,
    tables: &acpi::Tables,
) -> Result<(Vec<Function>, Vec<PciAddress>), DevicesError> {
    let (mut functions, mut numbered) = (Vec::new(), Vec::new());
    for buses in segments(tables) {
        append(&mut numbered, number_unconfigured(host, buses))?;
        append(&mut functions, enumerate(host, buses))?;
    }
    // Groups follow what is on, so this comes before the topology is built.
    functions.iter_mut().for_each(|function| function.enable_isolation(host));
    log::info!("{} PCI functions", functions.len());
    Ok((functions, numbered))
}

fn append<T>(list: &mut Vec<T>, found: Result<Vec<T>, TryReserveError>) -> Result<(), DevicesError> {
    let mut found = found.map_err(|_| DevicesError::OutOfMemory)?;
    list.try_reserve(found.len()).map_err(|_| DevicesError::OutOfMemory)?;
    list.append(&mut found);
    Ok(())
}

/// Addresses below 4 GiB that neither memory, nor configuration space, nor a function has.
fn find_apertures(
    host: &dyn Host,
    memory_map: &[Region],
    claims: &Claims,
    functions: &[Function],
) -> Result<Apertures, DevicesError> {
    const FOUR_GIB: u64 = 1 << 32;
    let below = memory_map.iter().filter(|region| region.is_ram && region.end <= FOUR_GIB);
    let memory_end = below.map(|region| region.end).max().unwrap_or(FOUR_GIB);
    let taken = claims.iter().map(|claim| (claim.first, claim.last));
    Apertures::find(host, functions, memory_end, taken).map_err(|_| DevicesError::OutOfMemory)
}

/// Where configuration space is, each range with its first and last address.
fn configuration_space(tables: &acpi::Tables) -> impl Iterator<Item = (u64, u64)> {
    const BUS_BYTES: u64 = 1 << 20;
    tables.segments.iter().map(|segment| {
        let at = |bus: u64| segment.base.as_u64() + bus * BUS_BYTES;
        (at(segment.first_bus.into()), at(u64::from(segment.last_bus) + 1) - 1)
    })
}

/// What is somebody's besides what functions decode. Who is there more exactly comes first.
fn find_claims(tables: &acpi::Tables, memory_map: &[Region]) -> Result<Claims, TryReserveError> {
    let mut claims = Claims::new();
    for (first, last) in configuration_space(tables) {
        claims.add(first, last, Claimant::ConfigurationSpace)?;
    }
    for io_apic in &tables.io_apics {
        let first = io_apic.address.as_u64();
        claims.add(first, first.saturating_add(PAGE_BYTES - 1), Claimant::IoApic)?;
    }
    claims.add(CHIPSET.0, CHIPSET.1, Claimant::Chipset)?;
    claims.add(0, memory::LOW_MEMORY_END - 1, Claimant::Firmware)?;
    for region in memory_map.iter().filter(|region| region.start < region.end) {
        let by = if region.is_ram { Claimant::Memory } else { Claimant::Firmware };
        // What has a part of a page has the page.
        let (first, last) = (region.start & !(PAGE_BYTES - 1), (region.end - 1) | (PAGE_BYTES - 1));
        claims.add(first, last, by)?;
    }
    Ok(claims)
}

/// The registers of the remapping units, which only they know how many there are of.
fn add_units(claims: &mut Claims, iommu: &Iommu) -> Result<(), TryReserveError> {
    reports::units(iommu).iter().try_for_each(|unit| {
        let first = unit.base.as_u64();
        claims.add(first, first.saturating_add(unit.bytes - 1), Claimant::RemappingUnit)
    })
}

fn start_iommu(
    kernel: &Arc<Kernel>,
    tables: &acpi::Tables,
    functions: &[Function],
    claims: &Claims,
    options: iommu::Options,
) -> Result<Iommu, DevicesError> {
    let mut topology = Vec::new();
    topology.try_reserve_exact(functions.len()).map_err(|_| DevicesError::OutOfMemory)?;
    topology.extend(functions.iter().map(Function::topology));
    let io_apics: Vec<u8> = tables.io_apics.iter().map(|io_apic| io_apic.id).collect();
    let x2apic = apic::is_x2apic();
    let memory: Vec<PhysRange> = memory::ram().collect();
    let mut registers = Vec::new();
    for range in claims.registers(&**kernel, functions) {
        registers.try_reserve(1).map_err(|_| DevicesError::OutOfMemory)?;
        registers.push(range);
    }
    let machine = iommu::Machine {
        dmar: tables.dmar,
        functions: &topology,
        io_apics: &io_apics,
        memory: &memory,
        registers: &registers,
        x2apic,
    };
    let iommu = Iommu::start(kernel.clone(), &machine, options).map_err(DevicesError::Iommu)?;
    kernel.use_iommu(iommu.clone());
    let handle = iommu.clone();
    let clock = iommu.clone();
    kernel.start_worker(Work::Faults, move || handle.process_faults(), move || clock.next_faults_ns())?;
    // Faults may have come while nobody took events.
    kernel.wake(Work::Faults);
    let handle = iommu.clone();
    let clock = iommu.clone();
    kernel.start_worker(Work::Reap, move || handle.reap(), move || clock.next_reap_ns())?;
    Ok(iommu)
}

/// Every disk that can be used, but for those that processes will drive.
fn open_disks(
    host: &Arc<dyn Host>,
    iommu: &Iommu,
    functions: &[Function],
    is_served: &dyn Fn(&Function) -> bool,
) -> Arc<Disks> {
    let disks = Disks::new(host);
    for function in functions.iter().filter(|function| block::is_candidate(function) && !is_served(function))
    {
        if let Some(disk) = open_disk(host, iommu, functions, function) {
            disks.put(disk);
        }
    }
    disks
}

/// What opens a disk that nobody has, in the way in which it was opened at first.
fn disk_opener(giver: Giver, served: bool) -> OpenDisk {
    Box::new(move |function| {
        if served && function.class == nvme::CLASS {
            return Ok(process::start_disk(&giver, NVME_DRIVER, 0, function.address)?.disk);
        }
        Ok(block::open(&giver.host, giver.iommu.claim(function.address)?, function)?)
    })
}

/// Opens one disk. A function that turns out to be none is left to whoever else wants it.
fn open_disk(
    host: &Arc<dyn Host>,
    iommu: &Iommu,
    functions: &[Function],
    function: &Function,
) -> Option<Arc<dyn BlockDevice>> {
    let address = function.address;
    let claimed = iommu.claim(address).map_err(|error| log::warn!("disk {address}: {error}")).ok()?;
    let error = match block::open(host, claimed, function) {
        Ok(disk) => return Some(disk),
        Err(error) => error,
    };
    log::info!("{address} is no disk: {error}");
    match iommu.group(address) {
        // Nobody covers it, so there is nothing to release.
        Ok(group) if group.is_empty() => {}
        Ok(group) => {
            let released = iommu.release(address, |member| is_quiet(host, functions, &group, member));
            let _ = released.inspect_err(|error| log::warn!("{address}: {error}"));
        }
        Err(error) => log::warn!("{address}: {error}"),
    }
    None
}

/// Every network interface that can be used, in the order of their addresses.
fn open_interfaces(
    host: &Arc<dyn Host>,
    iommu: &Iommu,
    functions: &[Function],
) -> Result<Vec<Arc<Interface>>, DevicesError> {
    let mut interfaces = Vec::new();
    for function in functions.iter().filter(|function| net::is_candidate(function)) {
        interfaces.try_reserve(1).map_err(|_| DevicesError::OutOfMemory)?;
        let opened = open_interface(host, iommu, function);
        interfaces.extend(opened.inspect_err(|error| log::warn!("{}: {error}", function.address)).ok());
    }
    Ok(interfaces)
}

fn open_interface(
    host: &Arc<dyn Host>,
    iommu: &Iommu,
    function: &Function,
) -> Result<Arc<Interface>, Box<dyn core::error::Error>> {
    let device = net::open(host, iommu.claim(function.address)?, function)?;
    let shown = iommu.clone();
    let pages = Box::new(move |path: &str| status_page::page(&shown, path));
    Ok(Arc::new(Interface::start(host, device, random::seed(), pages)?))
}

/// The kernel's memory, as tests see it.
struct Frames;

impl Memory for Frames {
    fn free_frames(&self) -> u64 {
        memory::frames::statistics().free as u64
    }

    fn exhaust(&self) -> Box<dyn Any> {
        Box::new(memory::Exhausted::new())
    }
}
