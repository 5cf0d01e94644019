//! Domains over an address space of the CPU's: devices use it as it stands, and nothing of it is used again while they
//! may.

mod ends;
mod process;
mod reach;
mod refusals;

use iommu::Options;
use mm::table::x86::X86Access;
use vtd_model::{Denied, MachineConfig, Reason, UnitConfig};

/// Where programs have things, and where the kernel's half begins.
const PROGRAM: u64 = 0x20_0000;
const HEAP: u64 = 1 << 32;
const KERNEL: u64 = 0xffff_8000_0000_0000;

const DATA: X86Access = X86Access::USER.union(X86Access::WRITE).union(X86Access::NO_EXECUTE);
const CODE: X86Access = X86Access::USER;
const KERNELS: X86Access = X86Access::WRITE;

const ABSENT: Denied = Denied::Fault(Reason::FirstStageNotPresent);
const SUPERVISORS: Denied = Denied::Fault(Reason::Supervisors);
const NO_WRITE: Denied = Denied::Fault(Reason::ScalableNoWrite);

fn options() -> Options {
    Options { scalable: true, ..Options::default() }
}

/// With as many units, and a function behind each.
fn units(count: u8) -> MachineConfig {
    let mut config = MachineConfig::first_stage(count);
    let unit = |index| {
        let base = 0xfed9_0000 + u64::from(index) * 0x1_0000;
        UnitConfig { scalable_coherent: true, ..UnitConfig::first_stage(base) }
    };
    config.units = (0..count).map(unit).collect();
    config.functions.iter_mut().enumerate().for_each(|(index, function)| function.unit = index);
    config.audit_once_in = 1;
    config
}

fn machine(caching_mode: bool) -> MachineConfig {
    let mut config = units(1);
    config.units[0].caching_mode = caching_mode;
    config
}
