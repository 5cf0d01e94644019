//! Interrupt remapping of all units together.

use super::{UnitState, Vtd};
use crate::{
    Options, Platform,
    dmar::{Dmar, HeaderFlags, ScopeKind},
    dump::{InterruptReport, Visitor},
    interrupts::{NotRemapped, Remapper, Sender, warn_of},
    vtd::{
        remap::{InterruptBlock, Route, RouteError, sender_of},
        unit::{InterruptSetup, Unit},
    },
};

/// log2 of the entries of a unit's table: more than all vectors of four CPUs, in four pages.
const ENTRIES_ORDER: u8 = 10;

/// Where interrupts go, and what but PCI functions raises them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InterruptControllers<'a> {
    /// Ids of the I/O APICs.
    pub io_apics: &'a [u8],
    /// Local APICs are in x2APIC mode.
    pub x2apic: bool,
}

/// How the units that can are to remap interrupts, or why none is to.
///
/// It is all or none, but for units that cannot: with remapping on, interrupts in compatibility format are blocked, so
/// every I/O APIC needs an entry, and all destinations have to be of one length.
pub(super) fn setup<P: Platform>(
    units: &[Unit<P>],
    dmar: &Dmar<'_>,
    controllers: &InterruptControllers<'_>,
    options: Options,
) -> Result<InterruptSetup, NotRemapped> {
    if !options.interrupt_remapping {
        return Err(NotRemapped::NotWanted);
    }
    let flags = dmar.header().flags;
    if !flags.contains(HeaderFlags::INTR_REMAP) {
        return Err(NotRemapped::NotSupported);
    }
    let uncovered = controllers.io_apics.iter().find(|&&id| !is_in_a_scope(dmar, id));
    if let Some(&id) = uncovered {
        return Err(NotRemapped::UncoveredIoApic { id });
    }
    let mut remapping = units.iter().map(Unit::capability).filter(|unit| unit.has_interrupt_remapping());
    let all_extended = remapping.all(|unit| unit.has_extended_interrupts());
    let x2apic = controllers.x2apic && all_extended && !flags.contains(HeaderFlags::X2APIC_OPT_OUT);
    Ok(InterruptSetup { entries_order: ENTRIES_ORDER, x2apic })
}

fn is_in_a_scope(dmar: &Dmar<'_>, id: u8) -> bool {
    dmar.units().any(|unit| unit.scopes.into_iter().any(|scope| scope.kind == ScopeKind::IoApic { id }))
}

impl<P: Platform> Vtd<P> {
    /// Says where interrupts are not remapped, and what that costs.
    pub(super) fn log_interrupts(&self, why_none: Option<NotRemapped>) {
        if let Some(why) = why_none {
            return warn_of(why);
        }
        for unit in (0..self.units.len()).filter(|&unit| !self.remaps(unit)) {
            warn_of(NotRemapped::Unit { unit });
        }
    }

    /// `result`, with what made a unit fail reported.
    fn reported(&self, unit: usize, result: Result<(), RouteError>) -> Result<(), RouteError> {
        if let Err(RouteError::Invalidation(error)) = result {
            self.failed(unit, error);
        }
        result
    }
}

impl<P: Platform> Remapper for Vtd<P> {
    fn remaps(&self, unit: usize) -> bool {
        self.units.get(unit).is_some_and(|state| state.unit.interrupts().is_some())
    }

    fn remaps_any(&self) -> bool {
        (0..self.units.len()).any(|unit| self.remaps(unit))
    }

    fn allocate(&self, unit: usize, order: u8, sender: Sender) -> Result<InterruptBlock, RouteError> {
        let state = self.units.get(unit).ok_or(RouteError::NotRemapped { unit })?;
        state.unit.allocate_interrupts(&*self.platform, order, sender)
    }

    fn route(&self, block: &InterruptBlock, offset: u16, route: &Route) -> Result<(), RouteError> {
        debug_assert!(!self.platform.in_interrupt(), "an interrupt is routed in an interrupt");
        let unit = block.unit();
        let state = self.units.get(unit).ok_or(RouteError::NotRemapped { unit })?;
        self.reported(unit, state.unit.route_interrupt(&*self.platform, block, offset, route))
    }

    fn release(&self, block: InterruptBlock) -> Result<(), RouteError> {
        debug_assert!(!self.platform.in_interrupt(), "an interrupt is released in an interrupt");
        let unit = block.unit();
        let state = self.units.get(unit).ok_or(RouteError::NotRemapped { unit })?;
        self.reported(unit, state.unit.free_interrupts(&*self.platform, block))
    }
}

impl<P: Platform> UnitState<P> {
    /// Shows the entries in use.
    pub(super) fn visit_interrupts(&self, platform: &P, visitor: &mut dyn Visitor) {
        let Some(table) = self.unit.interrupts() else { return };
        // Ends with the table: there is no entry beyond.
        let entries =
            (0..=u16::MAX).map_while(|index| table.entry(platform, index).map(|entry| (index, entry)));
        for (index, entry) in entries.filter(|(_, entry)| entry.present()) {
            visitor.interrupt(&InterruptReport {
                unit: self.unit.index(),
                index,
                sender: sender_of(entry, self.unit.segment()),
                vector: entry.vector(),
                apic: entry.apic(table.is_extended()),
                level_triggered: entry.level_triggered(),
            });
        }
    }
}
