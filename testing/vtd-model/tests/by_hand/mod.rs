//! A unit programmed by hand, register by register and entry by entry: no driver is involved.

#![allow(dead_code, unused_imports, reason = "each test binary uses its part")]

mod hand;

use std::{ops::Deref, sync::Arc};

use iommu::{
    PciAddress, Platform,
    dma::{DmaBuffer, RawBuffer},
    platform::Registers,
};
use mm::PhysAddr;

pub use hand::{Hand, RW, leaf_slot};
use vtd_model::{
    Access, Denied, Device, Machine, MachineConfig, ModelBuffer, ModelPlatform, ModelRegisters, Reason, Rule,
};

pub const GCMD: usize = 0x18;
pub const GSTS: usize = 0x1c;
pub const RTADDR: usize = 0x20;
pub const CCMD: usize = 0x28;
pub const FSTS: usize = 0x34;
pub const FECTL: usize = 0x38;
pub const IQH: usize = 0x80;
pub const IQT: usize = 0x88;
pub const IQA: usize = 0x90;
pub const ICS: usize = 0x9c;
pub const IECTL: usize = 0xa0;
pub const IRTA: usize = 0xb8;

pub const TE: u32 = 1 << 31;
pub const SRTP: u32 = 1 << 30;
pub const WBF: u32 = 1 << 27;
pub const QIE: u32 = 1 << 26;
pub const IRE: u32 = 1 << 25;
pub const SIRTP: u32 = 1 << 24;
pub const CFI: u32 = 1 << 23;

pub struct Bench {
    pub machine: Arc<Machine>,
    pub registers: ModelRegisters,
    hand: Hand,
    pub queue: u64,
    pub status: u64,
    tail: u64,
    lent: Vec<RawBuffer>,
}

/// Requester id of the first function of a plain machine, 00:02.0.
pub const SOURCE: u16 = 0x10;

impl Bench {
    /// A unit with an empty root table, everything invalidated, queue and translation on.
    pub fn new(config: MachineConfig) -> Self {
        let mut bench = Self::off(config);
        bench.set_root(bench.root);
        bench.start_queue();
        bench.invalidate_all();
        bench.command(TE, true);
        bench
    }

    /// A unit with nothing on but tables allocated.
    pub fn off(config: MachineConfig) -> Self {
        let base = config.units[0].base;
        let bytes = config.units[0].register_bytes();
        let machine = Machine::new(config);
        let platform = Arc::new(ModelPlatform::new(&machine));
        let registers = platform.map_registers(PhysAddr::new(base), bytes).unwrap();
        let hand = Hand { platform, root: 0 };
        let mut bench = Self { machine, registers, hand, queue: 0, status: 0, tail: 0, lent: Vec::new() };
        bench.hand.root = bench.page();
        bench.queue = bench.page();
        bench.status = bench.page();
        for index in 0..bench.machine.config().functions.len() {
            bench.platform.write_config(bench.function(index), 4, 4);
        }
        bench
    }

    pub fn function(&self, index: usize) -> PciAddress {
        self.machine.config().functions[index].address
    }

    pub fn device(&self) -> Device {
        self.machine.device(self.function(0))
    }

    /// A buffer in the hands of devices.
    pub fn lend(&mut self, pages: u32) -> u64 {
        self.lend_aligned(pages, 1)
    }

    pub fn lend_aligned(&mut self, pages: u32, align: u32) -> u64 {
        let buffer = self.machine.allocate_buffer(pages, align).unwrap();
        let physical = buffer.physical();
        self.lent.push(buffer.into_raw());
        physical
    }

    /// Takes the last buffer back.
    pub fn take_back(&mut self) -> ModelBuffer {
        let raw = self.lent.pop().unwrap();
        // SAFETY: made by `lend`.
        unsafe { ModelBuffer::from_raw(raw) }
    }

    /// Gives one global command and waits for it.
    pub fn command(&self, bit: u32, on: bool) {
        const STICKY: u32 = 0x96ff_ffff;
        let status = self.registers.read32(GSTS) & STICKY;
        self.registers.write32(GCMD, if on { status | bit } else { status & !bit });
        let wanted = on && bit != WBF;
        for _ in 0..10_000 {
            if (self.registers.read32(GSTS) & bit != 0) == wanted {
                return;
            }
            self.platform.relax();
        }
        panic!("command {bit:#x} never finished");
    }

    pub fn set_root(&self, root: u64) {
        self.registers.write64(RTADDR, root);
        self.command(SRTP, true);
    }

    pub fn start_queue(&mut self) {
        self.tail = 0;
        self.registers.write64(IQT, 0);
        self.registers.write64(IQA, self.queue);
        self.command(QIE, true);
    }

    /// Puts descriptors into the queue and rings.
    pub fn post(&mut self, descriptors: &[(u64, u64)]) {
        for &(low, high) in descriptors {
            self.put(self.queue + self.tail, low);
            self.put(self.queue + self.tail + 8, high);
            self.tail = (self.tail + 16) % 4096;
        }
        self.registers.write64(IQT, self.tail);
    }

    /// A wait that writes `value` to the status page.
    pub fn wait_descriptor(&self, value: u32) -> (u64, u64) {
        (5 | 1 << 5 | u64::from(value) << 32, self.status)
    }

    /// Posts descriptors and a wait, and waits for it.
    pub fn submit(&mut self, descriptors: &[(u64, u64)]) {
        self.put(self.status, 0);
        let mut all = descriptors.to_vec();
        all.push(self.wait_descriptor(7));
        self.post(&all);
        assert!(self.wait_for(|bench| bench.load(bench.status) as u32 == 7), "the queue is stuck");
    }

    pub fn wait_for(&self, done: impl Fn(&Self) -> bool) -> bool {
        (0..10_000).any(|_| {
            self.platform.relax();
            done(self)
        })
    }

    pub fn invalidate_all(&mut self) {
        self.submit(&[context_global()]);
        self.submit(&[iotlb_global()]);
    }

    /// One function in one domain with one page mapped: the top table, the path and the memory.
    pub fn one_page(&mut self, iova: u64) -> OnePage {
        let memory = self.lend(1);
        let top = self.page();
        let path = self.map(top, iova, memory | RW);
        self.put_context(SOURCE, 3, top);
        OnePage { memory, top, path }
    }

    pub fn fault(&self) -> Option<(u64, u64)> {
        let status = self.registers.read32(FSTS);
        if status & 2 == 0 {
            return None;
        }
        let offset = 0x220 + 16 * (status >> 8 & 0xff) as usize;
        let (low, high) = (self.registers.read64(offset), self.registers.read64(offset + 8));
        self.registers.write64(offset + 8, 1 << 63);
        Some((low, high))
    }

    pub fn rules(&self) -> Vec<Rule> {
        self.machine.take_complaints().into_iter().map(|complaint| complaint.rule).collect()
    }

    pub fn assert_content(&self) {
        let complaints = self.machine.take_complaints();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
}

impl Deref for Bench {
    type Target = Hand;

    fn deref(&self) -> &Hand {
        &self.hand
    }
}

pub struct OnePage {
    pub memory: u64,
    pub top: u64,
    /// Tables of levels 3, 2 and 1.
    pub path: [u64; 3],
}

pub fn context_global() -> (u64, u64) {
    (1 | 1 << 4, 0)
}

pub fn context_device(domain: u16, source: u16) -> (u64, u64) {
    (1 | 3 << 4 | u64::from(domain) << 16 | u64::from(source) << 32, 0)
}

pub fn iotlb_global() -> (u64, u64) {
    (2 | 1 << 4 | 3 << 6, 0)
}

pub fn iotlb_domain(domain: u16) -> (u64, u64) {
    (2 | 2 << 4 | 3 << 6 | u64::from(domain) << 16, 0)
}

pub fn iotlb_pages(domain: u16, address: u64, mask: u64, leaves_only: bool) -> (u64, u64) {
    (2 | 3 << 4 | 3 << 6 | u64::from(domain) << 16, address | u64::from(leaves_only) << 6 | mask)
}

pub fn read_fault(reason: Reason) -> Result<u64, Denied> {
    Err(Denied::Fault(reason))
}

/// Where a read of `device` would go.
pub fn probe(device: &Device, iova: u64) -> Result<u64, Denied> {
    device.probe(iova, Access::Read)
}
