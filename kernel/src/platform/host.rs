//! What drivers ask for besides DMA.

use alloc::{boxed::Box, sync::Arc};

use drivers::{
    host::{self, Host, Interrupt, InterruptError, InterruptState, SpawnError},
    mmio::Mmio,
};
use iommu::PciAddress;
use mm::PhysAddr;

use super::{
    Kernel,
    interrupts::{DriverInterrupt, cpus},
};
use crate::{
    arch::{Cpu, InterruptGuard, clock},
    memory,
    sync::{self, Rank},
    threads,
};

/// An event that drivers share with their interrupt.
struct DriverEvent(threads::Event);

impl host::Event for DriverEvent {
    fn signal(&self) {
        self.0.signal();
    }

    fn wait(&self, deadline_ns: u64) -> bool {
        self.0.wait(deadline_ns)
    }
}

// SAFETY: `map_mmio` returns registers mapped uncached for good that are not RAM, and `interrupts_off` counts like the
// kernel's own guards.
unsafe impl Host for Kernel {
    fn config_read32(&self, function: PciAddress, offset: u16) -> u32 {
        self.config.read(function, offset)
    }

    fn config_write32(&self, function: PciAddress, offset: u16, value: u32) {
        self.config.write(function, offset, value);
    }

    fn config_write16(&self, function: PciAddress, offset: u16, value: u16) {
        self.config.write_word(function, offset, value);
    }

    fn config_change32(&self, function: PciAddress, offset: u16, clear: u32, set: u32) {
        self.config.change(function, offset, clear, set);
    }

    fn map_mmio(&self, base: PhysAddr, bytes: usize) -> Option<Mmio> {
        // SAFETY: mapped here, uncached and for good, and it is not RAM.
        memory::map_registers(base, bytes).map(|at| unsafe { Mmio::new(at, bytes) })
    }

    fn now_ns(&self) -> u64 {
        clock::now_ns()
    }

    fn event(&self) -> Arc<dyn host::Event> {
        Arc::new(DriverEvent(threads::Event::new()))
    }

    fn allocate_interrupt(
        &self,
        function: PciAddress,
        event: Arc<dyn host::Event>,
    ) -> Result<Box<dyn Interrupt>, InterruptError> {
        let iommu = self.iommu.get().ok_or(InterruptError::NotReady)?;
        Ok(Box::new(DriverInterrupt::new(iommu, function, Box::new(move || event.signal()))?))
    }

    fn cpus(&self) -> usize {
        cpus().count()
    }

    fn cpu(&self) -> usize {
        Cpu::current_index()
    }

    fn spawn(&self, name: &'static str, body: Box<dyn FnOnce() + Send>) -> Result<(), SpawnError> {
        threads::spawn(name, body).map(|_detached| ()).map_err(|_| SpawnError { name })
    }

    fn relax(&self) {
        threads::yield_now();
    }

    fn yield_now(&self) {
        threads::yield_now();
    }

    fn interrupts_off(&self) -> InterruptState {
        core::mem::forget(InterruptGuard::new());
        sync::note_taken(Rank::Driver as u8);
        InterruptState { were_on: Cpu::current().interrupts_were_on() }
    }

    fn interrupts_restore(&self, _state: InterruptState) {
        sync::note_released(Rank::Driver as u8);
        // The CPU counts guards and knows what the first one found.
        drop(InterruptGuard::assume());
    }
}
