//! Simulated physical memory: table pages behind a cache, firmware's, and what devices are lent.

mod beyond;
mod buffers;
mod region;
mod tables;

use std::{
    ptr::NonNull,
    sync::{Arc, atomic::Ordering},
};

use beyond::Beyond;
use buffers::{Buffers, Foreign};
use region::Region;
pub(crate) use tables::TablePages;

use crate::{complaints::Complaints, random::Random};

/// Where the parts of memory lie.
#[derive(Clone, Copy, Debug)]
pub struct MemoryMap {
    /// First table page.
    pub tables: u64,
    /// Number of table pages; half of them can be given out in contiguous runs.
    pub table_pages: usize,
    /// Memory that firmware keeps: reserved regions, and what it left behind.
    pub firmware: u64,
    /// Size of that memory.
    pub firmware_bytes: usize,
    /// Memory that test buffers are cut from.
    pub buffers: u64,
    /// Size of that memory.
    pub buffer_bytes: usize,
    /// Made-up addresses of the host program's heap, up to 1 GiB of it.
    pub foreign: u64,
}

#[derive(Debug)]
pub(crate) struct Memory {
    pub tables: TablePages,
    pub beyond: Beyond,
    pub buffers: Buffers,
    firmware: Region,
    foreign: Foreign,
}

/// Why a device's access found no memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NotForDevices {
    Table,
    NotLent,
    Nothing,
}

impl Memory {
    pub fn new(
        map: &MemoryMap,
        host_address_bits: u8,
        random: &mut Random,
        complaints: Arc<Complaints>,
    ) -> Self {
        Self {
            tables: TablePages::new(map.tables, map.table_pages, random, complaints),
            beyond: Beyond::new(host_address_bits),
            buffers: Buffers::new(map.buffers, map.buffer_bytes),
            firmware: Region::new(map.firmware, map.firmware_bytes),
            foreign: Foreign::new(map.foreign),
        }
    }

    /// The word at `physical`, a multiple of 8; `snoop` says whether the reader sees the CPU's caches.
    pub fn word(&self, physical: u64, snoop: bool) -> Option<u64> {
        if self.tables.contains(physical) {
            return self.tables.word(physical, snoop);
        }
        let offset = self.firmware.offset(physical, 8)?;
        Some(self.firmware.word(offset).load(Ordering::Acquire))
    }

    /// The words from `physical` on.
    pub fn words<const N: usize>(&self, physical: u64, snoop: bool) -> Option<[u64; N]> {
        let mut words = [0; N];
        for (slot, at) in words.iter_mut().zip((physical..).step_by(8)) {
            *slot = self.word(at, snoop)?;
        }
        Some(words)
    }

    /// A store by hardware to memory that software polls.
    pub fn store32(&self, physical: u64, value: u32) -> bool {
        if self.tables.store32(physical, value) {
            return true;
        }
        let Some(pointer) = self.foreign.pointer(physical) else { return false };
        // SAFETY: memory that the driver shared for this, aligned to the dword.
        unsafe { pointer.cast::<u32>().write_volatile(value) };
        true
    }

    /// A store by firmware, long before the driver runs.
    pub fn store_firmware(&self, physical: u64, value: u64) {
        let offset = self.firmware.offset(physical, 8).expect("memory of the firmware");
        self.firmware.word(offset).store(value, Ordering::Release);
    }

    pub fn is_firmware(&self, physical: u64) -> bool {
        self.firmware.offset(physical, 1).is_some()
    }

    /// Physical address of memory that may be lent to a device.
    pub fn physical(&self, first: NonNull<u8>, bytes: usize) -> Option<u64> {
        if self.tables.contains_pointer(first.as_ptr()) || self.firmware.offset_of(first.as_ptr()).is_some() {
            return None;
        }
        if let Some(physical) = self.buffers.physical(first.as_ptr(), bytes) {
            return Some(physical);
        }
        Some(self.foreign.physical(first, bytes))
    }

    /// Where a device's access to `bytes` bytes from `physical` goes.
    pub fn dma_target(&self, physical: u64, bytes: usize) -> Result<NonNull<u8>, NotForDevices> {
        if self.tables.contains(physical) {
            return Err(NotForDevices::Table);
        }
        if let Some(pointer) = self.buffers.pointer(physical, bytes) {
            return if self.buffers.is_lent(physical) { Ok(pointer) } else { Err(NotForDevices::NotLent) };
        }
        if let Some(offset) = self.firmware.offset(physical, bytes) {
            return Ok(self.firmware.pointer(offset));
        }
        self.foreign.pointer(physical).ok_or(NotForDevices::Nothing)
    }
}
