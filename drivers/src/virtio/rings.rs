//! The memory of a split virtqueue.

use iommu::{Coherent, DmaDevice, DmaError, Iova};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One element of the descriptor table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Descriptor {
    /// IOVA of the segment.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u32,
    /// [`Descriptor::NEXT`], [`Descriptor::WRITE`].
    pub flags: u16,
    /// Index of the next descriptor of the chain, if there is one.
    pub next: u16,
}

impl Descriptor {
    /// The chain goes on.
    pub const NEXT: u16 = 1;
    /// The device writes the segment; otherwise it reads it.
    pub const WRITE: u16 = 2;
    /// The segment is a table of descriptors, in which the chain goes on.
    pub const INDIRECT: u16 = 4;
}

/// One element of the used ring, as the device wrote it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UsedElement {
    /// Index of the first descriptor of the chain.
    pub head: u32,
    /// Bytes that the device says it wrote.
    pub bytes: u32,
}

/// What a split queue needs of its memory. Everything read from it is the device's word.
pub trait RingMemory {
    /// Stores a descriptor.
    fn write_descriptor(&mut self, index: u16, descriptor: Descriptor);
    /// Most descriptors in the indirect table of a head; 0 if there are none.
    fn indirect_limit(&self) -> u16 {
        0
    }
    /// Stores descriptor number `position` of the indirect table of `head`, and returns where the device finds the
    /// table.
    fn write_indirect(&mut self, _head: u16, _position: u16, _descriptor: Descriptor) -> Iova {
        Iova::new(0)
    }
    /// Stores the head of a chain in slot `slot` of the available ring.
    fn write_available(&mut self, slot: u16, head: u16);
    /// Stores the index of the available ring; what was stored before is visible before it.
    fn publish_available(&mut self, index: u16);
    /// Index of the used ring; what is read after it was written before it.
    fn used_index(&self) -> u16;
    /// Slot `slot` of the used ring.
    fn used_element(&self, slot: u16) -> UsedElement;
    /// Whether the device wants to be told of new chains. What was stored before is visible before it is read.
    fn wants_notification(&self) -> bool;
    /// The index of the available ring at which the device wants to be told (event index). What was stored before is
    /// visible before it is read.
    fn available_event(&self) -> u16;
    /// Asks for an interrupt when the used ring gets to `index` (event index); visible before what is read after it.
    fn set_used_event(&mut self, index: u16);
    /// Makes all rings as new. Only while the device is reset.
    fn clear(&mut self);
}

/// The three rings of a queue in coherent memory.
///
/// The available ring is `flags, index, ring[size], used_event` in words, the used ring `flags|index << 16,
/// {head, bytes}[size], avail_event` in dwords: all little-endian, like the CPU. Each descriptor of the table may have
/// an indirect table of its own beside them.
pub struct Rings {
    descriptors: Coherent<Descriptor>,
    available: Coherent<u16>,
    used: Coherent<u32>,
    indirect: Option<Coherent<Descriptor>>,
    indirect_limit: u16,
}

/// Flag of the used ring: the device polls.
const USED_NO_NOTIFY: u32 = 1;

impl Rings {
    /// Rings for `size` descriptors that `device` can reach.
    ///
    /// # Errors
    /// No memory, or it cannot be mapped.
    pub fn new(device: &DmaDevice, size: u16) -> Result<Self, DmaError> {
        let size = usize::from(size);
        Ok(Self {
            descriptors: device.alloc_coherent(size)?,
            available: device.alloc_coherent(size + 3)?,
            used: device.alloc_coherent(2 * size + 2)?,
            indirect: None,
            indirect_limit: 0,
        })
    }

    /// The same, with chains of up to `per_chain` segments in indirect tables: each takes one descriptor of the ring.
    /// The device must have agreed to that.
    ///
    /// # Errors
    /// No memory, or it cannot be mapped.
    pub fn with_indirect(device: &DmaDevice, size: u16, per_chain: u16) -> Result<Self, DmaError> {
        let tables = device.alloc_coherent(usize::from(size) * usize::from(per_chain))?;
        Ok(Self { indirect: Some(tables), indirect_limit: per_chain, ..Self::new(device, size)? })
    }

    /// Where the device finds the descriptor table, the available ring and the used ring.
    #[must_use]
    pub fn addresses(&self) -> [Iova; 3] {
        [self.descriptors.iova(), self.available.iova(), self.used.iova()]
    }
}

impl RingMemory for Rings {
    fn write_descriptor(&mut self, index: u16, descriptor: Descriptor) {
        self.descriptors.write(usize::from(index), descriptor);
    }

    fn indirect_limit(&self) -> u16 {
        self.indirect_limit
    }

    fn write_indirect(&mut self, head: u16, position: u16, descriptor: Descriptor) -> Iova {
        let first = usize::from(head) * usize::from(self.indirect_limit);
        let Some(tables) = &mut self.indirect else {
            return Iova::new(0);
        };
        tables.write(first + usize::from(position), descriptor);
        tables.iova_of(first)
    }

    fn write_available(&mut self, slot: u16, head: u16) {
        self.available.write(2 + usize::from(slot), head);
    }

    fn publish_available(&mut self, index: u16) {
        // Volatile stores stay in program order, and x86 makes stores visible in that order.
        self.available.write(1, index);
    }

    fn used_index(&self) -> u16 {
        // Volatile loads stay in program order, and x86 does loads in that order.
        (self.used.read(0) >> 16) as u16
    }

    fn used_element(&self, slot: u16) -> UsedElement {
        let at = 1 + 2 * usize::from(slot);
        UsedElement { head: self.used.read(at), bytes: self.used.read(at + 1) }
    }

    fn wants_notification(&self) -> bool {
        // The one order that x86 does not keep: our store of the available index before our load of the flags.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        self.used.read(0) & USED_NO_NOTIFY == 0
    }

    fn available_event(&self) -> u16 {
        // As in `wants_notification`.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        self.used.read(self.used.len() - 1) as u16
    }

    fn set_used_event(&mut self, index: u16) {
        self.available.write(self.available.len() - 1, index);
        // Or the load of the used index could come before it, and a chain that is finished in between be missed.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    }

    fn clear(&mut self) {
        for index in 0..self.descriptors.len() {
            self.descriptors.write(index, Descriptor::default());
        }
        for index in 0..self.available.len() {
            self.available.write(index, 0);
        }
        for index in 0..self.used.len() {
            self.used.write(index, 0);
        }
    }
}
