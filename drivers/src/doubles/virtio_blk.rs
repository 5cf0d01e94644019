//! A virtio block device in software, honest or not.

use std::{
    sync::{Arc, Mutex, Weak},
    vec,
    vec::Vec,
};

use super::{
    host::{BAR_BYTES, Bench, TestHost},
    virtio::{self, ACCESS_PLATFORM, COMMON, DEVICE, DeviceRegisters, NEEDS_RESET, NOTIFY, TABLE, VERSION_1},
};
use crate::{mmio::trap::Registers, pci::fake::FakeFunction};

pub use super::virtio::EVENT_INDEX;

/// Sectors on the medium.
pub const SECTORS: u64 = 256;
const SECTOR: usize = 512;

const FLUSH: u64 = 1 << 9;
/// Several queues.
pub const QUEUES: u64 = 1 << 12;
pub const DISCARD: u64 = 1 << 13;
pub const INDIRECT: u64 = 1 << 28;

/// Request queues of a device that has several.
const MOST_QUEUES: usize = 3;

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
    registers: DeviceRegisters<MOST_QUEUES>,
}

/// Configuration space of the device.
pub fn function() -> FakeFunction {
    virtio::function(0x1042_1af4, 0x0100_0001)
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
    };
    let host = Arc::downgrade(&bench.host);
    let device = Arc::new(VirtioBlk { state: Mutex::new(state), requester: bench.requester.clone(), host });
    bench.plug(device.clone());
    (bench, device)
}

impl State {
    /// The function is reset.
    pub fn reset(&mut self) {
        self.registers = DeviceRegisters::default();
    }
}

impl VirtioBlk {
    /// Changes the device.
    pub fn set<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.lock().unwrap())
    }

    fn dma_read<const N: usize>(&self, address: u64) -> [u8; N] {
        virtio::dma_read(&self.requester, address)
    }

    /// The segments of a chain: address, length, whether they are the device's to write.
    fn chain(&self, state: &State, queue: usize, head: u16) -> Vec<(u64, usize, bool)> {
        let mut table = state.registers.descriptors(queue);
        let (mut at, mut segments) = (head, Vec::new());
        loop {
            let (address, bytes, flags, next) = virtio::descriptor(&self.requester, table, at);
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
        while let Some(head) = state.registers.take(&self.requester, queue) {
            state.requests += 1;
            state.by_queue[queue] += 1;
            self.serve(state, queue, head);
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
        if let Some(vector) = state.registers.finish(&self.requester, queue, head, written, step) {
            state.interrupts += 1;
            self.raise(state, vector);
        }
    }

    fn raise(&self, state: &State, entry: u16) {
        state.registers.raise(&self.requester, &self.host, entry);
    }
}

impl Registers for VirtioBlk {
    fn read(&self, offset: usize, width: usize) -> u64 {
        let state = self.state.lock().unwrap();
        match offset {
            COMMON..DEVICE => {
                let queues = if state.offered & QUEUES == 0 { 1 } else { MOST_QUEUES };
                state.registers.read(offset - COMMON, state.offered, queues)
            }
            DEVICE => SECTORS,
            0x2004 => 0,
            0x2022 => MOST_QUEUES as u64,
            // Most sectors of a discard.
            0x2024 => 64,
            TABLE..BAR_BYTES if width == 4 => state.registers.table[(offset - TABLE) / 4].into(),
            _ => panic!("read of {offset:#x}"),
        }
    }

    fn write(&self, offset: usize, width: usize, value: u64) {
        let mut state = self.state.lock().unwrap();
        match offset {
            COMMON..DEVICE => {
                let restless = state.restless;
                state.registers.write(offset - COMMON, value, restless);
            }
            NOTIFY..TABLE => {
                state.doorbells += 1;
                let queue = virtio::rung(offset, width, value, MOST_QUEUES);
                self.run(&mut state, queue);
            }
            TABLE..BAR_BYTES if width == 4 => state.registers.table[(offset - TABLE) / 4] = value as u32,
            _ => panic!("write to {offset:#x}"),
        }
    }
}
