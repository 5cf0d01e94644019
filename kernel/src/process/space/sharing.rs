//! A space that devices have as well.

use alloc::{boxed::Box, sync::Arc};

use iommu::{DmaDomain, DmaError, DomainError, Iommu, PciAddress};
use spin::Once;

use super::{Contents, Space};
use crate::memory;

/// What keeps the contents of a space that has gone, for as long as a domain has it.
pub(super) struct Estate(pub(super) Once<Box<Contents>>);

/// Why a device does not get the addresses of a program.
#[derive(Debug)]
pub enum ShareError {
    /// There can be no domain for it.
    Domain(DomainError),
    /// Somebody else answers at addresses that programs have.
    OutOfReach,
}

impl From<DomainError> for ShareError {
    fn from(error: DomainError) -> Self {
        Self::Domain(error)
    }
}

impl Space {
    /// A domain in which `function` has the addresses of the program.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub fn share_with(&mut self, iommu: &Iommu, function: PciAddress) -> Result<DmaDomain, ShareError> {
        let estate = self.estate.get_or_insert_with(|| Arc::new(Estate(Once::new()))).clone();
        // SAFETY: the contents go when the estate does, or before if no domain has it. The domain is added below, or
        // destroyed.
        let table = unsafe { self.contents.table.to_share(memory::ram_bits(), estate) };
        let shared = iommu.share_table(&[function], table)?;
        let domain = shared.domain().clone();
        let (image, stack) = (abi::IMAGE.end - abi::IMAGE.start, abi::STACK_BYTES);
        let reaches_both =
            shared.reaches(abi::IMAGE.start, image) && shared.reaches(abi::STACK_TOP - stack, stack);
        let result = if !reaches_both {
            Err(ShareError::OutOfReach)
        } else if !self.contents.table.add_domain(shared) {
            Err(DomainError::Dma(DmaError::OutOfMemory).into())
        } else {
            Ok(())
        };
        if result.is_err()
            && let Err(error) = domain.destroy()
        {
            log::error!("{error}");
        }
        result.map(|()| domain)
    }

    /// Whether devices have the addresses of the program.
    pub(super) fn is_shared(&self) -> bool {
        !self.contents.table.domains().is_empty()
    }
}
