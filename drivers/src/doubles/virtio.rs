//! What virtio devices in software have in common: registers, rings and interrupts.

use std::{sync::Weak, vec::Vec};

use iommu::platform::MsiMessage;

use super::host::TestHost;
use crate::pci::{ConfigSpace, fake::FakeFunction};

/// Where the windows are in BAR 0.
pub const COMMON: usize = 0x0000;
pub const DEVICE: usize = 0x2000;
pub const NOTIFY: usize = 0x3000;
pub const TABLE: usize = 0x4000;
const WINDOW: usize = 0x1000;
/// The device's status, in the first of them.
pub const STATUS: usize = 0x14;

pub const EVENT_INDEX: u64 = 1 << 29;
pub const VERSION_1: u64 = 1 << 32;
pub const ACCESS_PLATFORM: u64 = 1 << 33;

const DRIVER_OK: u8 = 4;
pub const NEEDS_RESET: u8 = 64;

/// The registers of a device with `N` queues, and its MSI-X table.
pub struct DeviceRegisters<const N: usize> {
    offered_half: u32,
    accepted_half: u32,
    pub accepted: u64,
    pub config_vector: u16,
    pub status: u8,
    queue_select: u16,
    queues: [QueueRegisters; N],
    pub table: [u32; 16],
}

impl<const N: usize> Default for DeviceRegisters<N> {
    fn default() -> Self {
        Self {
            offered_half: 0,
            accepted_half: 0,
            accepted: 0,
            config_vector: 0,
            status: 0,
            queue_select: 0,
            queues: [QueueRegisters::default(); N],
            table: [0; 16],
        }
    }
}

#[derive(Clone, Copy)]
struct QueueRegisters {
    size: u16,
    vector: u16,
    enable: u16,
    rings: [u64; 3],
    seen: u16,
    used: u16,
    /// Index of the used ring that its driver was last told of.
    told: u16,
}

impl Default for QueueRegisters {
    fn default() -> Self {
        Self { size: 64, vector: 0xffff, enable: 0, rings: [0; 3], seen: 0, used: 0, told: 0 }
    }
}

/// Configuration space of the device: vendor capabilities and MSI-X, all in BAR 0.
pub fn function(id: u32, class: u32) -> FakeFunction {
    let mut function = FakeFunction::new(id, class, 0).with(0x34, 0x40);
    let windows = [(1, COMMON), (2, NOTIFY), (4, DEVICE)];
    for (index, (kind, offset)) in (0..).zip(windows) {
        let at = 0x40 + 0x20 * index;
        let next = u32::from(at + 0x20);
        function = function
            .with(at, 0x09 | next << 8 | 20 << 16 | kind << 24)
            .with(at + 4, 0)
            .with(at + 8, offset as u32)
            .with(at + 12, WINDOW as u32)
            .with(at + 16, 4);
    }
    // Four entries.
    function.with(0xa0, 0x11 | 3 << 16).writable(0xa0, 0xc000_0000).with(0xa4, TABLE as u32)
}

/// What the device reads. What is blocked reads as zeros, as from a device that does not care.
pub fn dma_read<const N: usize>(requester: &vtd_model::Device, address: u64) -> [u8; N] {
    let mut bytes = [0; N];
    let _ = requester.read(address, &mut bytes);
    bytes
}

/// Descriptor number `index` of the table at `table`: address, length, flags, next.
pub fn descriptor(requester: &vtd_model::Device, table: u64, index: u16) -> (u64, usize, u16, u16) {
    let raw: [u8; 16] = dma_read(requester, table + 16 * u64::from(index));
    let word = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
    let address = u64::from_le_bytes(raw[..8].try_into().unwrap());
    let bytes = u32::from_le_bytes(raw[8..12].try_into().unwrap()) as usize;
    (address, bytes, word(12), word(14))
}

/// The queue whose doorbell is at `offset` of BAR 0. The notify offset of queue 0 is 3, and the multiplier 4.
pub fn rung(offset: usize, width: usize, value: u64, queues: usize) -> usize {
    let queue = value as usize;
    assert!(queue < queues && width == 2 && offset == NOTIFY + 12 + 4 * queue, "a queue's own doorbell");
    queue
}

impl<const N: usize> DeviceRegisters<N> {
    fn runs(&self) -> bool {
        self.status & DRIVER_OK != 0 && self.status & NEEDS_RESET == 0
    }

    /// Where the descriptors of queue `queue` are.
    pub fn descriptors(&self, queue: usize) -> u64 {
        self.queues[queue].rings[0]
    }

    /// Takes the next chain that is available in queue `queue`; when there is none, asks to be told of the next.
    pub fn take(&mut self, requester: &vtd_model::Device, queue: usize) -> Option<u16> {
        if !self.runs() {
            return None;
        }
        let accepted = self.accepted;
        let QueueRegisters { rings, size, seen, .. } = &mut self.queues[queue];
        let index = u16::from_le_bytes(dma_read(requester, rings[1] + 2));
        if *seen == index {
            if accepted & EVENT_INDEX != 0 {
                let event = rings[2] + 4 + 8 * u64::from(*size);
                let _ = requester.write(event, &index.to_le_bytes());
            }
            return None;
        }
        let slot = u64::from(*seen % *size);
        *seen = seen.wrapping_add(1);
        Some(u16::from_le_bytes(dma_read(requester, rings[1] + 4 + 2 * slot)))
    }

    /// Says in queue `queue` that a chain is finished and moves its index by `step`. Returns the vector to raise, if
    /// the driver wants to hear of it.
    pub fn finish(
        &mut self,
        requester: &vtd_model::Device,
        queue: usize,
        head: u32,
        written: u32,
        step: u16,
    ) -> Option<u16> {
        let registers = &mut self.queues[queue];
        let slot = u64::from(registers.used % registers.size);
        let element: Vec<u8> = [head.to_le_bytes(), written.to_le_bytes()].concat();
        let _ = requester.write(registers.rings[2] + 4 + 8 * slot, &element);
        registers.used = registers.used.wrapping_add(step);
        let _ = requester.write(registers.rings[2] + 2, &registers.used.to_le_bytes());
        let QueueRegisters { rings, size, used, told, vector, .. } = *registers;
        if self.accepted & EVENT_INDEX != 0 {
            let event = u16::from_le_bytes(dma_read(requester, rings[1] + 4 + 2 * u64::from(size)));
            if used.wrapping_sub(event).wrapping_sub(1) >= used.wrapping_sub(told) {
                return None;
            }
        }
        self.queues[queue].told = used;
        Some(vector)
    }

    /// Sends the message in entry `entry` of the MSI-X table.
    pub fn raise(&self, requester: &vtd_model::Device, host: &Weak<TestHost>, entry: u16) {
        let Some(host) = host.upgrade() else { return };
        let entry = 4 * usize::from(entry);
        let on = host.space.read32(requester.address(), 0xa0) & 0xc000_0000 == 0x8000_0000;
        if on && host.is_bus_master() && self.table[entry + 3] & 1 == 0 {
            let address = u64::from(self.table[entry]) | u64::from(self.table[entry + 1]) << 32;
            host.deliver(MsiMessage { address, data: self.table[entry + 2] });
        }
    }

    /// A write to the common structure. A restless device does not become quiet when it is reset.
    pub fn write(&mut self, offset: usize, value: u64, restless: bool) {
        match offset {
            0x00 => self.offered_half = value as u32,
            0x08 => self.accepted_half = value as u32,
            0x0c if self.accepted_half == 0 => self.accepted = value,
            0x0c => self.accepted |= value << 32,
            0x10 => self.config_vector = value as u16,
            STATUS if value == 0 && restless => {}
            STATUS if value == 0 => *self = Self { table: self.table, ..Self::default() },
            STATUS => self.status = value as u8,
            0x16 => self.queue_select = value as u16,
            _ => {
                let queue = &mut self.queues[usize::from(self.queue_select)];
                match offset {
                    0x18 => queue.size = value as u16,
                    0x1a => queue.vector = value as u16,
                    0x1c => queue.enable = value as u16,
                    0x20..0x38 => {
                        let ring = &mut queue.rings[(offset - 0x20) / 8];
                        let shift = 8 * (offset % 8);
                        *ring = *ring & !(0xffff_ffff << shift) | value << shift;
                    }
                    _ => panic!("write to {offset:#x} of the common structure"),
                }
            }
        }
    }

    /// A read of the common structure of a device that has `queues` of its queues.
    pub fn read(&self, offset: usize, offered: u64, queues: usize) -> u64 {
        let selected = usize::from(self.queue_select);
        let queue = self.queues.get(selected).filter(|_| selected < queues);
        match offset {
            0x04 => (offered >> (32 * self.offered_half)) & 0xffff_ffff,
            0x10 => self.config_vector.into(),
            0x12 => queues as u64,
            STATUS => self.status.into(),
            0x18 => queue.map_or(0, |queue| queue.size).into(),
            0x1a => queue.map_or(0, |queue| queue.vector).into(),
            0x1e => 3 + u64::from(self.queue_select),
            _ => panic!("read of {offset:#x} of the common structure"),
        }
    }
}
