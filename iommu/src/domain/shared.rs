//! Domains over a table of the CPU's.

use mm::table::{PageTable, Stale};

use super::{Domain, Kind, Making};
use crate::{
    Iova,
    backend::Backend,
    dma::{
        DmaError, DomainError, SharedTable,
        shared::{Keeper, Shares},
    },
    iova::INTERRUPT_RANGE,
    sync::atomic::{Ordering, fence},
};

impl<B: Backend> Domain<B> {
    /// A domain whose units walk `table`.
    pub fn sharing(making: Making<B>, table: SharedTable) -> Result<Self, DomainError> {
        let format = making.backend.shared_format(making.units, &table).map_err(DomainError::NotShareable)?;
        let SharedTable { root, keeper, .. } = table;
        // SAFETY: a shared domain admits no mapping, and shows its table to nobody.
        let named = |tables| Ok(unsafe { PageTable::named(format, tables, root) });
        let domain = Self::over(making, Kind::Shared, format, named)?;
        domain.members.lock(&**domain.backend.platform()).keeper = Some(keeper);
        Ok(domain)
    }

    /// What keeps a shared table, to be let go without a lock held: if no group is in the domain, nor comes, all that
    /// were are quiet, and no unit walks the table.
    pub(super) fn let_go(&self) -> Option<Keeper> {
        let mut members = self.members.lock(&**self.backend.platform());
        // A group that has come in may be about to be attached. One that has left may still be, by a unit that does not
        // answer.
        let is_over = members.groups == 0 && self.standing.is_over() && self.backend.is_unused(&self.tags);
        is_over.then(|| members.keeper.take()).flatten()
    }

    pub(super) fn take_keeper(&self) -> Option<Keeper> {
        self.members.lock(&**self.backend.platform()).keeper.take()
    }
}

impl<B: Backend> Shares for Domain<B> {
    fn forget(&self, stale: &Stale) -> Result<(), DmaError> {
        // As in `flush`: entries are cleared before the tags are read.
        fence(Ordering::SeqCst);
        Ok(self.backend.forget(&self.tags, stale)?)
    }

    fn publish_mapped(&self, first: Iova, bytes: u64) -> Result<(), DmaError> {
        if bytes == 0 || first.as_u64().checked_add(bytes - 1).is_none_or(|last| last > self.last) {
            return Ok(());
        }
        Ok(self.backend.publish(&self.tags, first, bytes)?)
    }

    fn is_clear(&self, first: Iova, last: Iova) -> bool {
        let (first, last) = (first.as_u64(), last.as_u64());
        let is_interrupt = first <= *INTERRUPT_RANGE.end() && last >= *INTERRUPT_RANGE.start();
        last <= self.last && !is_interrupt && !self.registers.meet(first, last)
    }
}
