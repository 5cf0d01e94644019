//! What drivers ask for besides DMA.

use alloc::{boxed::Box, sync::Arc};

use drivers::{
    host::{self, Host, Interrupt, InterruptError, InterruptState, SpawnError},
    mmio::Mmio,
};
use iommu::{PciAddress, platform::MsiMessage};
use mm::PhysAddr;

use super::Kernel;
use crate::{
    arch::{Cpu, InterruptGuard, apic, clock, interrupts},
    memory, smp, threads,
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

/// A vector of a driver.
struct DriverInterrupt {
    message: MsiMessage,
    _vector: interrupts::Vector,
}

impl Interrupt for DriverInterrupt {
    fn message(&self) -> MsiMessage {
        self.message
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
        let vector =
            interrupts::allocate(Box::new(move || event.signal())).ok_or(InterruptError::NoVector)?;
        let message = apic::message(smp::next_cpu(apic::has_message).apic_id(), vector.number())
            .ok_or(InterruptError::UnknownFunction(function))?;
        Ok(Box::new(DriverInterrupt { message, _vector: vector }))
    }

    fn spawn(&self, name: &'static str, body: Box<dyn FnOnce() + Send>) -> Result<(), SpawnError> {
        threads::spawn(name, body).map(|_detached| ()).map_err(|_| SpawnError { name })
    }

    fn relax(&self) {
        threads::yield_now();
    }

    fn interrupts_off(&self) -> InterruptState {
        core::mem::forget(InterruptGuard::new());
        InterruptState { were_on: Cpu::current().interrupts_were_on() }
    }

    fn interrupts_restore(&self, _state: InterruptState) {
        // The CPU counts guards and knows what the first one found.
        drop(InterruptGuard::assume());
    }
}
