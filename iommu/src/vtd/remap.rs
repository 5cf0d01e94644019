//! Interrupt remapping: which device may raise which vector where.
//!
//! A device sends the index of an entry, not a vector; the entry says who may use it. Indices are handed out in
//! [`InterruptBlock`]s, and one is handed out again only after the unit has forgotten its entry.

mod blocks;
mod entry;
#[cfg(test)]
mod tests;

use core::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use mm::{
    PAGE_BYTES, PhysAddr,
    table::{Table, TableMemory},
};

use self::blocks::FreeBlocks;
use self::entry::sender_fields;
pub(super) use self::entry::sender_of;
pub use self::{
    blocks::{InterruptBlock, MAX_BLOCK_ORDER},
    entry::Route,
};
use super::{
    queue::{InterruptScope, Invalidation, InvalidationError},
    spec::{InterruptEntry, InterruptTableAddress},
    unit::{Hardware, Unit},
};
use crate::{
    Platform, SourceId,
    interrupts::Sender,
    platform::LockClass,
    reach::{TableError, TableKind},
    sync::IrqLock,
};

/// Entries of the smallest table, one page, as a power of two.
pub const MIN_TABLE_ORDER: u8 = 8;
/// Entries of the largest table, as a power of two.
pub const MAX_TABLE_ORDER: u8 = 16;

/// 64-bit words of an entry.
const ENTRY_WORDS: usize = 2;

/// What the bits of an entry that are software's say of one that was taken from its owner.
const MUTED: u8 = 1;

/// The interrupt-remapping table of one unit.
pub struct InterruptTable {
    first: PhysAddr,
    order: u8,
    /// Destinations have 32 bits.
    extended: bool,
    /// Whether the unit snoops the CPU's caches.
    coherent: bool,
    /// Entries that may be handed out. The lock also keeps changes of one entry apart.
    free: IrqLock<FreeBlocks>,
}

/// Why an interrupt could not be routed. Nothing was changed, except where the error is of the unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RouteError {
    /// The unit remaps no interrupts.
    NotRemapped {
        /// Index of the unit.
        unit: usize,
    },
    /// No free run of entries.
    NoEntries {
        /// log2 of the entries asked for.
        order: u8,
    },
    /// The block has no such entry.
    OutOfBlock {
        /// The entry asked for.
        offset: u16,
    },
    /// The local APIC's id does not fit into the unit's destinations, or means all local APICs.
    Destination {
        /// The id.
        apic: u32,
    },
    /// The vector is one of the CPU's exceptions.
    Vector {
        /// The vector.
        vector: u8,
    },
    /// The entry was taken from its owner, because its sender is in quarantine. It can only be freed.
    Muted {
        /// Index of the entry.
        index: u16,
    },
    /// The entry was allocated for another sender: it must be freed first.
    OtherSender {
        /// Index of the entry.
        index: u16,
    },
    /// The unit did not forget the old entry.
    Invalidation(InvalidationError),
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRemapped { unit } => write!(f, "remapping unit {unit} remaps no interrupts"),
            Self::NoEntries { order } => {
                write!(f, "no {} interrupt entries in a row are free", 1u32 << order)
            }
            Self::OutOfBlock { offset } => write!(f, "entry {offset} lies outside its block"),
            Self::Destination { apic } => write!(f, "local APIC {apic:#x} is beyond the unit's destinations"),
            Self::Vector { vector } => write!(f, "vector {vector} is reserved for exceptions"),
            Self::Muted { index } => write!(f, "the sender of interrupt entry {index} is in quarantine"),
            Self::OtherSender { index } => write!(f, "interrupt entry {index} is in use for another sender"),
            Self::Invalidation(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for RouteError {}

impl From<InvalidationError> for RouteError {
    fn from(error: InvalidationError) -> Self {
        Self::Invalidation(error)
    }
}

impl InterruptTable {
    /// An empty table of 2^`order` entries. Destinations have 32 bits if `x2apic` asks for it and the unit has them.
    pub(super) fn new<P: Platform>(
        platform: &P,
        hardware: &Hardware<P::Registers>,
        order: u8,
        x2apic: bool,
    ) -> Result<Self, TableError> {
        let capability = &hardware.capability;
        let order = order.clamp(MIN_TABLE_ORDER, MAX_TABLE_ORDER);
        let first = hardware.width.run(platform, TableKind::Interrupts, 1 << (order - MIN_TABLE_ORDER))?;
        let free = FreeBlocks::new(order).ok_or(TableError::OutOfMemory)?;
        let table = Self {
            first,
            order,
            extended: x2apic && capability.has_extended_interrupts(),
            coherent: capability.walks_coherently(),
            free: IrqLock::new(LockClass::Remapping, free),
        };
        table.write_back_all(platform);
        Ok(table)
    }

    /// Where the table lies, for the unit.
    pub(super) fn register(&self) -> InterruptTableAddress {
        InterruptTableAddress::at(self.first, self.order, self.extended)
    }

    /// Number of entries.
    #[must_use]
    pub fn entries(&self) -> usize {
        1 << self.order
    }

    /// Whether destinations have 32 bits.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.extended
    }

    /// The entry at `index`, if there is one.
    pub fn entry<P: Platform>(&self, platform: &P, index: u16) -> Option<InterruptEntry> {
        (usize::from(index) < self.entries()).then(|| self.with_entry(platform, index, load))
    }

    /// Notes in the entry at `index`, which nobody has, who will use it: whoever that is can be [muted](Self::mute)
    /// from now on. It lets nothing through.
    fn reserve<P: Platform>(&self, platform: &P, index: u16, sender: Sender) {
        let _changing = self.free.lock(platform);
        self.with_entry(platform, index, |words| {
            let (_, high) = halves(sender_fields(sender));
            words[1].store(high, Ordering::Relaxed);
            words[0].store(0, Ordering::Release);
            self.write_back(platform, words);
        });
    }

    /// Stores `entry` at `index`, which was [reserved](Self::reserve) for its sender. An entry in use may change its
    /// destination and vector alone: these lie in one word, so that the unit sees the old entry or the new one and
    /// never half of each.
    fn store<P: Platform>(&self, platform: &P, index: u16, entry: InterruptEntry) -> Result<(), RouteError> {
        let _changing = self.free.lock(platform);
        self.with_entry(platform, index, |words| {
            let old = load(words);
            if old.software() == MUTED {
                return Err(RouteError::Muted { index });
            }
            let (low, high) = halves(entry);
            if halves(old).1 != high {
                return Err(RouteError::OtherSender { index });
            }
            words[1].store(high, Ordering::Relaxed);
            words[0].store(low, Ordering::Release);
            self.write_back(platform, words);
            Ok(())
        })
    }

    /// Takes the entry at `index` out of use; the unit may go on using it until it is invalidated.
    fn withdraw<P: Platform>(&self, platform: &P, index: u16) {
        let _changing = self.free.lock(platform);
        self.with_entry(platform, index, |words| {
            let withdrawn =
                load(words).with_present(false).with_fault_reporting_disabled(false).with_software(0);
            words[0].store(withdrawn.into_bits() as u64, Ordering::Release);
            self.write_back(platform, words);
        });
    }

    /// Makes the entry at `index`, which was [withdrawn](Self::withdraw) and which the unit has forgotten, nobody's:
    /// whoever had it may have been muted meanwhile, and what others try with it is recorded.
    fn clear<P: Platform>(&self, platform: &P, index: u16) {
        let _changing = self.free.lock(platform);
        self.with_entry(platform, index, |words| {
            words.iter().for_each(|word| word.store(0, Ordering::Release));
            self.write_back(platform, words);
        });
    }

    /// Takes the entry at `index` out of use for good if `is_meant` says so, whether or not anything was stored there;
    /// until it is [reserved](Self::reserve) anew nothing can be. What is tried with it is not recorded. Returns
    /// whether it changed: the unit may go on using what it was, even that it was not present, until it is invalidated.
    fn mute<P: Platform>(
        &self,
        platform: &P,
        index: u16,
        is_meant: impl FnOnce(InterruptEntry) -> bool,
    ) -> bool {
        let _changing = self.free.lock(platform);
        self.with_entry(platform, index, |words| {
            let entry = load(words);
            if entry.software() == MUTED || !is_meant(entry) {
                return false;
            }
            let muted = entry.with_present(false).with_fault_reporting_disabled(true).with_software(MUTED);
            words[0].store(muted.into_bits() as u64, Ordering::Release);
            self.write_back(platform, words);
            true
        })
    }

    fn with_entry<P: Platform, T>(
        &self,
        platform: &P,
        index: u16,
        access: impl FnOnce(&[AtomicU64]) -> T,
    ) -> T {
        let word = usize::from(index) * ENTRY_WORDS;
        let table = self.page(platform, word / WORDS_A_PAGE);
        let first = word % WORDS_A_PAGE;
        access(&table[first..first + ENTRY_WORDS])
    }

    fn page<'a, P: Platform>(&self, platform: &'a P, page: usize) -> &'a Table {
        let address = PhysAddr::new(self.first.as_u64() + page as u64 * PAGE_BYTES);
        // SAFETY: the page is one of those that `allocate_contiguous` returned for this table, which are never freed:
        // `page` is below their number, because every index was checked against the size of the table.
        unsafe { platform.tables().table(address) }
    }

    fn write_back<P: Platform>(&self, platform: &P, words: &[AtomicU64]) {
        if !self.coherent {
            platform.tables().write_back(words.as_ptr().cast(), size_of_val(words));
        }
    }

    fn write_back_all<P: Platform>(&self, platform: &P) {
        for page in 0..1 << (self.order - MIN_TABLE_ORDER) {
            self.write_back(platform, self.page(platform, page));
        }
    }
}

const WORDS_A_PAGE: usize = mm::table::TABLE_ENTRIES;

fn load(words: &[AtomicU64]) -> InterruptEntry {
    let (low, high) = (words[0].load(Ordering::Acquire), words[1].load(Ordering::Relaxed));
    InterruptEntry::from_bits(u128::from(low) | u128::from(high) << 64)
}

/// The words of `entry`, in the order of their addresses.
fn halves(entry: InterruptEntry) -> (u64, u64) {
    (entry.into_bits() as u64, (entry.into_bits() >> 64) as u64)
}

impl<P: Platform> Unit<P> {
    /// Hands out 2^`order` entries in a row for `sender`, aligned to their number; at most 2^[`MAX_BLOCK_ORDER`].
    ///
    /// # Errors
    /// [`RouteError::NotRemapped`], [`RouteError::NoEntries`].
    pub fn allocate_interrupts(
        &self,
        platform: &P,
        order: u8,
        sender: Sender,
    ) -> Result<InterruptBlock, RouteError> {
        let table = self.interrupt_table()?;
        let block = table.free.lock(platform).take(self.index(), order);
        let block = block.ok_or(RouteError::NoEntries { order })?;
        block.indices().for_each(|index| table.reserve(platform, index, sender));
        Ok(block)
    }

    /// Lets `route` through entry `offset` of `block`. An entry in use may be given another vector and destination
    /// while interrupts arrive; when this returns, none goes to the old ones any more.
    ///
    /// # Errors
    /// See [`RouteError`].
    pub fn route_interrupt(
        &self,
        platform: &P,
        block: &InterruptBlock,
        offset: u16,
        route: &Route,
    ) -> Result<(), RouteError> {
        let table = self.interrupt_table()?;
        debug_assert_eq!(block.unit(), self.index(), "an interrupt entry of another unit");
        let index = block.index(offset).ok_or(RouteError::OutOfBlock { offset })?;
        table.store(platform, index, route.entry(table.extended)?)?;
        // Also where nothing was there before: a unit may have cached that.
        self.invalidate_interrupts(platform, index, 0)
    }

    /// Takes `block` back. Its entries are handed out again only after the unit has forgotten them: after an error,
    /// they never are.
    ///
    /// # Errors
    /// [`RouteError::Invalidation`] if the unit does not answer.
    pub fn free_interrupts(&self, platform: &P, block: InterruptBlock) -> Result<(), RouteError> {
        let table = self.interrupt_table()?;
        debug_assert_eq!(block.unit(), self.index(), "an interrupt entry of another unit");
        for index in block.indices() {
            table.withdraw(platform, index);
        }
        self.invalidate_interrupts(platform, block.first(), block.order())?;
        for index in block.indices() {
            table.clear(platform, index);
        }
        table.free.lock(platform).put_back(block);
        Ok(())
    }

    /// Takes all entries that `source` may use, or could once they are routed, from their owners, who can only free
    /// them. When this returns `Ok`, no interrupt of `source` comes any more, unless somebody allocates and routes one
    /// anew.
    ///
    /// # Errors
    /// [`RouteError::Invalidation`] if the unit does not answer.
    pub fn mute_interrupts(&self, platform: &P, source: SourceId) -> Result<(), RouteError> {
        let Some(table) = self.interrupts() else { return Ok(()) };
        let is_meant = |entry| sender_of(entry, self.segment()).is_some_and(|sender| sender.includes(source));
        let mut muted = 0;
        // A table has at most 2^16 entries.
        for index in 0..table.entries() {
            muted += usize::from(table.mute(platform, index as u16, is_meant));
        }
        if muted == 0 {
            return Ok(());
        }
        let everything = [Invalidation::InterruptEntries(InterruptScope::Global)];
        Ok(self.invalidate(platform, &everything)?)
    }

    fn invalidate_interrupts(&self, platform: &P, first: u16, order: u8) -> Result<(), RouteError> {
        let entries = InterruptScope::Entries { first, order };
        Ok(self.invalidate(platform, &[Invalidation::InterruptEntries(entries)])?)
    }

    fn interrupt_table(&self) -> Result<&InterruptTable, RouteError> {
        self.interrupts().ok_or(RouteError::NotRemapped { unit: self.index() })
    }
}

impl fmt::Debug for InterruptTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterruptTable")
            .field("first", &self.first)
            .field("entries", &self.entries())
            .field("extended", &self.extended)
            .finish_non_exhaustive()
    }
}
