//! From firmware's table to units that are ready.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64};

use mm::{PhysAddr, PhysRange};

use super::{
    Tables, UnitState, Vtd,
    interrupts::{self, InterruptControllers},
};
use crate::{
    Options, Platform,
    backend::UnitSet,
    dmar::Dmar,
    platform::LockClass,
    sync::IrqLock,
    vtd::{
        domain_ids::DomainIds,
        error::VtdError,
        mode::{TableStage, TranslationMode},
        tables::ContextTables,
        unit::{BringUp, BringUpError, InterruptSetup, Location, Unit},
    },
};

/// The units that firmware describes, as they were left.
pub(crate) struct Discovered<P: Platform>(Vec<Unit<P>>);

impl<P: Platform> Discovered<P> {
    /// Finds them.
    pub fn find(platform: &P, dmar: &Dmar<'_>) -> Result<Self, VtdError> {
        discover(platform, dmar).map(Self)
    }

    /// The registers of each, as many as it says that it has.
    pub fn registers(&self) -> impl Iterator<Item = PhysRange> + Clone {
        self.0.iter().map(Unit::registers)
    }
}

impl<P: Platform> Vtd<P> {
    /// Makes the units ready, with empty tables and translation off. Interrupts are remapped from then on, if they can
    /// be. If one does not come up, those before it are turned off again.
    pub fn bring_up(
        platform: Arc<P>,
        Discovered(discovered): Discovered<P>,
        dmar: &Dmar<'_>,
        controllers: &InterruptControllers<'_>,
        options: Options,
    ) -> Result<Self, VtdError> {
        let setup = interrupts::setup(&discovered, dmar, controllers, options);
        let mut units = Vec::new();
        units.try_reserve_exact(discovered.len()).map_err(|_| VtdError::OutOfMemory)?;
        let stage = TableStage::of_all(discovered.iter().map(Unit::capability), options);
        for unit in discovered {
            let state = UnitState::bring_up(platform.clone(), unit, setup.ok(), (options, stage))
                .inspect_err(|_| withdraw(&*platform, &units))?;
            units.push(state);
        }
        let publishes_freely = units.iter().all(|UnitState { unit, .. }| {
            !unit.caches_missing_leaves() && !unit.capability().needs_write_buffer_flush()
        });
        let vtd = Self {
            platform,
            units,
            physical_bits: physical_bits(dmar),
            options,
            stage,
            stuck: AtomicU64::new(0),
            reported_stuck: AtomicU64::new(0),
            newly_silent: AtomicBool::new(false),
            publishes_freely,
        };
        vtd.log_interrupts(setup.err());
        Ok(vtd)
    }
}

/// Turns `units` off again.
pub(super) fn withdraw<P: Platform>(platform: &P, units: &[UnitState<P>]) {
    units.iter().for_each(|state| state.unit.withdraw(platform));
}

/// The units that firmware describes, left as they are.
fn discover<P: Platform>(platform: &P, dmar: &Dmar<'_>) -> Result<Vec<Unit<P>>, VtdError> {
    let mut units: Vec<Unit<P>> = Vec::new();
    for (index, drhd) in dmar.units().enumerate() {
        if index == UnitSet::MAX_UNITS {
            return Err(VtdError::TooManyUnits);
        }
        let base = PhysAddr::checked(drhd.base).ok_or(VtdError::BadBase { unit: index, base: drhd.base })?;
        if let Some(other) = units.iter().position(|unit| unit.base() == base) {
            return Err(VtdError::SharedBase { unit: index, other, base });
        }
        units.try_reserve(1).map_err(|_| VtdError::OutOfMemory)?;
        let location = Location { base, segment: drhd.segment, host_address_bits: physical_bits(dmar) };
        let unit = Unit::discover(platform, index, location)?;
        // How many registers there are, only the unit says.
        let (own, mut others) = (unit.registers(), units.iter());
        if let Some(other) = others.find(|other| overlap(other.registers(), own)) {
            let (other, theirs) = (other.index(), other.registers());
            return Err(VtdError::OverlappingRegisters { unit: index, own, other, theirs });
        }
        units.push(unit);
    }
    Ok(units)
}

fn overlap(one: PhysRange, other: PhysRange) -> bool {
    let ends_after = |a: PhysRange, b: PhysRange| b.start.as_u64() < a.start.as_u64() + a.bytes;
    ends_after(one, other) && ends_after(other, one)
}

/// The width of a physical address, as far as page tables can express it.
fn physical_bits(dmar: &Dmar<'_>) -> u8 {
    const MAX_PHYSICAL_BITS: u16 = 52;
    dmar.header().host_address_bits.min(MAX_PHYSICAL_BITS) as u8
}

impl<P: Platform> UnitState<P> {
    fn bring_up(
        platform: Arc<P>,
        mut unit: Unit<P>,
        interrupts: Option<InterruptSetup>,
        (options, stage): (Options, TableStage),
    ) -> Result<Self, VtdError> {
        let capability = *unit.capability();
        let mode = TranslationMode::choose(&capability, options, stage);
        let (width, coherent) = (unit.hardware.width, capability.walks_coherently());
        let contexts = ContextTables::new(platform.clone(), mode, width, coherent)
            .map_err(|error| BringUpError::of_table(unit.index(), error))?;
        let ids = DomainIds::new(capability.domain_ids() as usize).ok_or(VtdError::OutOfMemory)?;
        let how = BringUp {
            root: contexts.root(),
            mode,
            queue: options.queued_invalidation,
            queue_order: options.queue_order,
            interrupts,
        };
        // SAFETY: `contexts` is empty, is kept beside the unit for as long as there is one, and leads only to the
        // tables of domains.
        let is_up = unsafe { unit.bring_up(&*platform, &how) };
        is_up.inspect_err(|_| unit.withdraw(&*platform))?;
        Ok(Self {
            unit,
            tables: IrqLock::new(LockClass::UnitTables, Tables { contexts, ids }),
            more_faults: AtomicBool::new(true),
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{
        dmar::builder::TableBytes,
        vtd::testing::{Executed, FakePlatform},
    };

    const QIE: u32 = 1 << 26;
    const IRE: u32 = 1 << 25;

    #[test]
    fn a_unit_that_is_refused_a_vector_at_last_is_turned_off_again() {
        let fake = FakePlatform::new(0x00d2_008c_222f_0606, 0x00f0_0f4a);
        let platform = Arc::new(FakePlatform { has_vectors: false, ..fake });
        let table = TableBytes::new().drhd(0xfed9_0000, 0, true, &[]).finish();
        let dmar = Dmar::parse(&table).unwrap();
        let controllers = InterruptControllers { io_apics: &[], x2apic: false };
        let found = Discovered::find(&*platform, &dmar).unwrap();
        let up = Vtd::bring_up(platform.clone(), found, &dmar, &controllers, Options::default());
        assert_eq!(up.map(drop), Err(VtdError::BringUp(BringUpError::NoVector { unit: 0 })));
        assert!(platform.unit.take_log().contains(&Executed::Command(QIE | IRE)));
        assert_eq!(platform.unit.peek32(0x1c) & (QIE | IRE), 0);
    }
}
