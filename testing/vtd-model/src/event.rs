//! The two event interrupts of a unit: faults, and waits that complete.

use iommu::platform::MsiMessage;

/// Mask, pending bit and message of one event interrupt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EventInterrupt {
    masked: bool,
    pending: bool,
    pub data: u32,
    pub address: u32,
    pub upper_address: u32,
}

const MASK: u32 = 1 << 31;
const PENDING: u32 = 1 << 30;

impl EventInterrupt {
    pub fn new() -> Self {
        Self { masked: true, pending: false, data: 0, address: 0, upper_address: 0 }
    }

    /// The condition came up: the message to send now, if any.
    pub fn raise(&mut self) -> Option<MsiMessage> {
        if self.masked {
            self.pending = true;
            return None;
        }
        Some(self.message())
    }

    fn message(&self) -> MsiMessage {
        let address = u64::from(self.upper_address) << 32 | u64::from(self.address);
        MsiMessage { address, data: self.data }
    }

    pub fn control(&self) -> u32 {
        u32::from(self.masked) << 31 | if self.pending { PENDING } else { 0 }
    }

    /// Write of the control register: the message to send now, if any.
    pub fn set_control(&mut self, value: u32) -> Option<MsiMessage> {
        self.masked = value & MASK != 0;
        if self.masked || !self.pending {
            return None;
        }
        self.pending = false;
        Some(self.message())
    }

    /// Software has cleared every cause.
    pub fn causes_gone(&mut self) {
        self.pending = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_events_wait() {
        let mut event = EventInterrupt { data: 7, address: 0xfee0_0000, ..EventInterrupt::new() };
        assert_eq!(event.raise(), None);
        assert_eq!(event.control(), MASK | PENDING);
        assert_eq!(event.set_control(0), Some(MsiMessage { address: 0xfee0_0000, data: 7 }));
        assert_eq!(event.set_control(0), None);
        assert!(event.raise().is_some());
    }

    #[test]
    fn a_cause_that_went_away_sends_nothing() {
        let mut event = EventInterrupt::new();
        event.raise();
        event.causes_gone();
        assert_eq!(event.set_control(0), None);
    }
}
