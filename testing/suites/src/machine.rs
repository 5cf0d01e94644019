//! The machine as the kernel hands it to its tests.

pub mod lacks;
mod slot;

use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};
use core::{
    any::Any,
    ops::Deref,
    sync::atomic::{AtomicU64, Ordering},
};

use drivers::{
    block::BlockDevice,
    edu::{self, Edu},
    host::Host,
    hotplug::Hotplug,
    lock::Lock,
    nvme::{self, Controller},
    pci::Function,
};
use harness::{Context, Failure, failure};
use iommu::{
    DmaDevice, DmaDomain, Iommu, Iova, Options, PciAddress, dump::UnitReport, options::Mode, policy::Limits,
};
use net::Interface;

use self::slot::Slot;
use crate::{disks::Disks, plugged::Plugged, reports};

pub use self::slot::Lent;

/// What tests need of the kernel's memory.
pub trait Memory: Send + Sync {
    /// Free page frames, those in caches included.
    fn free_frames(&self) -> u64;

    /// Takes all free page frames; they come back when the result is dropped. What the heap has already is left to it.
    fn exhaust(&self) -> Box<dyn Any>;
}

/// How the kernel opens a network interface.
pub type OpenInterface =
    fn(&Arc<dyn Host>, &Iommu, &Function) -> Result<Arc<Interface>, Box<dyn core::error::Error>>;

/// How the kernel opens a disk that nobody has.
pub type OpenDisk =
    Box<dyn Fn(&Function) -> Result<Arc<dyn BlockDevice>, Box<dyn core::error::Error>> + Send + Sync>;

/// What the kernel hands over.
pub struct Parts {
    /// What drivers are given.
    pub host: Arc<dyn Host>,
    /// The subsystem, started.
    pub iommu: Iommu,
    /// How it was started.
    pub options: Options,
    /// The units record interrupts that they block. QEMU's does so from 10.0 on.
    pub records_interrupt_faults: bool,
    /// Every PCI function.
    pub functions: Vec<Function>,
    /// The disks that the kernel has opened.
    pub disks: Arc<Disks>,
    /// Opens another one on a function that nobody has.
    pub open_disk: OpenDisk,
    /// An NVMe disk is driven by a process.
    pub served_disk: bool,
    /// Devices that processes are given get their address spaces.
    pub shares_spaces: bool,
    /// The network interfaces that the kernel has opened.
    pub interfaces: Vec<Arc<Interface>>,
    /// Opens another one on a function that nobody has.
    pub open_interface: OpenInterface,
    /// The slots, and every PCI function as things are now.
    pub hotplug: Arc<Hotplug>,
    /// The drivers of what was plugged in.
    pub plugged: Arc<Plugged>,
    /// The host plugs devices in and out when it is asked to.
    pub plugs: bool,
    /// The kernel's memory.
    pub memory: Arc<dyn Memory>,
    /// Says how many lines the kernel has logged so far.
    pub lines_logged: fn() -> u64,
    /// How long the stress test runs, in seconds.
    pub stress_s: u64,
    /// How many processes are killed while their device writes.
    pub kills: u64,
    /// How much the disk tests write and read at random, in MiB.
    pub bulk_mib: u64,
    /// The port on which the host serves files.
    pub net_port: Option<u16>,
    /// How much the network tests fetch by each interface, in MiB.
    pub fetch_mib: u64,
    /// How many visitors the host sends to each interface.
    pub visitors: u64,
    /// The disk has no medium behind it, so that its benchmarks measure the way there.
    pub hollow_disk: bool,
}

/// The machine that is tested: the kernel's parts, and the attackers that the tests have claimed.
pub struct Machine {
    parts: Parts,
    /// Claimed, in the order of their addresses.
    edus: Vec<Slot<ClaimedEdu>>,
    /// The one that nobody claims.
    idle_edu: Option<PciAddress>,
    nvme: Option<Slot<Controller>>,
    interfaces: Lock<Vec<Arc<Interface>>>,
    /// Addresses that no test has used yet.
    next_page: AtomicU64,
}

/// An `edu` device and the handle by which it reaches memory.
pub struct ClaimedEdu {
    pub device: Edu,
    pub dma: DmaDevice,
}

/// Other limits of what faults are put up with, for as long as it lives.
pub struct FaultLimits<'a> {
    iommu: &'a Iommu,
    before: Limits,
}

impl Drop for FaultLimits<'_> {
    fn drop(&mut self) {
        self.iommu.set_fault_limits(self.before);
    }
}

/// What stands between devices and memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolation {
    /// Remapping units.
    Enforced,
    /// Remapping units that let each device with a driver reach all of RAM (`iommu=passthrough`).
    Trusted,
    /// Nothing, because it was asked for: devices use physical addresses.
    Off,
    /// Nothing, so that no device is handed out.
    Refused,
}

/// Where addresses for attacks start: far above what is handed out first, and inside 39 bits.
const FIRST_ATTACK_PAGE: u64 = 0x50_0000_0000;
/// From one to the next: another table page, and other address bits 19:12, the only ones by which QEMU 7.2 tells pages
/// apart when it invalidates some.
const ATTACK_STEP: u64 = 0x20_3000;

impl Machine {
    /// Claims what the tests attack with. Of several `edu` devices the second stays unclaimed.
    #[must_use]
    pub fn new(mut parts: Parts) -> Self {
        let of_kind = |wanted: &dyn Fn(&Function) -> bool| -> Vec<PciAddress> {
            let matching = parts.functions.iter().filter(|function| wanted(function));
            matching.map(|function| function.address).collect()
        };
        let mut edus = of_kind(&|function| function.id == edu::ID);
        let idle_edu = (edus.len() > 1).then(|| edus.remove(1));
        let is_disk = |function: &Function| parts.disks.of(function.address).is_some();
        let nvme = of_kind(&|function| function.class == nvme::CLASS && !is_disk(function));
        let edus = edus.iter().map(|&function| Slot::open(&parts, function, claim_edu)).collect();
        let nvme = nvme.first().map(|&function| Slot::open(&parts, function, claim_nvme));
        let interfaces = Lock::new(parts.host.clone(), core::mem::take(&mut parts.interfaces));
        Self { parts, edus, idle_edu, nvme, interfaces, next_page: AtomicU64::new(FIRST_ATTACK_PAGE) }
    }

    /// The machine that `context` is about.
    pub fn of<'a>(context: &Context<'a>) -> Result<&'a Self, Failure> {
        context.environment().ok_or_else(|| Failure::new("the kernel has handed no machine over"))
    }

    /// What stands between devices and memory.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        match self.parts.options.mode {
            Mode::Off => Isolation::Off,
            Mode::On | Mode::Force if reports::units(&self.parts.iommu).is_empty() => Isolation::Refused,
            Mode::On | Mode::Force if self.parts.options.passthrough => Isolation::Trusted,
            Mode::On | Mode::Force => Isolation::Enforced,
        }
    }

    /// Whether the units remap interrupts: all that can, unless it was not wanted or there is no invalidation queue.
    #[must_use]
    pub fn remaps_interrupts(&self) -> bool {
        let wanted = self.options.interrupt_remapping && self.options.queued_invalidation;
        let can = |unit: &UnitReport| unit.extended_capability >> 3 & 1 != 0;
        let units = reports::units(&self.parts.iommu);
        wanted && !units.is_empty() && units.iter().all(can)
    }

    /// The `edu` device number `index` of those that are claimed.
    pub fn edu(&self, index: usize) -> Result<Lent<'_, ClaimedEdu>, Failure> {
        self.edus.get(index).ok_or_else(|| Failure::new("no such edu device"))?.lend()
    }

    /// How many `edu` devices are claimed.
    #[must_use]
    pub fn edus(&self) -> usize {
        self.edus.len()
    }

    /// The `edu` device that nobody has claimed.
    #[must_use]
    pub fn idle_edu(&self) -> Option<PciAddress> {
        self.idle_edu
    }

    /// The NVMe controller, to attack with: it does so too fast for what is put up with else.
    pub fn nvme(&self) -> Result<Lent<'_, Controller>, Failure> {
        Ok(self.nvme_as_any_device()?.under(self.with_fault_limits(Limits::none())))
    }

    /// The NVMe controller, under the limits that hold for everybody.
    pub fn nvme_as_any_device(&self) -> Result<Lent<'_, Controller>, Failure> {
        self.nvme.as_ref().ok_or_else(|| Failure::new("no NVMe controller"))?.lend()
    }

    /// Makes `limits` hold for all devices, until the result is dropped.
    #[must_use]
    pub fn with_fault_limits(&self, limits: Limits) -> FaultLimits<'_> {
        FaultLimits { iommu: &self.iommu, before: self.iommu.set_fault_limits(limits) }
    }

    /// Takes `function` back from its driver, or out of quarantine.
    pub fn release(&self, function: PciAddress) -> Result<(), Failure> {
        let group = self.iommu.group(function)?;
        Ok(self.iommu.release(function, |member| self.hotplug.is_quiet(&group, member))?)
    }

    /// Takes `function` from the owner to whom it is assigned, if it is, and gives it to that of `domain`. From drivers
    /// of the kernel's, and out of quarantine, it is not taken.
    pub fn assign(&self, function: PciAddress, domain: &DmaDomain) -> Result<DmaDevice, Failure> {
        if reports::group(&self.iommu, function).is_some_and(|group| group.is_assigned()) {
            self.release(function)?;
        }
        let group = self.iommu.group(function)?;
        Ok(self.iommu.assign(function, domain, |member| self.hotplug.is_quiet(&group, member))?)
    }

    /// Takes `function` back, and opens it anew if there is a driver for it. Returns whether there is.
    pub fn restart(&self, function: PciAddress) -> Result<bool, Failure> {
        let is_it = |dma: &DmaDevice| dma.function() == function;
        let mut disks = (0..).map_while(|number| self.disk_at(number));
        if let Some(number) = disks.position(|disk| is_it(disk.dma())) {
            return self.reopen_disk(number).map(|()| true);
        }
        let mut interfaces = (0..).map_while(|number| self.interface(number));
        if let Some(number) = interfaces.position(|interface| is_it(interface.dma())) {
            return self.reopen_interface(number).map(|()| true);
        }
        if let Some(slot) = self.edus.iter().find(|slot| slot.function == function) {
            return self.reopen_edu(slot.take()?).map(|()| true);
        }
        if let Some(slot) = self.nvme.as_ref().filter(|slot| slot.function == function) {
            return self.reopen_nvme(slot.take()?).map(|()| true);
        }
        let was_there = self.functions.iter().any(|known| known.address == function);
        match self.hotplug.function(function) {
            Some(plugged) if !was_there => self.plugged.reopen(&plugged, || self.release(function)),
            _ => self.release(function).map(|()| false),
        }
    }

    /// Drops what is left of the controller and opens it anew.
    pub fn reopen_nvme(&self, nvme: Lent<'_, Controller>) -> Result<(), Failure> {
        nvme.reopen(self, claim_nvme)
    }

    /// Drops what is left of the `edu` and opens it anew.
    pub fn reopen_edu(&self, edu: Lent<'_, ClaimedEdu>) -> Result<(), Failure> {
        edu.reopen(self, claim_edu)
    }

    /// Whether there is an NVMe controller.
    #[must_use]
    pub fn has_nvme(&self) -> bool {
        self.nvme.is_some()
    }

    /// The first disk, which the tests use.
    pub fn disk(&self) -> Result<Arc<dyn BlockDevice>, Failure> {
        self.disk_at(0).ok_or_else(|| Failure::new("no disk could be opened"))
    }

    /// Disk number `number`, in the order of their addresses.
    #[must_use]
    pub fn disk_at(&self, number: usize) -> Option<Arc<dyn BlockDevice>> {
        self.disks.at(number)
    }

    /// Ends the driver of a disk, takes the disk back and opens it anew.
    pub fn reopen_disk(&self, number: usize) -> Result<(), Failure> {
        let disk = self.disk_at(number).ok_or_else(|| Failure::new("no such disk"))?;
        let address = disk.dma().function();
        disk.shut_down()?;
        drop(disk);
        self.release(address)?;
        let opened = (self.open_disk)(self.function(address)?);
        self.disks.put(opened.map_err(|error| failure!("{error}"))?);
        Ok(())
    }

    /// Network interface number `number`, in the order of their addresses.
    #[must_use]
    pub fn interface(&self, number: usize) -> Option<Arc<Interface>> {
        self.interfaces.lock().get(number).cloned()
    }

    /// Ends the driver of a network interface, takes the device back and opens it anew.
    pub fn reopen_interface(&self, number: usize) -> Result<(), Failure> {
        let interface = self.interface(number).ok_or_else(|| Failure::new("no such interface"))?;
        let address = interface.dma().function();
        interface.shut_down()?;
        drop(interface);
        self.release(address)?;
        let opened = (self.open_interface)(&self.host, &self.iommu, self.function(address)?);
        let interface = opened.map_err(|error| failure!("{error}"))?;
        let before = self.interfaces.lock().get_mut(number).map(|place| core::mem::replace(place, interface));
        drop(before);
        Ok(())
    }

    /// A function that was there from the start.
    pub fn function(&self, address: PciAddress) -> Result<&Function, Failure> {
        find(&self.parts, address).ok_or_else(|| Failure::new("no such function"))
    }

    /// The address of a page that was never mapped, and never aimed at.
    #[must_use]
    pub fn fresh_page(&self) -> Iova {
        Iova::new(self.next_page.fetch_add(ATTACK_STEP, Ordering::Relaxed))
    }
}

impl Deref for Machine {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

fn find(parts: &Parts, address: PciAddress) -> Option<&Function> {
    parts.functions.iter().find(|function| function.address == address)
}

fn claim_edu(parts: &Parts, function: PciAddress) -> Result<ClaimedEdu, String> {
    let found = find(parts, function).ok_or_else(|| format!("there is no {function}"))?;
    let dma = parts.iommu.claim(function).map_err(|error| format!("{error}"))?;
    let device = Edu::open(&parts.host, &dma, found).map_err(|error| format!("{function}: {error}"))?;
    Ok(ClaimedEdu { device, dma })
}

fn claim_nvme(parts: &Parts, function: PciAddress) -> Result<Controller, String> {
    let found = find(parts, function).ok_or_else(|| format!("there is no {function}"))?;
    let dma = parts.iommu.claim(function).map_err(|error| format!("{error}"))?;
    Controller::open(&parts.host, dma, found).map_err(|error| format!("{function}: {error}"))
}
