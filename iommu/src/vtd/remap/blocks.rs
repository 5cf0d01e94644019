//! Which entries of an interrupt-remapping table are in use.

use alloc::vec::Vec;

use crate::{
    platform::MsiMessage,
    vtd::spec::{IoapicEntry, message},
};

/// Most entries in a row, as a power of two: what a device with multi-message MSI can use.
pub const MAX_BLOCK_ORDER: u8 = 5;

/// Entries in a row of one unit's table, for one device. Dropping it loses the entries for good.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "entries are lost for good unless they are freed"]
pub struct InterruptBlock {
    unit: usize,
    first: u16,
    order: u8,
}

impl InterruptBlock {
    /// Index of the unit whose table it is.
    #[must_use]
    pub fn unit(&self) -> usize {
        self.unit
    }

    /// Index of the first entry.
    #[must_use]
    pub fn first(&self) -> u16 {
        self.first
    }

    /// log2 of the number of entries.
    #[must_use]
    pub fn order(&self) -> u8 {
        self.order
    }

    /// Index of entry `offset` of the block.
    #[must_use]
    pub fn index(&self, offset: u16) -> Option<u16> {
        (offset < 1 << self.order).then(|| self.first + offset)
    }

    /// The indices of its entries.
    pub fn indices(&self) -> impl Iterator<Item = u16> + use<> {
        let first = self.first;
        (0..1 << self.order).map(move |offset| first + offset)
    }

    /// What the device writes to raise entry `offset` (MSI with one message, MSI-X).
    #[must_use]
    pub fn message(&self, offset: u16) -> Option<MsiMessage> {
        Some(message(self.index(offset)?, false))
    }

    /// What a device with multi-message MSI is given: it adds the number of the message to the data.
    #[must_use]
    pub fn multi_message(&self) -> MsiMessage {
        message(self.first, true)
    }

    /// The masked redirection entry of an I/O APIC that goes through entry `offset`, whose vector is `vector`.
    #[must_use]
    pub fn ioapic_entry(&self, offset: u16, vector: u8) -> Option<IoapicEntry> {
        Some(IoapicEntry::remapped(self.index(offset)?, vector))
    }
}

/// The entries that are not in use.
#[derive(Debug)]
pub(super) struct FreeBlocks {
    /// One bit an entry, set while it is in use.
    used: Vec<u64>,
}

impl FreeBlocks {
    /// 2^`order` entries, at least 64, all free. `None` if there is no memory.
    pub fn new(order: u8) -> Option<Self> {
        let words = 1 << (order - 6);
        let mut used = Vec::new();
        used.try_reserve_exact(words).ok()?;
        used.resize(words, 0);
        Some(Self { used })
    }

    /// The lowest free block of 2^`order` entries.
    pub fn take(&mut self, unit: usize, order: u8) -> Option<InterruptBlock> {
        if order > MAX_BLOCK_ORDER {
            return None;
        }
        let (word, shift) = self.used.iter().enumerate().find_map(|(word, &used)| {
            let starts = (0..u64::BITS).step_by(1 << order);
            starts.into_iter().find(|&shift| used & mask(order) << shift == 0).map(|shift| (word, shift))
        })?;
        self.used[word] |= mask(order) << shift;
        // A table has at most 2^16 entries.
        Some(InterruptBlock { unit, first: (word * 64) as u16 + shift as u16, order })
    }

    pub fn put_back(&mut self, block: InterruptBlock) {
        let (word, shift) = (usize::from(block.first) / 64, block.first % 64);
        debug_assert_eq!(self.used[word] >> shift & mask(block.order), mask(block.order), "freed twice");
        self.used[word] &= !(mask(block.order) << shift);
    }
}

/// A bit for each entry of a block.
const fn mask(order: u8) -> u64 {
    (1 << (1 << order)) - 1
}
const _: () = assert!(mask(0) == 1 && mask(MAX_BLOCK_ORDER) == 0xffff_ffff);
