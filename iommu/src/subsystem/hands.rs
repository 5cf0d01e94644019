//! How groups change hands: domains, assignment, quarantine, release.

use alloc::{collections::TryReserveError, vec::Vec};

use super::Iommu;
use crate::{
    PciAddress,
    dma::{DmaDevice, DmaDomain, DomainError, SharedDomain, SharedTable, shared::SharedParts},
    group::{ClaimError, ReleaseError},
};

impl Iommu {
    /// A domain by itself, that all units which see `functions` can walk, and that groups of functions behind these
    /// units can be [assigned](Self::assign) to. What is mapped in it, by its handle or by those of its functions, is
    /// what all of them reach. It stays until it is [destroyed](DmaDomain::destroy).
    ///
    /// # Errors
    /// See [`DomainError`].
    ///
    /// # Examples
    /// ```no_run
    /// use std::error::Error;
    ///
    /// use iommu::{Iommu, Iova, PageBuffer, PciAddress, ToDevice};
    ///
    /// /// Two functions see one page at one address for as long as it is mapped. `reset` is the kernel's way to make one quiet.
    /// fn share(
    ///     iommu: &Iommu,
    ///     functions: [PciAddress; 2],
    ///     page: PageBuffer,
    ///     reset: impl Fn(PciAddress) -> bool,
    /// ) -> Result<(), Box<dyn Error>> {
    ///     let domain = iommu.create_domain(&functions)?;
    ///     let page = domain.dma_map_at(page, ToDevice, Iova::new(0x10_0000))?;
    ///     let devices = functions.map(|function| iommu.assign(function, &domain, &reset));
    ///     // They work.
    ///     for device in devices {
    ///         device?.release(&reset)?;
    ///     }
    ///     drop(page);
    ///     Ok(domain.destroy()?)
    /// }
    /// ```
    pub fn create_domain(&self, functions: &[PciAddress]) -> Result<DmaDomain, DomainError> {
        let (number, space) = self.control.create_domain(functions)?;
        Ok(DmaDomain::new(self.control.clone(), number, space))
    }

    /// A domain in which all units that see `functions` walk `table`, the CPU's: whoever is assigned to it uses the
    /// address space as it stands. It takes units that translate by first-stage tables.
    ///
    /// # Errors
    /// See [`DomainError`].
    pub fn share_table(
        &self,
        functions: &[PciAddress],
        table: SharedTable,
    ) -> Result<SharedDomain, DomainError> {
        let SharedParts { number, space, shares } = self.control.share_table(functions, table)?;
        Ok(SharedDomain::new(DmaDomain::new(self.control.clone(), number, space), shares))
    }

    /// The domain with this number, if it was created and not yet destroyed.
    #[must_use]
    pub fn domain(&self, number: u64) -> Option<DmaDomain> {
        let space = self.control.created_domain(number)?;
        Some(DmaDomain::new(self.control.clone(), number, space))
    }

    /// Gives `function`, of a group that nobody has or that is in `domain` already, to the owner of `domain`: its group
    /// reaches what is mapped there. What is mapped by the handle is mapped in the domain, for all that are in it.
    ///
    /// Every endpoint of the group is stopped, and unless nobody has had it since it was last released, `reset` is
    /// called for it as by [`release`](Self::release). Until the group is attached it reaches nothing. To give a group
    /// from one owner to another, release it first: in between it reaches nothing but its reserved memory.
    ///
    /// # Errors
    /// See [`ClaimError`]; the function stays as it was, but stopped.
    pub fn assign(
        &self,
        function: PciAddress,
        domain: &DmaDomain,
        mut reset: impl FnMut(PciAddress) -> bool,
    ) -> Result<DmaDevice, ClaimError> {
        let number = domain.number();
        if !domain.is_under(&self.control) {
            return Err(ClaimError::NoDomain { domain: number });
        }
        self.control.assign(function, number, &mut reset)
    }

    /// Puts the group of `function` in quarantine, as its faults would: it reaches its reserved memory and nothing
    /// else, its drivers are told, and what they had mapped stays pinned until [`release`](Self::release).
    ///
    /// # Errors
    /// See [`ReleaseError`].
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{Iommu, PciAddress, ReleaseError};
    ///
    /// /// A device that is suspected of something is stopped now, and asked later.
    /// fn stop(iommu: &Iommu, function: PciAddress) -> Result<(), ReleaseError> {
    ///     iommu.quarantine(function)
    /// }
    /// ```
    pub fn quarantine(&self, function: PciAddress) -> Result<(), ReleaseError> {
        self.control.quarantine(function)
    }

    /// Takes the group of `function` back from its drivers, or out of quarantine, so that it can be claimed again.
    /// Whoever has it: a driver that gives its own device back does so by [`DmaDevice::release`].
    ///
    /// Bus mastering is turned off and the group blocked first. Then `reset` is called for each of its functions that
    /// is no bridge, and says whether the function is quiet: whether whatever it had begun has ended, or will never
    /// touch memory. Only then does the memory that was mapped for it come back. Handles of the old drivers stay valid,
    /// and map nothing more in a domain of the group's own; in one that was created they map for those who are left in
    /// it.
    ///
    /// # Errors
    /// See [`ReleaseError`]. The group is in quarantine then, unless it was [`Busy`](ReleaseError::Busy) or unknown.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{ClaimError, DmaDevice, Iommu, PciAddress};
    ///
    /// /// Another driver gets the function; `reset` is the kernel's way to make one quiet.
    /// fn change_hands(
    ///     iommu: &Iommu,
    ///     function: PciAddress,
    ///     reset: impl Fn(PciAddress) -> bool,
    /// ) -> Result<DmaDevice, Box<dyn std::error::Error>> {
    ///     iommu.release(function, reset)?;
    ///     Ok(iommu.claim(function)?)
    /// }
    /// ```
    pub fn release(
        &self,
        function: PciAddress,
        mut reset: impl FnMut(PciAddress) -> bool,
    ) -> Result<(), ReleaseError> {
        self.control.release(function, &mut reset)
    }

    /// The functions of the group of `function`, itself included: they change hands together. Empty if there is no such
    /// function, or no unit covers its group.
    ///
    /// # Errors
    /// No memory for the list.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{Iommu, PciAddress};
    ///
    /// /// Whether `function` can be handed out without another one.
    /// fn is_alone(iommu: &Iommu, function: PciAddress) -> bool {
    ///     iommu.group(function).is_ok_and(|group| group == [function])
    /// }
    /// ```
    pub fn group(&self, function: PciAddress) -> Result<Vec<PciAddress>, TryReserveError> {
        self.control.group(function)
    }
}
