//! A host that has no devices: time stands still, and events are flags.

use alloc::{boxed::Box, sync::Arc};
use core::sync::atomic::{AtomicBool, Ordering};

use drivers::{
    host::{Event, Host, Interrupt, InterruptError, InterruptState, SpawnError},
    mmio::Mmio,
};
use iommu::PciAddress;
use mm::PhysAddr;

pub struct TestHost;

#[derive(Default)]
pub struct Flag(AtomicBool);

impl Event for Flag {
    fn signal(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn wait(&self, _deadline_ns: u64) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

// SAFETY: it maps no registers, and there are no interrupts to be off.
unsafe impl Host for TestHost {
    fn config_read32(&self, _function: PciAddress, _offset: u16) -> u32 {
        u32::MAX
    }

    fn config_write32(&self, _function: PciAddress, _offset: u16, _value: u32) {}

    fn config_write16(&self, _function: PciAddress, _offset: u16, _value: u16) {}

    fn config_change32(&self, _function: PciAddress, _offset: u16, _clear: u32, _set: u32) {}

    fn map_mmio(&self, _base: PhysAddr, _bytes: usize) -> Option<Mmio> {
        None
    }

    fn now_ns(&self) -> u64 {
        0
    }

    fn event(&self) -> Arc<dyn Event> {
        Arc::new(Flag::default())
    }

    fn allocate_interrupt(
        &self,
        _function: PciAddress,
        _event: Arc<dyn Event>,
    ) -> Result<Box<dyn Interrupt>, InterruptError> {
        Err(InterruptError::NotReady)
    }

    fn cpus(&self) -> usize {
        1
    }

    fn cpu(&self) -> usize {
        0
    }

    fn spawn(&self, name: &'static str, _body: Box<dyn FnOnce() + Send>) -> Result<(), SpawnError> {
        Err(SpawnError { name })
    }

    fn relax(&self) {}

    fn yield_now(&self) {}

    fn interrupts_off(&self) -> InterruptState {
        InterruptState { were_on: true }
    }

    fn interrupts_restore(&self, _state: InterruptState) {}
}
