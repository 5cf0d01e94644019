//! Groups come to a domain, and leave it.

use alloc::vec::Vec;

use mm::{PAGE_BYTES, PhysRange};

use super::{Domain, Kind};
use crate::{
    Iova, Platform,
    backend::{Backend, UnitSet},
    dma::{Access, DmaError, shared::Keeper, space::NotMapped},
    platform::Work,
};

/// The groups of a domain.
#[derive(Default)]
pub(super) struct Members {
    /// How many are attached, or about to be.
    pub groups: usize,
    /// What keeps the table of a shared domain, until there is no group, and none will be.
    pub keeper: Option<Keeper>,
    /// Memory that firmware wants the one group to reach at all times, mapped one to one. None if there are several.
    pub reserved: Vec<PhysRange>,
}

impl<B: Backend> Domain<B> {
    /// Lets a group in that `units` see: from here on its reserved memory is mapped, and its sources may be attached.
    ///
    /// What firmware reserves is for the functions that it names: a group that has any shares its domain with nobody.
    pub fn enter(&self, units: UnitSet, reserved: &[PhysRange]) -> Result<(), DmaError> {
        if self.units.common(units) != units {
            return Err(DmaError::NoCommonFormat);
        }
        if self.kind == Kind::Shared && !reserved.is_empty() {
            return Err(DmaError::SharedTable);
        }
        let mut list = Vec::new();
        list.try_reserve_exact(reserved.len()).map_err(|_| DmaError::OutOfMemory)?;
        list.extend_from_slice(reserved);
        let before = {
            let mut members = self.members.lock(&**self.backend.platform());
            if self.standing.is_closed() {
                return Err(DmaError::Revoked);
            }
            if members.groups > 0 && !(members.reserved.is_empty() && reserved.is_empty()) {
                return Err(DmaError::ReservedForOne);
            }
            members.groups += 1;
            core::mem::replace(&mut members.reserved, list)
        };
        drop(before);
        for (done, &region) in reserved.iter().enumerate() {
            if let Err(error) = self.map_reserved(region) {
                self.leave(&reserved[..done]);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Lets a group go of which no source is attached any more, with its `reserved` memory. Called without a lock held.
    pub fn leave(&self, reserved: &[PhysRange]) {
        reserved.iter().for_each(|&region| self.unmap_reserved(region));
        let list = {
            let mut members = self.members.lock(&**self.backend.platform());
            members.groups = members.groups.saturating_sub(1);
            core::mem::take(&mut members.reserved)
        };
        // One that never came in has nothing under way: nobody waits until it is quiet.
        drop((list, self.let_go()));
    }

    /// How many groups are attached.
    pub fn groups(&self) -> usize {
        self.members.lock(&**self.backend.platform()).groups
    }

    /// A group is about to be taken out: nothing comes back until it is [quiet](Self::set_quiet). A domain of the
    /// group's own ends with that.
    pub fn begin_revoking(&self) {
        match self.kind {
            Kind::Own => self.standing.close_restless(),
            _ => self.standing.begin_restless(),
        }
    }

    /// Whether what is mapped comes back.
    #[cfg(all(test, loom))]
    pub fn gives_back(&self) -> bool {
        self.standing.check_return().is_ok()
    }

    /// A group that was taken out is quiet.
    ///
    /// Returns what is to be dropped without a lock held.
    #[must_use]
    pub fn set_quiet(&self) -> Option<Keeper> {
        self.standing.end_restless();
        self.reaper.rouse();
        self.backend.platform().wake(Work::Reap);
        self.let_go()
    }

    /// Lets no more in: neither groups nor mappings. Fails, with their number, while groups are attached; but where the
    /// table is shared these stay as they are, with what keeps it.
    pub fn close(&self) -> Result<(), usize> {
        {
            let members = self.members.lock(&**self.backend.platform());
            if members.groups > 0 && self.kind != Kind::Shared {
                return Err(members.groups);
            }
            self.standing.close();
        }
        drop(self.let_go());
        Ok(())
    }

    /// Memory that firmware wants a device to reach at all times (RMRR), mapped one to one.
    fn map_reserved(&self, region: PhysRange) -> Result<(), DmaError> {
        let iova = Iova::new(region.start.as_u64());
        self.allocate_fixed(iova, region.bytes)?;
        match self.map_at(iova, &[region], region.bytes, Access { read: true, write: true }) {
            Ok(_) => Ok(()),
            Err(NotMapped::Untouched(error)) => Err(error),
            Err(NotMapped::Exposed(unflushed)) => Err(unflushed.into()),
        }
    }

    /// Undoes [`map_reserved`](Self::map_reserved). The memory is firmware's: if the unit is gone, nobody waits for it.
    fn unmap_reserved(&self, region: PhysRange) {
        let iova = Iova::new(region.start.as_u64());
        match self.clear(iova, region.bytes).and_then(|stale| Ok(self.flush(stale)?)) {
            Ok(()) => {
                self.mapped_pages.fetch_sub(region.bytes / PAGE_BYTES, super::Ordering::Relaxed);
                self.free(iova, region.bytes / PAGE_BYTES);
            }
            Err(error) => log::warn!("reserved memory at {iova} stays in domain {}: {error}", self.number),
        }
    }
}
