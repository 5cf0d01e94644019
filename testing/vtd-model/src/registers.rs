//! Which register is where.

use crate::config::UnitConfig;

/// The registers of a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Register {
    Version,
    Capability,
    ExtendedCapability,
    GlobalCommand,
    GlobalStatus,
    RootAddress,
    ContextCommand,
    FaultStatus,
    FaultControl,
    FaultData,
    FaultAddress,
    FaultUpperAddress,
    ProtectedEnable,
    ProtectedLowBase,
    ProtectedLowLimit,
    ProtectedHighBase,
    ProtectedHighLimit,
    QueueHead,
    QueueTail,
    QueueAddress,
    CompletionStatus,
    CompletionControl,
    CompletionData,
    CompletionAddress,
    CompletionUpperAddress,
    QueueError,
    PageControl,
    InterruptTable,
    InvalidateAddress,
    IotlbInvalidate,
    FaultRecord(usize),
}

/// Offset, bytes, register.
const FIXED: [(usize, usize, Register); 27] = [
    (0x000, 4, Register::Version),
    (0x008, 8, Register::Capability),
    (0x010, 8, Register::ExtendedCapability),
    (0x018, 4, Register::GlobalCommand),
    (0x01c, 4, Register::GlobalStatus),
    (0x020, 8, Register::RootAddress),
    (0x028, 8, Register::ContextCommand),
    (0x034, 4, Register::FaultStatus),
    (0x038, 4, Register::FaultControl),
    (0x03c, 4, Register::FaultData),
    (0x040, 4, Register::FaultAddress),
    (0x044, 4, Register::FaultUpperAddress),
    (0x064, 4, Register::ProtectedEnable),
    (0x068, 4, Register::ProtectedLowBase),
    (0x06c, 4, Register::ProtectedLowLimit),
    (0x070, 8, Register::ProtectedHighBase),
    (0x078, 8, Register::ProtectedHighLimit),
    (0x080, 8, Register::QueueHead),
    (0x088, 8, Register::QueueTail),
    (0x090, 8, Register::QueueAddress),
    (0x09c, 4, Register::CompletionStatus),
    (0x0a0, 4, Register::CompletionControl),
    (0x0a4, 4, Register::CompletionData),
    (0x0a8, 4, Register::CompletionAddress),
    (0x0ac, 4, Register::CompletionUpperAddress),
    (0x0b0, 8, Register::QueueError),
    (0x0b8, 8, Register::InterruptTable),
];

/// A register that an offset falls into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Located {
    pub register: Register,
    /// Bytes of the register: 4, 8 or 16.
    pub bytes: usize,
    /// Byte of the register that the offset is at.
    pub at: usize,
}

/// The register at `offset` of a unit, if there is one.
pub(crate) fn locate(unit: &UnitConfig, offset: usize) -> Option<Located> {
    let iotlb = 16 * usize::from(unit.iotlb_offset);
    let faults = 16 * usize::from(unit.fault_offset);
    let within = |start: usize, bytes: usize| (start..start + bytes).contains(&offset);
    if within(iotlb, 8) {
        return Some(Located { register: Register::InvalidateAddress, bytes: 8, at: offset - iotlb });
    }
    if within(iotlb + 8, 8) {
        return Some(Located { register: Register::IotlbInvalidate, bytes: 8, at: offset - iotlb - 8 });
    }
    if within(faults, 16 * usize::from(unit.fault_records)) {
        let register = Register::FaultRecord((offset - faults) / 16);
        return Some(Located { register, bytes: 16, at: (offset - faults) % 16 });
    }
    if unit.page_requests && within(0x0e0, 4) {
        return Some(Located { register: Register::PageControl, bytes: 4, at: offset - 0x0e0 });
    }
    if (0x064..0x068).contains(&offset) && !unit.has_protected_memory() {
        return None;
    }
    let (start, bytes, register) = *FIXED.iter().find(|(start, bytes, _)| within(*start, *bytes))?;
    Some(Located { register, bytes, at: offset - start })
}

impl Located {
    /// Whether an access of `width` bytes here is one that hardware defines.
    pub fn allows(&self, width: usize) -> bool {
        match (self.bytes, width) {
            (4, 4) => self.at == 0,
            (8, 8) => self.at == 0,
            (8, 4) => self.at.is_multiple_of(4),
            // A record is read by dwords or qwords.
            (16, 4 | 8) => self.at.is_multiple_of(width),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_widths() {
        let unit = UnitConfig::plain(0);
        let at = |offset| locate(&unit, offset).unwrap();
        assert_eq!(at(0x18).register, Register::GlobalCommand);
        assert!(at(0x18).allows(4) && !at(0x18).allows(8));
        assert!(at(0x28).allows(8) && at(0x2c).allows(4) && !at(0x2c).allows(8));
        assert_eq!(at(0x220 + 16 * 7 + 8).register, Register::FaultRecord(7));
        assert_eq!(locate(&unit, 0x220 + 16 * 8), None);
        assert_eq!(at(0x508).register, Register::IotlbInvalidate);
        assert_eq!(locate(&unit, 0x100), None);
        assert_eq!(locate(&unit, 0x64), None, "nothing can be protected");
    }
}
