//! Configuration space, memory-mapped (ECAM).

use alloc::vec::Vec;
use core::ptr::NonNull;

use iommu::PciAddress;
use mm::PhysAddr;

use crate::{
    acpi::EcamSegment,
    memory,
    sync::{IrqMutex, Rank},
};

const BUS_BYTES: usize = 1 << 20;
const FUNCTION_BYTES: usize = 4096;

/// The configuration space of some buses.
struct Window {
    segment: EcamSegment,
    base: NonNull<u8>,
}

// SAFETY: the window is mapped for ever and accessed by volatile operations only; the hardware orders them.
unsafe impl Send for Window {}
// SAFETY: as for `Send`.
unsafe impl Sync for Window {}

/// All configuration space that there is.
pub(super) struct ConfigSpace {
    windows: Vec<Window>,
    /// Held while a register that has two writers is read and written.
    changes: IrqMutex<()>,
}

impl ConfigSpace {
    /// Maps the segments of the firmware's table. One that cannot be mapped counts as missing.
    pub fn new(segments: &[EcamSegment]) -> Self {
        let windows = segments.iter().filter_map(Window::new).collect();
        Self { windows, changes: IrqMutex::new(Rank::ConfigSpace, ()) }
    }

    /// The aligned dword at `offset` of `function`'s configuration space; all ones if there is none.
    pub fn read(&self, function: PciAddress, offset: u16) -> u32 {
        // SAFETY: `find` returns mapped, aligned addresses.
        self.find(function, offset).map_or(u32::MAX, |at| unsafe { at.read_volatile() })
    }

    /// Writes the aligned dword at `offset` of `function`'s configuration space, if there is one.
    pub fn write(&self, function: PciAddress, offset: u16, value: u32) {
        if let Some(at) = self.find(function, offset) {
            // SAFETY: as in `read`.
            unsafe { at.write_volatile(value) };
        }
    }

    /// Writes the aligned word at `offset` of `function`'s configuration space, if there is one.
    pub fn write_word(&self, function: PciAddress, offset: u16, value: u16) {
        if let Some(at) = self.find(function, offset & !2).filter(|_| offset.is_multiple_of(2)) {
            // SAFETY: `find` returns mapped, aligned addresses, and the word is one half of the dword there.
            unsafe { at.cast::<u16>().add(usize::from(offset >> 1 & 1)).write_volatile(value) };
        }
    }

    /// Clears and sets bits of the aligned dword at `offset` of `function`'s configuration space, one caller at a time.
    pub fn change(&self, function: PciAddress, offset: u16, clear: u32, set: u32) {
        let _one_at_a_time = self.changes.lock();
        self.write(function, offset, self.read(function, offset) & !clear | set);
    }

    fn find(&self, function: PciAddress, offset: u16) -> Option<NonNull<u32>> {
        if usize::from(offset) >= FUNCTION_BYTES || !offset.is_multiple_of(4) {
            return None;
        }
        let holds = |window: &&Window| {
            let EcamSegment { segment, first_bus, last_bus, .. } = window.segment;
            segment == function.segment && (first_bus..=last_bus).contains(&function.bus)
        };
        let window = self.windows.iter().find(holds)?;
        let bus = usize::from(function.bus - window.segment.first_bus);
        let at = bus * BUS_BYTES + usize::from(function.devfn()) * FUNCTION_BYTES + usize::from(offset);
        // SAFETY: the bus is one of the window's, and the rest stays inside the bus.
        Some(unsafe { window.base.add(at) }.cast())
    }
}

impl Window {
    fn new(segment: &EcamSegment) -> Option<Self> {
        let buses = usize::from(segment.last_bus - segment.first_bus) + 1;
        let first = u64::from(segment.first_bus) * BUS_BYTES as u64;
        let base = segment
            .base
            .checked_add(first)
            .and_then(|start: PhysAddr| memory::map_registers(start, buses * BUS_BYTES));
        if base.is_none() {
            log::error!("configuration space {segment:?} cannot be mapped");
        }
        Some(Self { segment: *segment, base: base? })
    }
}
