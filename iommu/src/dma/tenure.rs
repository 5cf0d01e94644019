//! What a driver's hold of a device is worth: whether it lasts, what the device did wrongly meanwhile, and how it ends.

use alloc::sync::Arc;

use super::DmaDevice;
use crate::{Incident, PciAddress, ReleaseError};

/// Faults that a device has caused, or may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultCounts {
    /// Faults of the device's group.
    pub own: u64,
    /// How many times its units had no room for a record. Whose fault that was nobody knows.
    pub unattributed: u64,
}

/// What a driver's hold of a device is worth, for as long as it lasts.
pub(crate) trait Tenure: Send + Sync {
    /// Faults of the device so far, those included that its unit has recorded but not yet reported.
    fn faults(&self) -> FaultCounts;

    /// Whether the device was taken back, and is quiet.
    fn is_over(&self) -> bool {
        false
    }

    /// Gives the device back, with its group, if that has not happened.
    fn release(
        &self,
        function: PciAddress,
        _reset: &mut dyn FnMut(PciAddress) -> bool,
    ) -> Result<(), ReleaseError> {
        Err(ReleaseError::Unknown { function })
    }

    /// Makes `listener` the one that is told of its faults, and of its end.
    fn listen(&self, listener: Arc<dyn Fn(Incident) + Send + Sync>);
}

impl DmaDevice {
    /// Whether the device was taken from its driver, and is quiet: it will never touch again what was mapped by this
    /// handle, and another driver may have it by now. What is left to the old one is to give its memory back.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{DmaDevice, FromDevice, Mapping, PageBuffer};
    ///
    /// /// A driver whose device does not answer: nothing is asked of it any more, and the buffer comes back.
    /// fn give_up(device: &DmaDevice, mapping: Mapping<PageBuffer, FromDevice>) -> Option<PageBuffer> {
    ///     if device.was_taken_back() { mapping.unmap().ok() } else { None }
    /// }
    /// ```
    #[must_use]
    pub fn was_taken_back(&self) -> bool {
        self.shared.tenure.is_over()
    }

    /// Gives the device back, with its group, as [`Iommu::release`](crate::Iommu::release) does for whoever has it: but
    /// once it was taken back, and another driver may have it, this changes nothing. A driver or an owner that ends
    /// gives its device back by this, because another may have been faster; by its address whoever rules over all of
    /// them takes it.
    ///
    /// # Errors
    /// See [`ReleaseError`]; [`Over`](ReleaseError::Over) if it was taken back before.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{DmaDevice, PciAddress, ReleaseError};
    ///
    /// /// The end of a driver. That somebody has taken the device before is no failure.
    /// fn end(device: &DmaDevice, reset: impl Fn(PciAddress) -> bool) -> Result<(), ReleaseError> {
    ///     match device.release(reset) {
    ///         Err(ReleaseError::Over { .. }) => Ok(()),
    ///         result => result,
    ///     }
    /// }
    /// ```
    pub fn release(&self, mut reset: impl FnMut(PciAddress) -> bool) -> Result<(), ReleaseError> {
        self.shared.tenure.release(self.function(), &mut reset)
    }

    /// Number of faults that the device has caused so far, those included that its unit has recorded but no interrupt
    /// has reported yet. A unit that had to drop records counts them against each of its devices.
    ///
    /// A device may call a transfer that the IOMMU blocked a success. A driver therefore reads this before it
    /// completes requests, and fails every request that was in flight when the number changed.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::DmaDevice;
    ///
    /// /// Whether what was in flight since `before` may be called done.
    /// fn is_clean(device: &DmaDevice, before: &mut u64) -> bool {
    ///     let now = device.fault_count();
    ///     std::mem::replace(before, now) == now
    /// }
    /// ```
    #[must_use]
    pub fn fault_count(&self) -> u64 {
        let FaultCounts { own, unattributed } = self.fault_counts();
        own.saturating_add(unattributed)
    }

    /// The same, with what is certainly the device's apart from what may be another's. In a storm of another device
    /// behind the same unit only the second number grows: what was in flight is in doubt, and can be done again.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{DmaDevice, dma::FaultCounts};
    ///
    /// /// Requests that the device itself spoiled fail; those that are only in doubt are repeated.
    /// fn judge(device: &DmaDevice, before: FaultCounts) -> Result<bool, ()> {
    ///     let now = device.fault_counts();
    ///     if now.own != before.own { Err(()) } else { Ok(now.unattributed != before.unattributed) }
    /// }
    /// ```
    #[must_use]
    pub fn fault_counts(&self) -> FaultCounts {
        self.shared.tenure.faults()
    }

    /// Makes `listener` the one that is told of the device's faults, and of its end. It is called in the thread that
    /// runs [`Iommu::process_faults`](crate::Iommu::process_faults) or that takes the device away, and should wake a
    /// thread of the driver rather than work. In a storm not every fault is told; [`fault_count`](Self::fault_count)
    /// counts them all.
    ///
    /// Nothing is missed by who comes late: of a device that is in quarantine already, or was taken back, `listener` is
    /// told before this returns. A quarantine that comes at the same time may be told twice.
    ///
    /// ```no_run
    /// # use std::sync::Arc;
    /// fn watch(device: &iommu::DmaDevice) {
    ///     device.on_incident(Arc::new(|incident| log::warn!("{incident:?}")));
    /// }
    /// ```
    pub fn on_incident(&self, listener: Arc<dyn Fn(Incident) + Send + Sync>) {
        self.shared.tenure.listen(listener);
    }
}
