//! What a handle does, whatever the platform and the vendor.

use alloc::{collections::TryReserveError, vec::Vec};

use crate::{
    Iova, PciAddress,
    arc::TryArc,
    dma::{DmaDevice, DomainError, SharedTable, shared::SharedParts, space::Space},
    dump::Visitor,
    group::{ClaimError, ReleaseError},
    interrupts::{self, InterruptError, MessageInterrupts, MessageSource, WiredInterrupt},
    platform::Event,
    policy::Limits,
    protection::HotplugError,
    topology,
};

/// What a function is trusted with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trust {
    /// Its requests are translated, all of them.
    Nothing,
    /// It may keep translations, and send what it says are translated addresses.
    Translations,
    /// It reaches all of RAM.
    Memory,
}

/// What a handle does, without the platform's and the vendor's types. Where nothing is said, what it does without a
/// unit: nothing is isolated, nothing faults, and interrupts name CPU and vector themselves.
pub(crate) trait Control: Send + Sync {
    fn claim(&self, function: PciAddress, trust: Trust) -> Result<DmaDevice, ClaimError>;

    fn create_domain(&self, _functions: &[PciAddress]) -> Result<(u64, TryArc<dyn Space>), DomainError> {
        Err(DomainError::NoUnit)
    }

    fn share_table(
        &self,
        _functions: &[PciAddress],
        _table: SharedTable,
    ) -> Result<SharedParts, DomainError> {
        Err(DomainError::NoUnit)
    }

    fn created_domain(&self, _number: u64) -> Option<TryArc<dyn Space>> {
        None
    }

    fn destroy_domain(&self, number: u64) -> Result<(), DomainError> {
        Err(DomainError::Unknown { number })
    }

    fn assign(
        &self,
        _function: PciAddress,
        domain: u64,
        _reset: &mut dyn FnMut(PciAddress) -> bool,
    ) -> Result<DmaDevice, ClaimError> {
        Err(ClaimError::NoDomain { domain })
    }

    fn quarantine(&self, function: PciAddress) -> Result<(), ReleaseError> {
        Err(ReleaseError::Unknown { function })
    }

    fn release(
        &self,
        function: PciAddress,
        _reset: &mut dyn FnMut(PciAddress) -> bool,
    ) -> Result<(), ReleaseError> {
        Err(ReleaseError::Unknown { function })
    }

    fn group(&self, _function: PciAddress) -> Result<Vec<PciAddress>, TryReserveError> {
        Ok(Vec::new())
    }

    fn functions_appeared(&self, _functions: &[topology::Function]) -> Result<(), HotplugError> {
        Ok(())
    }

    fn functions_gone(
        &self,
        _functions: &[PciAddress],
        _quiet: &mut dyn FnMut(PciAddress) -> bool,
    ) -> Result<(), HotplugError> {
        Ok(())
    }

    fn message_interrupts(
        &self,
        _source: MessageSource,
        count: u16,
    ) -> Result<MessageInterrupts, InterruptError> {
        interrupts::compatible_messages(count)
    }

    fn wired_interrupt(&self, _io_apic: u8) -> Result<WiredInterrupt, InterruptError> {
        Ok(interrupts::compatible_wire())
    }

    fn set_fault_limits(&self, limits: Limits) -> Limits {
        limits
    }

    fn handle_event(&self, _event: Event) {}

    fn process_faults(&self) {}

    fn next_faults_ns(&self) -> u64 {
        u64::MAX
    }

    fn reap(&self) {}

    fn next_reap_ns(&self) -> u64 {
        u64::MAX
    }

    fn live_mappings(&self) -> usize {
        0
    }

    fn trace(&self, _function: PciAddress, _address: Option<Iova>, _visitor: &mut dyn Visitor) -> bool {
        false
    }

    fn visit(&self, _visitor: &mut dyn Visitor) {}
}
