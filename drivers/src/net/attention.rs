//! What wakes the owner of a network device.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use iommu::{DmaDevice, Incident};

use crate::host::Event;

/// What an interrupt about the device itself signals: its owner, and what for.
pub struct Attention {
    wake: Arc<dyn Event>,
    wanted: AtomicBool,
    /// It is in quarantine, or somebody takes it away: for good as far as this driver is concerned.
    taken: AtomicBool,
}

impl Attention {
    /// The device wants none.
    pub fn new(wake: &Arc<dyn Event>) -> Arc<Self> {
        let none = || AtomicBool::new(false);
        Arc::new(Self { wake: wake.clone(), wanted: none(), taken: none() })
    }

    /// Raises `taken` when `dma`'s device is put in quarantine or taken away.
    pub fn watch(self: &Arc<Self>, dma: &DmaDevice) {
        let attention = self.clone();
        dma.on_incident(Arc::new(move |incident| {
            if let Incident::Quarantined | Incident::Released | Incident::Removed = incident {
                attention.taken.store(true, Ordering::Release);
                attention.wake.signal();
            }
        }));
    }

    /// Whether the device wants attention, which the caller gives it now.
    pub fn take_wanted(&self) -> bool {
        self.wanted.swap(false, Ordering::AcqRel)
    }

    /// Whether it was put in quarantine or taken away.
    pub fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Acquire)
    }
}

impl Event for Attention {
    fn signal(&self) {
        self.wanted.store(true, Ordering::Release);
        self.wake.signal();
    }

    fn wait(&self, deadline_ns: u64) -> bool {
        self.wake.wait(deadline_ns)
    }
}
