//! Which page tables the units of a domain walk.

use mm::table::{Format, LeafSizes};

use super::Vtd;
use crate::{
    Platform,
    backend::{Formats, UnitSet},
    dma::{Access, NotShareable, SharedTable},
    vtd::{Capability, TableAccess, TableFormat, mode::TableStage, spec::AddressWidth},
};

impl<P: Platform> Formats for Vtd<P> {
    type Format = TableFormat;

    fn format(&self, units: UnitSet) -> Option<TableFormat> {
        match self.stage {
            TableStage::First => self.first_stage(units),
            TableStage::Second => self.second_stage(units),
        }
    }

    fn shared_format(&self, units: UnitSet, table: &SharedTable) -> Result<TableFormat, NotShareable> {
        if self.stage != TableStage::First {
            return Err(NotShareable::SecondStage);
        }
        if table.format.is_coherent() && !self.walk_coherently(units) {
            return Err(NotShareable::NotCoherent);
        }
        let known = self.leaf_sizes(units, Capability::first_stage_leaf_sizes);
        if !known.contains(table.format.leaf_sizes()) {
            return Err(NotShareable::LeafSizes);
        }
        let (memory, units) = (table.physical_bits, self.physical_bits);
        if memory > units {
            return Err(NotShareable::PhysicalBits { memory, units });
        }
        let format = TableFormat::first_stage(known, units, true);
        format
            .filter(|format| format.levels() == table.format.levels())
            .ok_or(NotShareable::Levels(table.format.levels()))
    }

    fn access(&self, access: Access) -> TableAccess {
        match (access.read, access.write) {
            (true, true) => TableAccess::ReadWrite,
            (false, true) => TableAccess::Write,
            // There is no entry for neither: a direction that allows nothing does not exist.
            (_, false) => TableAccess::Read,
        }
    }

    fn rights(&self, access: TableAccess) -> Access {
        Access { read: access != TableAccess::Write, write: access != TableAccess::Read }
    }

    fn last_iova(&self, units: UnitSet, format: TableFormat) -> u64 {
        let last = |bits: u8| 1_u64.checked_shl(bits.into()).map_or(u64::MAX, |limit| limit - 1);
        self.capabilities(units).map(|unit| last(unit.address_bits())).fold(format.last_input(), u64::min)
    }
}

impl<P: Platform> Vtd<P> {
    /// Second-stage tables that all of `units` can walk.
    fn second_stage(&self, units: UnitSet) -> Option<TableFormat> {
        let capabilities = || self.capabilities(units);
        let has_all = |width: &AddressWidth| capabilities().all(|capability| capability.has_width(*width));
        let wanted = capabilities().map(Capability::address_bits).min()?;
        let widths = [AddressWidth::Bits39, AddressWidth::Bits48, AddressWidth::Bits57];
        let mut common = widths.into_iter().filter(has_all);
        let widest = common.clone().next_back();
        let width = common.find(|width| width.bits() >= wanted).or(widest)?;
        let sizes = self.wanted_leaf_sizes(units, Capability::leaf_sizes);
        let snoops = self.options.snoop && capabilities().all(Capability::controls_snooping);
        let is_coherent = self.walk_coherently(units);
        TableFormat::new(width.levels(), sizes, self.physical_bits, is_coherent, snoops)
    }

    /// First-stage tables that all of `units` can walk.
    fn first_stage(&self, units: UnitSet) -> Option<TableFormat> {
        let sizes = self.wanted_leaf_sizes(units, Capability::first_stage_leaf_sizes);
        TableFormat::first_stage(sizes, self.physical_bits, self.walk_coherently(units))
    }

    fn walk_coherently(&self, units: UnitSet) -> bool {
        let mut members = units.iter().filter_map(|unit| Some(&self.units.get(unit)?.unit));
        members.all(|unit| unit.mode().walks_coherently(unit.capability()))
    }

    /// The leaves that our own tables have.
    fn wanted_leaf_sizes(&self, units: UnitSet, of_unit: fn(&Capability) -> LeafSizes) -> LeafSizes {
        if self.options.superpages { self.leaf_sizes(units, of_unit) } else { LeafSizes::SIZE_4K }
    }

    /// The leaves that all of `units` know.
    fn leaf_sizes(&self, units: UnitSet, of_unit: fn(&Capability) -> LeafSizes) -> LeafSizes {
        self.capabilities(units).fold(LeafSizes::all(), |sizes, unit| sizes & of_unit(unit))
    }

    fn capabilities(&self, units: UnitSet) -> impl Iterator<Item = &Capability> {
        units.iter().filter_map(|unit| Some(self.units.get(unit)?.unit.capability()))
    }
}
