//! The interrupts that the unit itself raises.

use super::Unit;
use crate::{
    Platform,
    platform::MsiMessage,
    vtd::spec::{
        EventControl, FaultAddress, FaultControl, FaultData, FaultRecordHigh, FaultStatus, FaultUpperAddress,
        PageRequestControl,
    },
};

impl<P: Platform> Unit<P> {
    /// No events from now on: firmware may have left theirs on.
    pub(super) fn mask_events(&self) {
        let registers = &self.hardware.registers;
        registers.write(FaultControl::new().with_masked(true));
        registers.write(EventControl::new().with_masked(true));
        if self.capability().has_page_requests() {
            registers.write(PageRequestControl::new().with_masked(true));
            let _ = registers.read::<PageRequestControl>();
        }
        // Reading back makes sure that the writes have reached the unit.
        let _ = registers.read::<FaultControl>();
        let _ = registers.read::<EventControl>();
    }

    /// Forgets every fault recorded so far.
    pub(super) fn clear_faults(&self) {
        let registers = &self.hardware.registers;
        for index in 0..self.capability().fault_records() {
            let record = self.capability().fault_record(index);
            registers.write_record(record, FaultRecordHigh::new().with_fault(true));
        }
        // Reserved where there is no such log.
        let has_log = self.capability().has_advanced_fault_log();
        registers.write(
            FaultStatus::new()
                .with_overflow(true)
                .with_queue_error(true)
                .with_completion_error(true)
                .with_timeout_error(true)
                .with_advanced_overflow(has_log)
                .with_advanced_pending(has_log),
        );
    }

    /// Sends `message` for each fault from now on, and for those recorded since [`clear_faults`](Self::clear_faults).
    pub(super) fn enable_fault_events(&self, message: MsiMessage) {
        let registers = &self.hardware.registers;
        registers.write(FaultData::new().with_data(message.data as u16));
        registers.write(FaultAddress::new().with_dword(message.address as u32 >> 2));
        registers.write(FaultUpperAddress::new().with_address((message.address >> 32) as u32));
        self.set_fault_events(true);
    }

    /// Whether faults send their event. One that comes while they do not sends it when they do again, unless its record
    /// was cleared meanwhile.
    pub(in crate::vtd) fn set_fault_events(&self, on: bool) {
        self.hardware.registers.write(FaultControl::new().with_masked(!on));
    }
}
