//! A page table of the CPU's that devices walk as well.
//!
//! First-stage translation has the CPU's format, so a domain can use a table that is somebody's address space already.
//! It maps nothing itself then: what the owner maps for the CPU its devices reach at the same addresses, with the same
//! rights, as far as it is the user's; and what the owner takes away has to be flushed from both.

use alloc::sync::Arc;
use core::fmt;

use mm::{
    PhysAddr,
    table::{PageTable, Stale, TableMemory, x86::X86Format},
};

use super::{DmaDomain, DmaError, DomainError, space::Space};
use crate::{Iova, arc::TryArc};

/// The table of an address space, and what it takes to walk it.
pub struct SharedTable {
    pub(crate) root: PhysAddr,
    pub(crate) format: X86Format,
    pub(crate) physical_bits: u8,
    /// What keeps table and memory.
    pub(crate) keeper: Keeper,
}

pub(crate) type Keeper = Arc<dyn Send + Sync>;

impl SharedTable {
    /// `table`, whose pages, like the memory that it maps for users, have physical addresses of at most `physical_bits`
    /// bits (what else it maps beyond the units' width they block), and which stays until `keeper` is dropped: by a
    /// thread that destroys the domain, gives a device back or asks for one, without a lock of the subsystem's held.
    ///
    /// # Safety
    /// - As long as `keeper` has an owner, neither a page of the table nor memory that it maps for users is used for
    ///   anything else, but what [`SharedDomain::flush`] has been told of, of every domain that shares it, and returned
    ///   `Ok`. That is for devices that are in the domain: one that was taken out and may not be quiet may be writing
    ///   to it still.
    /// - What is the supervisor's is so in each entry from the root on, or no page of its tables is ever used for
    ///   anything else than tables for the supervisor: units may remember any table on the way, and are not told what
    ///   becomes of those.
    /// - Entries that `mm` did not make are for the supervisor, or have A and D set: a walker's update of an entry is
    ///   not expected by whoever edits it. If its format says that it is written back, they are as well, with all that
    ///   they lead to.
    /// - Whoever may use the devices may use what the table maps for users, as it says.
    #[must_use]
    pub unsafe fn new<M: TableMemory>(
        table: &PageTable<X86Format, M>,
        physical_bits: u8,
        keeper: Arc<dyn Send + Sync>,
    ) -> Self {
        Self { root: table.root(), format: *table.format(), physical_bits, keeper }
    }
}

impl fmt::Debug for SharedTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedTable").field("root", &self.root).finish_non_exhaustive()
    }
}

/// Why units do not walk a table of the CPU's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotShareable {
    /// Page tables of the machine's units are of the second stage: see
    /// [`Options::first_stage`](crate::Options::first_stage).
    SecondStage,
    /// A unit's walks do not snoop the CPU's caches, and the table is not [written back](X86Format::written_back).
    NotCoherent,
    /// The units walk other numbers of levels.
    Levels(u8),
    /// It may have leaves of sizes that a unit does not know.
    LeafSizes,
    /// Memory lies beyond the addresses that an entry can name for a unit (host address width of the DMAR table).
    PhysicalBits {
        /// Width of the memory's addresses.
        memory: u8,
        /// Width of what entries can name.
        units: u8,
    },
}

impl fmt::Display for NotShareable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SecondStage => f.write_str("the units' page tables are not in the CPU's format"),
            Self::NotCoherent => {
                f.write_str("a unit's walks do not snoop the CPU's caches, and the table is not written back")
            }
            Self::Levels(levels) => write!(f, "the units walk no tables of {levels} levels"),
            Self::LeafSizes => f.write_str("a unit does not know leaves of all sizes that the table has"),
            Self::PhysicalBits { memory, units } => {
                write!(f, "addresses of memory have {memory} bits, and the units' entries {units}")
            }
        }
    }
}

/// What a domain over a shared table does for the owner of that.
pub(crate) trait Shares: Send + Sync {
    /// Makes every cache of the domain's units and devices forget what `stale` speaks of.
    fn forget(&self, stale: &Stale) -> Result<(), DmaError>;

    /// Makes every unit see what was mapped in `bytes` bytes from `first`.
    fn publish_mapped(&self, first: Iova, bytes: u64) -> Result<(), DmaError>;

    /// Whether requests for all addresses in `first..=last` come to the units, and are memory for them.
    fn is_clear(&self, first: Iova, last: Iova) -> bool;
}

/// A domain over a shared table, as its handles see it.
pub(crate) struct SharedParts {
    pub number: u64,
    pub space: TryArc<dyn Space>,
    pub shares: TryArc<dyn Shares>,
}

/// A domain whose devices use an address space of the CPU's as it stands
/// ([`Iommu::share_table`](crate::Iommu::share_table)).
///
/// Its table is its owner's, who tells it of every change. The DMA API maps nothing in it ([`DmaError::SharedTable`]).
/// Devices come and go as in any domain that was created ([`domain`](Self::domain)). What keeps the table is let go
/// when the domain was destroyed and the last device that was in it is known to be quiet, whoever still has a handle.
///
/// Devices are users: entries for the supervisor block them. What may be executed is of no concern to them, and what
/// they may write they may read. Where a group has reserved memory it cannot come in.
#[derive(Clone)]
pub struct SharedDomain {
    domain: DmaDomain,
    table: TryArc<dyn Shares>,
}

impl SharedDomain {
    pub(crate) fn new(domain: DmaDomain, table: TryArc<dyn Shares>) -> Self {
        Self { domain, table }
    }

    /// The domain, to assign devices to.
    #[must_use]
    pub fn domain(&self) -> &DmaDomain {
        &self.domain
    }

    /// Makes the domain's units, and the devices behind them, forget what `stale`, a token of the shared table, speaks
    /// of. The table pages in the token are still the owner's, who flushes the CPUs as well before they are redeemed.
    ///
    /// # Errors
    /// A unit does not answer. What the token speaks of may be in use by a device then, for ever.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{DmaError, dma::SharedDomain};
    /// use mm::table::{EditError, PageTable, Stale, TableMemory, x86::X86Format};
    ///
    /// /// The owner of `table` takes a page from the program and from its devices. `shoot_down` is the kernel's way to flush CPUs.
    /// fn take_away<M: TableMemory>(
    ///     table: &PageTable<X86Format, M>,
    ///     devices: &SharedDomain,
    ///     page: u64,
    ///     shoot_down: impl Fn(&Stale),
    /// ) -> Result<(), Box<dyn std::error::Error>> {
    ///     // SAFETY: the program alone uses the page, and is told that it is gone.
    ///     let stale = unsafe { table.unmap(page, 4096) }?;
    ///     devices.flush(&stale)?;
    ///     shoot_down(&stale);
    ///     // SAFETY: devices and CPUs have forgotten it.
    ///     table.redeem(unsafe { stale.assume_flushed() });
    ///     Ok(())
    /// }
    /// ```
    pub fn flush(&self, stale: &Stale) -> Result<(), DmaError> {
        self.table.forget(stale)
    }

    /// Makes the domain's units see what was mapped in the `bytes` bytes from `address`, which units with caching mode
    /// or a write buffer do not by themselves.
    ///
    /// # Errors
    /// A unit does not answer.
    pub fn publish(&self, address: u64, bytes: u64) -> Result<(), DmaError> {
        self.table.publish_mapped(Iova::new(address), bytes)
    }

    /// Whether what is mapped in the `bytes` bytes from `address` is what devices reach there. It is not where writes
    /// are interrupts (0xFEEx_xxxx), where registers answer before a unit sees the request
    /// ([`Machine::registers`](crate::Machine::registers)), and beyond what the units translate.
    #[must_use]
    pub fn reaches(&self, address: u64, bytes: u64) -> bool {
        let last = address.checked_add(bytes.saturating_sub(1));
        last.is_some_and(|last| self.table.is_clear(Iova::new(address), Iova::new(last)))
    }

    /// Ends the domain: no device comes in any more. Those that are in it stay, with all that the table maps, until
    /// they are given back: whoever has the table may end before they do.
    ///
    /// # Errors
    /// [`DomainError::Unknown`] if it has ended already.
    pub fn destroy(&self) -> Result<(), DomainError> {
        self.domain.destroy()
    }
}

impl fmt::Debug for SharedDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedDomain").field(&self.domain.number()).finish()
    }
}
