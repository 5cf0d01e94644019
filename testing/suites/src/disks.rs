//! The disks that are in use, whoever drives them.

use alloc::{sync::Arc, vec::Vec};

use drivers::{block::BlockDevice, host::Host, lock::Lock};
use iommu::PciAddress;

use crate::plugged::{keep, take};

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

    /// Forgets the disk by `function`.
    pub fn remove(&self, function: PciAddress) {
        drop(take(&self.0, |disk| disk.dma().function() == function));
        self.sort();
    }

    fn sort(&self) {
        self.0.lock().sort_unstable_by_key(|disk| disk.dma().function());
    }

    /// Adds `disk`, in the place of the one by the same function if there is one.
    pub fn put(&self, disk: Arc<dyn BlockDevice>) {
        let function = disk.dma().function();
        let mut list = self.0.lock();
        if let Some(place) = list.iter_mut().find(|old| old.dma().function() == function) {
            let before = core::mem::replace(place, disk);
            // What is left of it goes after the lock.
            drop(list);
            drop(before);
            return;
        }
        drop(list);
        keep(&self.0, disk);
        self.sort();
    }
}
