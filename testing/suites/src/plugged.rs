//! The drivers of devices that are plugged in while the machine runs.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};

use drivers::{
    block::{self, BlockDevice},
    edu::{self, Edu},
    host::Host,
    hotplug::Drivers,
    lock::Lock,
    pci::Function,
};
use harness::Failure;
use iommu::{Iommu, PciAddress};

use crate::{disks::Disks, machine::ClaimedEdu};

/// Disks and `edu` devices that were plugged in, with their drivers.
pub struct Plugged {
    host: Arc<dyn Host>,
    iommu: Iommu,
    disks: Lock<Vec<Arc<dyn BlockDevice>>>,
    edus: Lock<Vec<ClaimedEdu>>,
    /// Disks that were there from the start, and those that processes make, of what was plugged in and of virtual
    /// functions too.
    others: Arc<Disks>,
    /// How often the driver of what was plugged in did not start.
    failures: AtomicU64,
}

impl Plugged {
    /// Nothing yet.
    #[must_use]
    pub fn new(host: &Arc<dyn Host>, iommu: &Iommu, others: &Arc<Disks>) -> Arc<Self> {
        let (disks, edus) = (Lock::new(host.clone(), Vec::new()), Lock::new(host.clone(), Vec::new()));
        let others = others.clone();
        let (host, iommu, failures) = (host.clone(), iommu.clone(), AtomicU64::new(0));
        Arc::new(Self { host, iommu, disks, edus, others, failures })
    }

    /// Disk number `number` of those that are there.
    #[must_use]
    pub fn disk(&self, number: usize) -> Option<Arc<dyn BlockDevice>> {
        self.disks.lock().get(number).cloned()
    }

    /// An `edu` that is there. Whoever takes it is its driver, and lets go of it before another is plugged in.
    pub fn take_edu(&self) -> Option<ClaimedEdu> {
        self.edus.lock().pop()
    }

    /// Gives back what [`take_edu`](Self::take_edu) gave.
    pub fn put_edu(&self, edu: ClaimedEdu) {
        keep(&self.edus, edu);
    }

    /// Ends the driver of `function`, has it taken back by `release`, and starts its driver anew. Returns whether it
    /// has one.
    pub fn reopen(
        &self,
        function: &Function,
        release: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<bool, Failure> {
        self.unbind(function.address, false);
        release()?;
        self.open(function).map_err(Failure::new)
    }

    /// Starts the driver of `function`, if there is one for it.
    fn open(&self, function: &Function) -> Result<bool, alloc::string::String> {
        let address = function.address;
        let describe = |error: &dyn core::fmt::Display| alloc::format!("{error}");
        if block::is_candidate(function) {
            let dma = self.iommu.claim(address).map_err(|error| describe(&error))?;
            let disk = block::open(&self.host, dma, function).map_err(|error| describe(&error))?;
            keep(&self.disks, disk);
        } else if function.id == edu::ID {
            let dma = self.iommu.claim(address).map_err(|error| describe(&error))?;
            let device = Edu::open(&self.host, &dma, function).map_err(|error| describe(&error))?;
            keep(&self.edus, ClaimedEdu { device, dma });
        } else {
            return Ok(false);
        }
        Ok(true)
    }
}

impl Drivers for Plugged {
    fn bind(&self, function: &Function) {
        if let Err(error) = self.open(function) {
            // A device that comes and goes for ever fills no log.
            let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
            if failures.is_power_of_two() {
                log::warn!("{}: {error}", function.address);
            }
        }
    }

    fn unbind(&self, function: PciAddress, is_gone: bool) {
        let plugged = take(&self.disks, |disk| disk.dma().function() == function);
        let other = if is_gone { self.others.remove(function) } else { None };
        for disk in plugged.into_iter().chain(other) {
            if let Err(error) = disk.end() {
                log::warn!("{function}: {error}");
            }
        }
        drop(take(&self.edus, |edu| edu.dma.function() == function));
    }
}

/// Adds `item`; without memory for that it is dropped.
fn keep<T>(list: &Lock<Vec<T>>, item: T) {
    let mut room = Vec::new();
    let wanted = list.lock().len() + 1;
    if room.try_reserve(wanted).is_err() {
        return log::warn!("no memory for another device");
    }
    let mut list = list.lock();
    if list.capacity() < wanted {
        room.append(&mut list);
        core::mem::swap(&mut room, &mut *list);
    }
    list.push(item);
    // An old list is freed after the lock.
    drop(list);
    drop(room);
}

fn take<T>(list: &Lock<Vec<T>>, is_it: impl Fn(&T) -> bool) -> Option<T> {
    let mut list = list.lock();
    let index = list.iter().position(is_it)?;
    Some(list.swap_remove(index))
}
