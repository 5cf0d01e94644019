//! Fault records and the fault status register.

use crate::{random::Random, reason::Reason};

/// Bits of FSTS that software clears by writing 1.
pub(crate) mod status {
    pub const OVERFLOW: u32 = 1 << 0;
    pub const QUEUE: u32 = 1 << 4;
    pub const COMPLETION: u32 = 1 << 5;
    pub const TIME_OUT: u32 = 1 << 6;
    pub const CLEARABLE: u32 = OVERFLOW | QUEUE | COMPLETION | TIME_OUT;
    /// Of a unit with an advanced fault log, these too.
    pub const LOG_OVERFLOW: u32 = 1 << 2;
    pub const LOG_PENDING: u32 = 1 << 3;
    pub const PENDING: u32 = 1 << 1;
}

const FAULT: u64 = 1 << 63;

/// What a fault record says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub source: u16,
    /// Bits 63:12 of the address, or the index of an interrupt in 63:48.
    pub information: u64,
    pub reason: Reason,
    pub read: bool,
    /// 0 untranslated, 1 translation request, 2 translated.
    pub address_type: u8,
}

impl Fault {
    fn encode(&self) -> [u64; 2] {
        let high = u64::from(self.source)
            | u64::from(self.reason as u8) << 32
            | u64::from(self.address_type & 3) << 60
            | u64::from(self.read) << 62
            | FAULT;
        [self.information & !0xfff, high]
    }
}

/// The records of one unit.
#[derive(Debug)]
pub(crate) struct Faults {
    records: Vec<[u64; 2]>,
    /// Record that the next fault goes to.
    next: usize,
    /// Record that made a fault pending: it stays the same until no record is pending any more.
    first: usize,
    status: u32,
    /// Records say for ever that they are pending, as broken hardware might.
    pub stuck: bool,
    /// Faults go to a log in memory, and no record is written.
    pub to_log: bool,
}

impl Faults {
    pub fn new(records: u16) -> Self {
        Self {
            records: vec![[0, 0]; records.into()],
            next: 0,
            first: 0,
            status: 0,
            stuck: false,
            to_log: false,
        }
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    fn record_pending(&self) -> bool {
        self.stuck || self.records.iter().any(|record| record[1] & FAULT != 0)
    }

    /// Whether anything is pending, so that no further event is sent.
    pub fn any_pending(&self) -> bool {
        self.status != 0 || self.record_pending()
    }

    /// The register FSTS.
    pub fn status(&self) -> u32 {
        let pending = if self.record_pending() { status::PENDING } else { 0 };
        self.status | pending | (self.first as u32) << 8
    }

    /// Logs a fault; true if it is to raise an event.
    pub fn record(&mut self, fault: &Fault, random: &mut Random) -> bool {
        if self.to_log {
            return self.raise(status::LOG_PENDING);
        }
        if self.status & status::OVERFLOW != 0 {
            return false;
        }
        let encoded = fault.encode();
        // Hardware may fold repeats of one source into the record that is still pending.
        if self.records.contains(&encoded) && random.once_in(2) {
            return false;
        }
        let quiet = self.any_pending();
        let slot = self.next;
        if self.records[slot][1] & FAULT != 0 {
            self.status |= status::OVERFLOW;
            return !quiet;
        }
        if !self.record_pending() {
            self.first = slot;
        }
        self.records[slot] = encoded;
        self.next = (slot + 1) % self.records.len();
        !quiet
    }

    /// Sets an error bit of the queue; true if it is to raise an event.
    pub fn raise(&mut self, bit: u32) -> bool {
        let quiet = self.any_pending();
        self.status |= bit;
        !quiet
    }

    pub fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    /// Write of FSTS.
    pub fn clear_status(&mut self, value: u32) {
        self.status &= !(value & (status::CLEARABLE | status::LOG_OVERFLOW | status::LOG_PENDING));
    }

    pub fn read(&self, index: usize, half: usize) -> u64 {
        self.records[index][half] | if self.stuck && half == 1 { FAULT } else { 0 }
    }

    /// Write of the upper half of a record: its F bit is cleared by a 1.
    pub fn clear_record(&mut self, index: usize, value: u64) {
        if value & FAULT != 0 {
            self.records[index][1] &= !FAULT;
        }
    }

    /// Power-on garbage: some records pending.
    pub fn scramble(&mut self, random: &mut Random) {
        self.next = random.index(self.len());
        self.first = self.next;
        for _ in 0..random.index(self.len() + 1) {
            self.records[self.next] = [random.bits() & !0xfff, random.bits() & 0xff_0000_ffff | FAULT];
            self.next = (self.next + 1) % self.len();
        }
        self.status = random.bits() as u32 & status::CLEARABLE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(source: u16) -> Fault {
        Fault { source, information: 0x5000, reason: Reason::NoWrite, read: false, address_type: 0 }
    }

    #[test]
    fn records_wrap_and_overflow() {
        let mut faults = Faults::new(3);
        let mut random = Random::new(1);
        assert!(faults.record(&fault(1), &mut random), "the first raises an event");
        assert!(!faults.record(&fault(2), &mut random));
        faults.clear_record(0, FAULT);
        assert_eq!(faults.status() >> 8, 0, "still the record that began it");
        faults.record(&fault(3), &mut random);
        faults.record(&fault(4), &mut random);
        assert_eq!(faults.read(0, 1) as u16, 4, "wraps to the first record");
        faults.record(&fault(5), &mut random);
        assert_eq!(faults.status() & 3, 3, "overflow");
        (0..3).for_each(|i| faults.clear_record(i, FAULT));
        assert!(!faults.record(&fault(6), &mut random), "nothing is logged while overflow is set");
        faults.clear_status(status::OVERFLOW);
        assert!(faults.record(&fault(6), &mut random));
        assert_eq!(faults.status(), status::PENDING | 1 << 8, "the record after the last");
    }

    #[test]
    fn a_zero_clears_nothing() {
        let mut faults = Faults::new(1);
        faults.record(&fault(1), &mut Random::new(1));
        faults.clear_record(0, 0);
        assert_eq!(faults.status() & status::PENDING, status::PENDING);
    }

    #[test]
    fn fields_of_a_record() {
        let [low, high] = Fault { read: true, address_type: 2, ..fault(0x1234) }.encode();
        assert_eq!(low, 0x5000);
        assert_eq!(high, 1 << 63 | 1 << 62 | 2 << 60 | 5 << 32 | 0x1234);
    }
}
