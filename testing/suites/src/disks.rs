//! The disks that are in use, whoever drives them.

use alloc::{sync::Arc, vec::Vec};

use drivers::{block::BlockDevice, host::Host, lock::Lock};
use iommu::PciAddress;

/// Disks, in the order of their functions' addresses. One whose driver has ended stays until its function has another.
pub struct Disks(Lock<Vec<Arc<dyn BlockDevice>>>);

impl Disks {
    /// None yet.
    #[must_use]
    pub fn new(host: &Arc<dyn Host>) -> Arc<Self> {
        Arc::new(Self(Lock::new(host.clone(), Vec::new())))
    }

    /// Disk number `number`.
    #[must_use]
    pub fn at(&self, number: usize) -> Option<Arc<dyn BlockDevice>> {
        self.0.lock().get(number).cloned()
    }

    /// The disk by `function`.
    #[must_use]
    pub fn of(&self, function: PciAddress) -> Option<Arc<dyn BlockDevice>> {
        self.0.lock().iter().find(|disk| disk.dma().function() == function).cloned()
    }

    /// Takes the disk by `function` out.
    pub fn remove(&self, function: PciAddress) -> Option<Arc<dyn BlockDevice>> {
        let mut list = self.0.lock();
        let place = list.iter().position(|disk| disk.dma().function() == function)?;
        Some(list.remove(place))
    }

    /// Adds `disk`, in the place of the one by the same function if there is one.
    pub fn put(&self, disk: Arc<dyn BlockDevice>) {
        let function = disk.dma().function();
        let mut room = Vec::new();
        let mut list = loop {
            let wanted = self.0.lock().len() + 1;
            if room.try_reserve(wanted).is_err() {
                return log::warn!("{function}: no memory for another disk");
            }
            // Others may have come meanwhile.
            let list = self.0.lock();
            if list.len() < room.capacity() {
                break list;
            }
        };
        room.append(&mut list);
        let before = match room.binary_search_by_key(&function, |disk| disk.dma().function()) {
            Ok(place) => Some(core::mem::replace(&mut room[place], disk)),
            Err(place) => {
                room.insert(place, disk);
                None
            }
        };
        core::mem::swap(&mut room, &mut *list);
        // What is left of the old one, and of the old list, goes after the lock.
        drop(list);
        drop((before, room));
    }
}
