//! Waiting for exactly one fault.

use harness::{Failure, failure};
use iommu::{
    Iova, PciAddress,
    dump::UnitReport,
    fault::{Fault, FaultAccess, FaultTarget},
};

use crate::{machine::Machine, reports};

/// How long a fault may take from the device to the list that is shown.
const DEADLINE_NS: u64 = 2_000_000_000;

/// What a blocked access must have left behind.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// The function that tried.
    pub function: PciAddress,
    /// Where: a page that no other test uses.
    pub page: Iova,
    /// What it tried.
    pub access: FaultAccess,
    /// The number of the reason, as VT-d has it.
    pub code: u8,
}

/// Reasons, as VT-d numbers them.
pub mod code {
    /// The function has no context entry: nobody has claimed it.
    pub const NO_CONTEXT: u8 = 0x2;
    /// Not mapped, or not for writing.
    pub const NO_WRITE: u8 = 0x5;
    /// Not mapped, or not for reading.
    pub const NO_READ: u8 = 0x6;
}

/// What page tables the units walk, which decides what they say of an access that these do not allow.
#[derive(Clone, Copy, Debug)]
enum Tables {
    Legacy,
    ScalableSecondStage,
    FirstStage,
}

impl Tables {
    fn of(machine: &Machine) -> Self {
        let units = reports::units(&machine.iommu);
        if units.iter().any(|unit| unit.first_stage) {
            Self::FirstStage
        } else if units.iter().any(UnitReport::is_scalable) {
            Self::ScalableSecondStage
        } else {
            Self::Legacy
        }
    }

    /// Whether `code` is what an access is to fail for, where legacy mode has `wanted`. A first stage says whether
    /// nothing is mapped or not for writing; nothing there is mapped and not for reading. A second stage in scalable
    /// mode has reasons of its own, and some units keep to the old ones.
    fn give(self, code: u8, wanted: u8) -> bool {
        const NOT_PRESENT: u8 = 0x71;
        const SCALABLE_NO_WRITE: u8 = 0x85;
        const SCALABLE_NO_READ: u8 = 0x86;
        match (self, wanted) {
            (Self::FirstStage, code::NO_WRITE) => [NOT_PRESENT, SCALABLE_NO_WRITE].contains(&code),
            (Self::FirstStage, code::NO_READ) => code == NOT_PRESENT,
            (Self::ScalableSecondStage, code::NO_WRITE) => {
                [code::NO_WRITE, SCALABLE_NO_WRITE].contains(&code)
            }
            (Self::ScalableSecondStage, code::NO_READ) => [code::NO_READ, SCALABLE_NO_READ].contains(&code),
            _ => code == wanted,
        }
    }
}

impl Expected {
    /// A read of `page` that no mapping allows.
    pub fn read(function: PciAddress, page: Iova) -> Self {
        Self { function, page, access: FaultAccess::Read, code: code::NO_READ }
    }

    /// A write to `page` that no mapping allows.
    pub fn write(function: PciAddress, page: Iova) -> Self {
        Self { function, page, access: FaultAccess::Write, code: code::NO_WRITE }
    }

    /// The same, where the function may reach nothing at all.
    pub fn unclaimed(self) -> Self {
        Self { code: code::NO_CONTEXT, ..self }
    }

    /// Waits until it has been recorded.
    pub fn await_recorded(self, machine: &Machine) -> Result<(), Failure> {
        let sources = reports::group(&machine.iommu, self.function).unwrap_or_default().sources;
        let tables = Tables::of(machine);
        let deadline_ns = machine.host.now_ns().saturating_add(DEADLINE_NS);
        loop {
            let faults = reports::faults(&machine.iommu);
            if faults.iter().any(|fault| sources.contains(&fault.source) && self.is_of(fault, tables)) {
                return Ok(());
            }
            if machine.host.now_ns() >= deadline_ns {
                let last = faults.last();
                return Err(failure!(
                    "{self:?} not recorded of {tables:?} tables; the last fault is {last:?}"
                ));
            }
            machine.host.relax();
        }
    }

    fn is_of(&self, fault: &Fault, tables: Tables) -> bool {
        fault.target == FaultTarget::Address(self.page)
            && fault.access == self.access
            && tables.give(fault.reason.code, self.code)
            // In scalable mode, requests without a PASID are those of PASID 0, and a unit may say so.
            && fault.pasid.is_none_or(|pasid| pasid == 0)
    }
}
