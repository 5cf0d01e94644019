//! What faults say of a request.

use core::sync::atomic::{AtomicU64, Ordering};

use iommu::{DmaDevice, dma::FaultCounts};

/// The fault counts of a device at the last check, for all its queues.
///
/// It tells requests that met a fault from those that did not, without a mark on each of them: a request in flight at
/// the time of a fault was submitted when the counts were lower.
#[derive(Default)]
pub struct FaultWatch {
    own: AtomicU64,
    unattributed: AtomicU64,
}

/// What faults say of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doubt {
    /// There were none.
    None,
    /// A unit lost records while it was in flight; they may have been another device's.
    Repeat,
    /// The device was blocked while it was in flight.
    Blocked,
}

impl FaultWatch {
    /// The counts for a request that is about to be submitted: never more than there were faults.
    pub fn last(&self) -> FaultCounts {
        FaultCounts {
            own: self.own.load(Ordering::Relaxed),
            unattributed: self.unattributed.load(Ordering::Relaxed),
        }
    }

    /// The counts as they are now. Read after the device's word was taken, they have the faults that it keeps quiet
    /// about.
    pub fn check(&self, device: &DmaDevice) -> FaultCounts {
        let now = device.fault_counts();
        // Counts only grow: whoever comes late takes nothing back.
        self.own.fetch_max(now.own, Ordering::Relaxed);
        self.unattributed.fetch_max(now.unattributed, Ordering::Relaxed);
        now
    }
}

impl Doubt {
    /// What happened to a request that was submitted when the counts were `submitted`, and ended when they were `now`.
    pub fn of(submitted: FaultCounts, now: FaultCounts) -> Self {
        if submitted.own != now.own {
            Self::Blocked
        } else if submitted.unattributed != now.unattributed {
            Self::Repeat
        } else {
            Self::None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_devices_own_faults_condemn_a_request() {
        let at = |own, unattributed| FaultCounts { own, unattributed };
        assert_eq!(Doubt::of(at(3, 5), at(3, 5)), Doubt::None);
        assert_eq!(Doubt::of(at(3, 4), at(3, 5)), Doubt::Repeat);
        assert_eq!(Doubt::of(at(2, 5), at(3, 5)), Doubt::Blocked);
        assert_eq!(Doubt::of(at(2, 4), at(3, 5)), Doubt::Blocked);
    }
}
