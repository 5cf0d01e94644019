//! What this kernel is to the `iommu` crate and to drivers: one instance serves both.

mod config;
mod host;
pub mod interrupts;
mod registers;

use alloc::{boxed::Box, sync::Arc};
use core::ptr::NonNull;

use iommu::{
    Iommu, PciAddress, Platform,
    platform::{Event, LockClass, MsiMessage, Unshareable, Work},
};
use mm::{PhysAddr, PhysRange};
use spin::Once;

use crate::{
    acpi,
    arch::{self, Cpu, InterruptGuard, clock},
    memory::{self, KernelTables},
    sync,
    threads::{self, SpawnError},
};
use config::ConfigSpace;
pub use registers::MappedRegisters;

/// The kernel as its subsystems see it.
pub struct Kernel {
    config: ConfigSpace,
    /// The subsystem, once it has started.
    iommu: Arc<Once<Iommu>>,
    /// Signalled to make the thread for each kind of [`Work`] run.
    faults: threads::Event,
    reap: threads::Event,
}

impl Kernel {
    /// An instance that reaches the configuration space of `tables`.
    pub fn new(tables: &acpi::Tables) -> Arc<Self> {
        Arc::new(Self {
            config: ConfigSpace::new(&tables.segments),
            iommu: Arc::new(Once::new()),
            faults: threads::Event::new(),
            reap: threads::Event::new(),
        })
    }

    /// Hands the interrupts of remapping units to `iommu`, and takes those of devices from it. Before this the former
    /// are lost and the latter refused; a second call changes nothing.
    pub fn use_iommu(&self, iommu: Iommu) {
        self.iommu.call_once(|| iommu);
    }

    /// Starts the thread that does `work` whenever it is asked for, and at the time that `next_ns` says.
    ///
    /// # Errors
    /// No memory for it.
    pub fn start_worker(
        self: &Arc<Self>,
        work: Work,
        run: impl Fn() + Send + 'static,
        next_ns: impl Fn() -> u64 + Send + 'static,
    ) -> Result<(), SpawnError> {
        let kernel = self.clone();
        let name = match work {
            Work::Faults => "iommu-faults",
            Work::Reap => "iommu-reaper",
        };
        threads::spawn(
            name,
            Box::new(move || {
                loop {
                    kernel.event_of(work).wait(next_ns());
                    run();
                }
            }),
        )
        .map(|_detached| ())
    }

    fn event_of(&self, work: Work) -> &threads::Event {
        match work {
            Work::Faults => &self.faults,
            Work::Reap => &self.reap,
        }
    }
}

// SAFETY: `physical` accepts only RAM of the frame allocator in the direct map, `map_registers` maps anything but RAM,
// and `allocate_contiguous` hands out frames that are nobody else's.
unsafe impl Platform for Kernel {
    type Tables = KernelTables;
    type Registers = MappedRegisters;
    type InterruptGuard = InterruptGuard;

    fn tables(&self) -> &KernelTables {
        &KernelTables
    }

    fn allocate_contiguous(&self, pages: usize) -> Option<PhysAddr> {
        memory::frames::allocate_zeroed(pages)
    }

    fn map_registers(&self, base: PhysAddr, bytes: usize) -> Option<MappedRegisters> {
        // SAFETY: mapped here, for good, and it is not RAM.
        memory::map_registers(base, bytes).map(|at| unsafe { MappedRegisters::new(at, bytes) })
    }

    fn now_ns(&self) -> u64 {
        clock::now_ns()
    }

    fn cpu(&self) -> usize {
        Cpu::current_index()
    }

    fn interrupt_guard(&self) -> InterruptGuard {
        InterruptGuard::new()
    }

    fn in_interrupt(&self) -> bool {
        Cpu::in_interrupt()
    }

    fn lock_taken(&self, class: LockClass) {
        sync::note_taken(sync::iommu_class(class));
    }

    fn lock_released(&self, class: LockClass) {
        sync::note_released(sync::iommu_class(class));
    }

    fn relax(&self) {
        core::hint::spin_loop();
    }

    fn allocate_vector(&self, event: Event) -> Option<MsiMessage> {
        let iommu = self.iommu.clone();
        let vector = arch::interrupts::allocate(Box::new(move || {
            if let Some(iommu) = iommu.get() {
                iommu.handle_event(event);
            }
        }))?;
        let message = interrupts::event_message(&vector)?;
        // Units stay for as long as the kernel runs, and so do their vectors.
        core::mem::forget(vector);
        Some(message)
    }

    fn read_config(&self, function: PciAddress, offset: u16) -> u32 {
        self.config.read(function, offset)
    }

    fn write_config(&self, function: PciAddress, offset: u16, value: u32) {
        self.config.write(function, offset, value);
    }

    fn change_config(&self, function: PciAddress, offset: u16, clear: u32, set: u32) {
        self.config.change(function, offset, clear, set);
    }

    fn wake(&self, work: Work) {
        self.event_of(work).signal();
    }

    fn physical(&self, first: NonNull<u8>, bytes: usize) -> Option<PhysAddr> {
        memory::physical(first, bytes)
    }

    fn unshareable(&self, first: NonNull<u8>, bytes: usize) -> Unshareable {
        memory::unshareable(first, bytes)
    }

    fn is_own_memory(&self, range: PhysRange) -> bool {
        memory::is_own(range)
    }

    fn is_firmware_memory(&self, range: PhysRange) -> bool {
        memory::is_firmwares(range)
    }
}
