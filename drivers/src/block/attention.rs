//! What the thread that owns a device is woken for.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use iommu::{DmaDevice, Incident};

use crate::host::{Event, Host};

/// What wakes the keeper, and why. As the event of an interrupt it says that the device's status is worth a look.
pub struct Attention {
    wake: Arc<dyn Event>,
    /// The status may have changed.
    pub status: AtomicBool,
    /// The device's owner wants it reset.
    pub reset: AtomicBool,
    /// A queue is broken.
    pub broken: AtomicBool,
    /// It is in quarantine, for good as far as this driver is concerned.
    pub quarantined: AtomicBool,
    /// It is being taken back, and will be another's.
    pub taken: AtomicBool,
}

impl Attention {
    /// Nothing is the matter.
    pub fn new(host: &Arc<dyn Host>) -> Arc<Self> {
        let none = || AtomicBool::new(false);
        Arc::new(Self {
            wake: host.event(),
            status: none(),
            reset: none(),
            broken: none(),
            quarantined: none(),
            taken: none(),
        })
    }

    /// Sets `flag`, one of these, and wakes the keeper.
    pub fn raise(&self, flag: &AtomicBool) {
        flag.store(true, Ordering::Release);
        self.wake.signal();
    }

    /// Wakes the keeper, which finds out by itself what for.
    pub fn wake(&self) {
        self.wake.signal();
    }

    /// Raises `quarantined` when `dma`'s device is put in quarantine, and `taken` when it is being taken back.
    pub(super) fn watch(self: &Arc<Self>, dma: &DmaDevice) {
        let attention = self.clone();
        dma.on_incident(Arc::new(move |incident| match incident {
            Incident::Quarantined => attention.raise(&attention.quarantined),
            Incident::Released | Incident::Removed => attention.raise(&attention.taken),
            _ => {}
        }));
    }
}

impl Event for Attention {
    fn signal(&self) {
        self.raise(&self.status);
    }

    fn wait(&self, deadline_ns: u64) -> bool {
        self.wake.wait(deadline_ns)
    }
}
