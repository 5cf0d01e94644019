//! A virtio block device in software, honest or not.

use std::{
    sync::{Arc, Mutex, Weak},
    vec,
    vec::Vec,
};

use iommu::platform::MsiMessage;

use super::host::{BAR_BYTES, Bench, TestHost};
use crate::{
    mmio::trap::Registers,
    pci::{ConfigSpace, fake::FakeFunction},
};

/// Sectors on the medium.
pub const SECTORS: u64 = 256;
const SECTOR: usize = 512;

/// Where the windows are in BAR 0.
const COMMON: usize = 0x0000;
const DEVICE: usize = 0x2000;
const NOTIFY: usize = 0x3000;
const TABLE: usize = 0x4000;
const WINDOW: usize = 0x1000;

const VERSION_1: u64 = 1 << 32;
const ACCESS_PLATFORM: u64 = 1 << 33;
const FLUSH: u64 = 1 << 9;
/// Several queues.
pub const QUEUES: u64 = 1 << 12;
pub const DISCARD: u64 = 1 << 13;
pub const INDIRECT: u64 = 1 << 28;
pub const EVENT_INDEX: u64 = 1 << 29;

/// Request queues of a device that has several.
const MOST_QUEUES: usize = 3;

const DRIVER_OK: u8 = 4;
const NEEDS_RESET: u8 = 64;

/// What the device does with the requests it gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behaviour {
    /// What it should.
    Honest,
    /// Takes requests and does nothing with them.
    Silent,
    /// Names a chain that it was not given.
    WrongHead(u32),
    /// Moves the used index this much further than it should.
    Jump(u16),
    /// Says that it wrote this many bytes more than it was given.
    TooLong(u32),
    /// Reports this status.
    Status(u8),
    /// Finishes requests without a status.
    NoStatus,
    /// Asks for a reset.
    AsksForReset,
}

/// The device. What it is like can be changed at any time.
pub struct VirtioBlk {
    state: Mutex<State>,
    requester: vtd_model::Device,
    host: Weak<TestHost>,
}

pub struct State {
    pub offered: u64,
    pub behaviour: Behaviour,
    /// It does not become quiet when it is reset.
    pub restless: bool,
    pub medium: Vec<u8>,
    /// Requests that it has had.
    pub requests: usize,
    /// Flushes among them.
    pub flushes: usize,
    /// Requests by queue.
    pub by_queue: [usize; MOST_QUEUES],
    /// How often its driver told it of requests, and it its driver of what it has finished.
    pub doorbells: usize,
    pub interrupts: usize,
    registers: DeviceRegisters,
    table: [u32; 16],
}

#[derive(Default)]
struct DeviceRegisters {
    offered_half: u32,
    accepted_half: u32,
    accepted: u64,
    config_vector: u16,
    status: u8,
    queue_select: u16,
    queues: [QueueRegisters; MOST_QUEUES],
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
pub fn function() -> FakeFunction {
    let mut function = FakeFunction::new(0x1042_1af4, 0x0100_0001, 0).with(0x34, 0x40);
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

/// A machine with this device in it.
pub fn bench() -> (Bench, Arc<VirtioBlk>) {
    bench_with(function())
}

/// A machine with this device behind another configuration space.
pub fn bench_with(function: FakeFunction) -> (Bench, Arc<VirtioBlk>) {
    let bench = Bench::new(function);
    let state = State {
        offered: VERSION_1 | ACCESS_PLATFORM | FLUSH,
        behaviour: Behaviour::Honest,
        restless: false,
        medium: vec![0; SECTORS as usize * SECTOR],
        requests: 0,
        flushes: 0,
        by_queue: [0; MOST_QUEUES],
        doorbells: 0,
        interrupts: 0,
        registers: DeviceRegisters::default(),
        table: [0; 16],
    };
    let host = Arc::downgrade(&bench.host);
    let device = Arc::new(VirtioBlk { state: Mutex::new(state), requester: bench.requester.clone(), host });
    bench.plug(device.clone());
    (bench, device)
}

impl VirtioBlk {
    /// Changes the device.
    pub fn set<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.lock().unwrap())
    }

    fn dma_read<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        // What is blocked reads as zeros, as from a device that does not care.
        let _ = self.requester.read(address, &mut bytes);
        bytes
    }

    /// Descriptor number `index` of the table at `table`.
    fn descriptor(&self, table: u64, index: u16) -> (u64, usize, u16, u16) {
        let raw: [u8; 16] = self.dma_read(table + 16 * u64::from(index));
        let word = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        let address = u64::from_le_bytes(raw[..8].try_into().unwrap());
        let bytes = u32::from_le_bytes(raw[8..12].try_into().unwrap()) as usize;
        (address, bytes, word(12), word(14))
    }

    /// The segments of a chain: address, length, whether they are the device's to write.
    fn chain(&self, state: &State, queue: usize, head: u16) -> Vec<(u64, usize, bool)> {
        let mut table = state.registers.queues[queue].rings[0];
        let (mut at, mut segments) = (head, Vec::new());
        loop {
            let (address, bytes, flags, next) = self.descriptor(table, at);
            if flags & 4 != 0 {
                assert!(state.registers.accepted & INDIRECT != 0 && flags == 4 && bytes % 16 == 0);
                (table, at) = (address, 0);
                continue;
            }
            segments.push((address, bytes, flags & 2 != 0));
            assert!(segments.len() <= 3, "a request has three segments at most");
            if flags & 1 == 0 {
                return segments;
            }
            at = next;
        }
    }

    /// Takes everything that is available.
    fn run(&self, state: &mut State, queue: usize) {
        if state.registers.status & DRIVER_OK == 0 || state.registers.status & NEEDS_RESET != 0 {
            return;
        }
        let QueueRegisters { rings, size, .. } = state.registers.queues[queue];
        let index = u16::from_le_bytes(self.dma_read(rings[1] + 2));
        while state.registers.queues[queue].seen != index {
            let seen = &mut state.registers.queues[queue].seen;
            let slot = u64::from(*seen % size);
            *seen = seen.wrapping_add(1);
            let head = u16::from_le_bytes(self.dma_read(rings[1] + 4 + 2 * slot));
            state.requests += 1;
            state.by_queue[queue] += 1;
            self.serve(state, queue, head);
        }
        if state.registers.accepted & EVENT_INDEX != 0 {
            let event = rings[2] + 4 + 8 * u64::from(size);
            let _ = self.requester.write(event, &index.to_le_bytes());
        }
    }

    fn serve(&self, state: &mut State, queue: usize, head: u16) {
        if state.behaviour == Behaviour::Silent {
            return;
        }
        if state.behaviour == Behaviour::AsksForReset {
            state.registers.status |= NEEDS_RESET;
            return self.raise(state, state.registers.config_vector);
        }
        let chain = self.chain(state, queue, head);
        let (&(header_at, 16, false), &(status_at, 1, true)) = (&chain[0], &chain[chain.len() - 1]) else {
            panic!("a request is {chain:?}");
        };
        let header: [u8; 16] = self.dma_read(header_at);
        let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
        let start = u64::from_le_bytes(header[8..].try_into().unwrap()) as usize * SECTOR;
        let mut written = 1;
        match (kind, &chain[1..chain.len() - 1]) {
            (0, &[(address, bytes, true)]) => {
                let _ = self.requester.write(address, &state.medium[start..start + bytes]);
                written += bytes;
            }
            (1, &[(address, bytes, false)]) => {
                let mut data = vec![0; bytes];
                let _ = self.requester.read(address, &mut data);
                state.medium[start..start + bytes].copy_from_slice(&data);
            }
            (4, []) => state.flushes += 1,
            (11, &[(address, 16, false)]) => {
                let range: [u8; 16] = self.dma_read(address);
                let first = u64::from_le_bytes(range[..8].try_into().unwrap()) as usize;
                let count = u32::from_le_bytes(range[8..12].try_into().unwrap()) as usize;
                state.medium[first * SECTOR..(first + count) * SECTOR].fill(0);
            }
            other => panic!("a request is {other:?}"),
        }
        match state.behaviour {
            Behaviour::NoStatus => {}
            Behaviour::Status(status) => drop(self.requester.write(status_at, &[status])),
            _ => drop(self.requester.write(status_at, &[0])),
        }
        self.finish(state, queue, head, written as u32);
    }

    fn finish(&self, state: &mut State, queue: usize, head: u16, written: u32) {
        let (mut head, mut written, mut step) = (u32::from(head), written, 1);
        match state.behaviour {
            Behaviour::WrongHead(wrong) => head = wrong,
            Behaviour::TooLong(more) => written += more,
            Behaviour::Jump(further) => step += further,
            _ => {}
        }
        let registers = &mut state.registers.queues[queue];
        let slot = u64::from(registers.used % registers.size);
        let element: Vec<u8> = [head.to_le_bytes(), written.to_le_bytes()].concat();
        let _ = self.requester.write(registers.rings[2] + 4 + 8 * slot, &element);
        registers.used = registers.used.wrapping_add(step);
        let _ = self.requester.write(registers.rings[2] + 2, &registers.used.to_le_bytes());
        let QueueRegisters { rings, size, used, told, vector, .. } = *registers;
        if state.registers.accepted & EVENT_INDEX != 0 {
            let event = u16::from_le_bytes(self.dma_read(rings[1] + 4 + 2 * u64::from(size)));
            if used.wrapping_sub(event).wrapping_sub(1) >= used.wrapping_sub(told) {
                return;
            }
        }
        state.registers.queues[queue].told = used;
        state.interrupts += 1;
        self.raise(state, vector);
    }

    fn raise(&self, state: &State, entry: u16) {
        let Some(host) = self.host.upgrade() else { return };
        let entry = 4 * usize::from(entry);
        let on = host.space.read32(self.requester.address(), 0xa0) & 0xc000_0000 == 0x8000_0000;
        if on && host.is_bus_master() && state.table[entry + 3] & 1 == 0 {
            let address = u64::from(state.table[entry]) | u64::from(state.table[entry + 1]) << 32;
            host.deliver(MsiMessage { address, data: state.table[entry + 2] });
        }
    }

    fn write_common(&self, state: &mut State, offset: usize, value: u64) {
        let registers = &mut state.registers;
        match offset {
            0x00 => registers.offered_half = value as u32,
            0x08 => registers.accepted_half = value as u32,
            0x0c if registers.accepted_half == 0 => registers.accepted = value,
            0x0c => registers.accepted |= value << 32,
            0x10 => registers.config_vector = value as u16,
            0x14 if value == 0 && state.restless => {}
            0x14 if value == 0 => *registers = DeviceRegisters::default(),
            0x14 => registers.status = value as u8,
            0x16 => registers.queue_select = value as u16,
            _ => {
                let queue = &mut registers.queues[usize::from(registers.queue_select)];
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

    fn read_common(&self, state: &State, offset: usize) -> u64 {
        let registers = &state.registers;
        let queues = if state.offered & QUEUES == 0 { 1 } else { MOST_QUEUES };
        let queue = registers
            .queues
            .get(usize::from(registers.queue_select))
            .filter(|_| usize::from(registers.queue_select) < queues);
        match offset {
            0x04 => (state.offered >> (32 * registers.offered_half)) & 0xffff_ffff,
            0x10 => registers.config_vector.into(),
            0x12 => queues as u64,
            0x14 => registers.status.into(),
            0x18 => queue.map_or(0, |queue| queue.size).into(),
            0x1a => queue.map_or(0, |queue| queue.vector).into(),
            0x1e => 3 + u64::from(registers.queue_select),
            _ => panic!("read of {offset:#x} of the common structure"),
        }
    }
}

impl Registers for VirtioBlk {
    fn read(&self, offset: usize, width: usize) -> u64 {
        let state = self.state.lock().unwrap();
        match offset {
            COMMON..DEVICE => self.read_common(&state, offset - COMMON),
            DEVICE => SECTORS,
            0x2004 => 0,
            0x2022 => MOST_QUEUES as u64,
            // Most sectors of a discard.
            0x2024 => 64,
            TABLE..BAR_BYTES if width == 4 => state.table[(offset - TABLE) / 4].into(),
            _ => panic!("read of {offset:#x}"),
        }
    }

    fn write(&self, offset: usize, width: usize, value: u64) {
        let mut state = self.state.lock().unwrap();
        match offset {
            COMMON..DEVICE => self.write_common(&mut state, offset - COMMON, value),
            // The notify offset of queue 0 is 3, and the multiplier 4.
            _ if (NOTIFY + 12..NOTIFY + 12 + 4 * MOST_QUEUES).contains(&offset) => {
                assert_eq!(
                    (width, value as usize),
                    (2, (offset - NOTIFY - 12) / 4),
                    "a queue's own doorbell"
                );
                state.doorbells += 1;
                self.run(&mut state, value as usize);
            }
            TABLE..BAR_BYTES if width == 4 => state.table[(offset - TABLE) / 4] = value as u32,
            _ => panic!("write to {offset:#x}"),
        }
    }
}
