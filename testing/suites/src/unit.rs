//! The remapping units after bring-up, and who gets a device.

use harness::{Failure, check, check_eq, test};
use iommu::{ClaimError, PciAddress, dump::UnitReport};

use crate::{
    machine::{Isolation, Machine, lacks},
    reports,
};

test! {
    /// Translation, root table and invalidation queue are on, in the mode that was asked for, and no fault is pending.
    lacks = lacks::unit,
    fn is_on_and_clean(context) {
        let machine = Machine::of(context)?;
        for unit in reports::units(&machine.iommu) {
            check!(unit.alive, "unit {} does not answer", unit.unit);
            check!(unit.has_root(), "unit {}: no root table, status {:#x}", unit.unit, unit.global_status);
            check!(unit.translates(), "unit {}: translation is off, status {:#x}", unit.unit, unit.global_status);
            let queue = has_queue(&unit) && machine.options.queued_invalidation;
            check_eq!(unit.queues_invalidations(), queue, "unit {}", unit.unit);
            let scalable = queue && has_scalable_tables(&unit) && machine.options.scalable;
            check_eq!(unit.is_scalable(), scalable, "unit {}", unit.unit);
            check_eq!(unit.remaps_interrupts(), machine.remaps_interrupts(), "unit {}", unit.unit);
            // Overflow, pending fault, queue errors.
            check_eq!(unit.fault_status & 0x73, 0, "unit {}: fault status", unit.unit);
        }
    }
}

/// The extended capability register says that there is an invalidation queue.
fn has_queue(unit: &UnitReport) -> bool {
    unit.extended_capability >> 1 & 1 != 0
}

/// The extended capability register says that there is scalable mode, with tables of one stage at least.
fn has_scalable_tables(unit: &UnitReport) -> bool {
    unit.extended_capability >> 43 & 1 != 0 && unit.extended_capability >> 46 & 3 != 0
}

/// Widest table that CAP.SAGAW offers, or the lower half of the first stage's addresses, and what CAP.MGAW leaves of
/// it, in bits.
fn widest(unit: &UnitReport) -> u32 {
    let table = match unit.capability >> 8 & 0x1f {
        _ if unit.first_stage => 47,
        sagaw if sagaw & 0b1000 != 0 => 57,
        sagaw if sagaw & 0b0100 != 0 => 48,
        sagaw if sagaw & 0b0010 != 0 => 39,
        _ => 0,
    };
    table.min((unit.capability >> 16 & 0x3f) as u32 + 1)
}

test! {
    /// The width in use is the widest that the unit reports, and domains have as many levels as it takes.
    lacks = lacks::unit,
    fn width_is_as_reported(context) {
        let machine = Machine::of(context)?;
        let units = reports::units(&machine.iommu);
        for unit in &units {
            check_eq!(unit.address_bits, widest(unit), "unit {} with capability {:#x}", unit.unit, unit.capability);
        }
        let bits = units.iter().map(|unit| unit.address_bits).min().unwrap_or(0);
        let levels = (bits - 12).div_ceil(9);
        for function in &machine.functions {
            let group = reports::group(&machine.iommu, function.address).unwrap_or_default();
            if let Some(domain) = group.domain {
                check_eq!(u32::from(domain.levels), levels, "domain of {}", function.address);
            }
        }
    }
}

test! {
    /// Who gets a device: with a unit, one driver for each function that exists; without one, nobody, unless isolation
    /// is off.
    fn hands_out_what_it_isolates(context) {
        let machine = Machine::of(context)?;
        check!(!machine.functions.is_empty(), "no PCI function was found");
        match machine.isolation() {
            Isolation::Enforced | Isolation::Trusted => claims_are_exclusive(machine)?,
            Isolation::Refused => {
                check!(machine.disk().is_err(), "the disk is in use");
                for function in &machine.functions {
                    check_eq!(machine.iommu.claim(function.address).err(), Some(ClaimError::NoUnit));
                }
            }
            Isolation::Off => {
                for index in 0..machine.edus() {
                    machine.edu(index)?;
                }
            }
        }
    }
}

/// A function that has a driver is not given away again, and one that does not exist not at all.
fn claims_are_exclusive(machine: &Machine) -> Result<(), Failure> {
    for index in 0..machine.edus() {
        let function = machine.edu(index)?.device.function();
        check_eq!(machine.iommu.claim(function).err(), Some(ClaimError::Claimed { function }));
    }
    let nowhere = PciAddress::from_devfn(0xfffe, 0xff, 0xff);
    check_eq!(machine.iommu.claim(nowhere).err(), Some(ClaimError::Unknown { function: nowhere }));
    Ok(())
}

test! {
    /// Every function that was found is known to the units, whatever is in front of it.
    lacks = lacks::unit,
    fn covers_every_function(context) {
        let machine = Machine::of(context)?;
        for function in &machine.functions {
            let group = reports::group(&machine.iommu, function.address);
            let group = group.ok_or_else(|| Failure::new(alloc::format!("{} is in no group", function.address)))?;
            check!(!group.sources.is_empty(), "{} has no requester id", function.address);
        }
    }
}
