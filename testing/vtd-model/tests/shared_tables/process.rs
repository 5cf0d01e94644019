//! A process: an address space, and a device that has it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use driven::Driven;
use iommu::{
    DmaDevice, DomainError, PciAddress, Platform,
    dma::{DmaBuffer, RawBuffer, SharedDomain, SharedTable},
};
use mm::{
    PhysAddr, PhysRange,
    table::{
        LeafSizes, PageTable, Table, TableMemory,
        x86::{X86Access, X86Format},
    },
};
use vtd_model::{Device, MachineConfig, ModelBuffer, ModelPlatform};

use super::options;

pub fn x86(levels: u8, sizes: LeafSizes) -> X86Format {
    X86Format::new(levels, sizes, 46).expect("a format")
}

/// Tables for units that do not snoop are written back.
fn format_for(config: &MachineConfig) -> X86Format {
    let format = x86(4, LeafSizes::all());
    if config.units.iter().all(|unit| unit.scalable_coherent) { format } else { format.written_back() }
}

/// Table pages of the machine's.
pub struct Pages(Arc<ModelPlatform>);

// SAFETY: the platform's table memory keeps the contract.
unsafe impl TableMemory for Pages {
    fn allocate(&self) -> Option<PhysAddr> {
        self.0.tables().allocate()
    }

    unsafe fn free(&self, page: PhysAddr) {
        // SAFETY: the caller's promise.
        unsafe { self.0.tables().free(page) }
    }

    unsafe fn table(&self, page: PhysAddr) -> &Table {
        // SAFETY: the caller's promise.
        unsafe { self.0.tables().table(page) }
    }

    fn write_back(&self, first: *const u8, bytes: usize) {
        self.0.tables().write_back(first, bytes);
    }
}

/// An address space: it goes with the last who keeps it, and says so.
pub struct Space {
    table: Option<PageTable<X86Format, Pages>>,
    pub is_gone: Arc<AtomicBool>,
}

impl Space {
    pub fn table(&self) -> &PageTable<X86Format, Pages> {
        self.table.as_ref().expect("it is there until it is dropped")
    }

    pub fn map(&self, at: u64, physical: u64, bytes: u64, access: X86Access) {
        let range = PhysRange::new(PhysAddr::new(physical), bytes);
        // SAFETY: no CPU walks the table, and the memory is the test's.
        let emptied = unsafe { self.table().map(at, &[range], access) }.expect("free addresses");
        assert!(emptied.is_none());
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.is_gone.store(true, Ordering::SeqCst);
        // SAFETY: no CPU has walked it, and whoever kept it for devices is done. The machine complains if that is not
        // so.
        unsafe { self.table.take().expect("once").destroy() };
    }
}

/// A process, and a device that uses what it has.
pub struct Process {
    pub driven: Driven,
    pub space: Arc<Space>,
    pub is_gone: Arc<AtomicBool>,
    pub domain: SharedDomain,
}

/// Memory of a process, which is the machine's to check.
pub struct Memory {
    raw: RawBuffer,
    pub physical: u64,
    pub bytes: u64,
}

pub fn space_on(driven: &Driven, format: X86Format) -> Arc<Space> {
    let table = PageTable::new(format, Pages(driven.platform.clone())).expect("memory");
    Arc::new(Space { table: Some(table), is_gone: Arc::new(AtomicBool::new(false)) })
}

pub fn share(
    driven: &Driven,
    space: &Arc<Space>,
    functions: &[PciAddress],
    physical_bits: u8,
) -> Result<SharedDomain, DomainError> {
    // SAFETY: the space goes when its last owner does; what is unmapped is flushed first; the devices are the test's.
    let table = unsafe { SharedTable::new(space.table(), physical_bits, space.clone()) };
    driven.iommu.share_table(functions, table)
}

impl Process {
    pub fn on(config: MachineConfig) -> Self {
        let format = format_for(&config);
        let driven = Driven::start_with(config, options()).expect("units that work");
        let space = space_on(&driven, format);
        let functions: Vec<_> =
            (0..driven.machine.config().functions.len()).map(|index| driven.function(index)).collect();
        let domain = share(&driven, &space, &functions, 39).expect("units that walk it");
        let is_gone = space.is_gone.clone();
        Self { driven, space, is_gone, domain }
    }

    pub fn give(&self, index: usize) -> (DmaDevice, Device) {
        let function = self.driven.function(index);
        let handle =
            self.driven.iommu.assign(function, self.domain.domain(), |_| true).expect("a free function");
        self.driven.enable(function);
        (handle, self.driven.device(function))
    }

    pub fn allocate(&self, pages: u32, align_pages: u32) -> Memory {
        let buffer = self.driven.machine.allocate_buffer(pages, align_pages).expect("memory");
        let (physical, bytes) = (buffer.physical(), buffer.bytes() as u64);
        Memory { raw: buffer.into_raw(), physical, bytes }
    }

    pub fn map(&self, at: u64, memory: &Memory, access: X86Access) {
        self.space.map(at, memory.physical, memory.bytes, access);
        self.domain.publish(at, memory.bytes).expect("units that work");
    }

    /// Unmaps what is at `at`, and does without a flush of CPUs, as none has walked the table.
    pub fn unmap(&self, at: u64, bytes: u64) {
        // SAFETY: the memory is the test's, which does not use it by these addresses.
        let stale = unsafe { self.space.table().unmap(at, bytes) }.expect("mapped");
        self.domain.flush(&stale).expect("units that work");
        // SAFETY: flushed in the line above; there are no CPUs.
        self.space.table().redeem(unsafe { stale.assume_flushed() });
    }

    /// Has the memory back, which no device reaches any more, or the machine complains.
    pub fn take_back(memory: Memory) -> ModelBuffer {
        // SAFETY: of `into_raw`, once.
        unsafe { ModelBuffer::from_raw(memory.raw) }
    }
}
