//! Finds what deserves a [`Warning`].

use super::{
    Andd, Dmar, Drhd, HeaderFlags, Rhsa, Rmrr, Scope, ScopeFlags, ScopeKind, Structure, StructureKind,
    Warning,
};

pub(super) fn header(dmar: &Dmar<'_>, report: &mut impl FnMut(Warning)) {
    let header = &dmar.header;
    let sum = dmar.table.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
    // A prefix that came with an error has no sum to speak of.
    if sum != 0 && dmar.table.len() == header.length as usize {
        report(Warning::BadChecksum { sum });
    }
    if !(32..=52).contains(&header.host_address_bits) {
        report(Warning::HostAddressBits { bits: header.host_address_bits });
    }
    if header.flags.contains(HeaderFlags::X2APIC_OPT_OUT) && !header.flags.contains(HeaderFlags::INTR_REMAP) {
        report(Warning::OptOutWithoutRemapping);
    }
    reserved(report, 37, "the header's flags", header.flags.difference(HeaderFlags::all()).bits());
    let set = header.reserved.iter().fold(0, |set, byte| set | byte);
    reserved(report, 38, "the header's reserved bytes", set);
}

pub(super) fn structures(dmar: &Dmar<'_>, report: &mut impl FnMut(Warning)) {
    if dmar.units().next().is_none() {
        report(Warning::NoUnits);
    }
    let declared = Declared::of(dmar);
    let mut highest = StructureKind::Drhd;
    for structure in dmar.structures() {
        let (kind, offset) = (structure.kind(), structure.offset());
        if kind < highest {
            report(Warning::OutOfOrder { offset, kind });
        }
        highest = highest.max(kind);

        match &structure {
            Structure::Drhd(unit) => check_unit(dmar, unit, report),
            Structure::Rmrr(region) => check_region(dmar, region, report),
            Structure::Atsr(atsr) => {
                reserved(report, offset, "the ATSR's flags", atsr.reserved_flags());
                reserved(report, offset, "the ATSR's reserved byte", atsr.reserved);
            }
            Structure::Rhsa(rhsa) => check_affinity(dmar, rhsa, report),
            Structure::Andd(andd) => check_name(andd, report),
            Structure::Satc(satc) => {
                reserved(report, offset, "the SATC's flags", satc.reserved_flags());
                reserved(report, offset, "the SATC's reserved byte", satc.reserved);
            }
            Structure::Sidp(sidp) => reserved(report, offset, "the SIDP's reserved bytes", sidp.reserved),
            Structure::Unknown(unknown) => {
                report(Warning::UnknownStructure { offset, kind: unknown.kind, length: unknown.bytes.len() });
            }
        }
        check_scopes(&structure, &declared, report);
    }
    let (offset, bytes) = dmar.trailing();
    if bytes != 0 {
        report(Warning::TrailingBytes { offset, bytes });
    }
}

fn check_unit(dmar: &Dmar<'_>, unit: &Drhd<'_>, report: &mut impl FnMut(Warning)) {
    let &Drhd { offset, segment, base, .. } = unit;
    let (flags, size) = unit.reserved_bits();
    reserved(report, offset, "the DRHD's flags", flags);
    reserved(report, offset, "the DRHD's size", size);
    if unit.registers().is_none() {
        report(Warning::BadBase { offset, base });
    }
    if let Some(first) =
        dmar.units().take_while(|first| first.offset < offset).find(|first| overlap(first, unit))
    {
        report(Warning::SharedBase { offset, base, first: first.offset });
    }
    if !unit.include_pci_all {
        return;
    }
    let others = || dmar.units().filter(move |other| other.segment == segment && other.offset != offset);
    if let Some(first) = others().find(|other| other.include_pci_all && other.offset < offset) {
        report(Warning::IncludeAllTwice { offset, segment, first: first.offset });
    }
    if let Some(other) = others().find(|other| other.offset > offset) {
        report(Warning::IncludeAllNotLast { offset, segment, other: other.offset });
    }
}

/// Whether two units claim the same registers; those at impossible addresses only if the addresses are equal.
fn overlap(a: &Drhd<'_>, b: &Drhd<'_>) -> bool {
    match (a.registers(), b.registers()) {
        (Some(_), Some(_)) => a.base < b.base + b.register_bytes() && b.base < a.base + a.register_bytes(),
        _ => a.base == b.base,
    }
}

fn check_region(dmar: &Dmar<'_>, region: &Rmrr<'_>, report: &mut impl FnMut(Warning)) {
    let &Rmrr { offset, first, last, .. } = region;
    let bits = dmar.header.host_address_bits;
    reserved(report, offset, "the RMRR's reserved bytes", region.reserved);
    if region.is_reversed() {
        report(Warning::ReversedRegion { offset, first, last });
    } else if !region.is_aligned() {
        report(Warning::UnalignedRegion { offset, first, last });
    }
    if bits < 64 && last >> bits != 0 {
        report(Warning::RegionTooHigh { offset, last, bits });
    }
    // The same region twice, for other functions, is no mistake.
    let shares = |other: &Rmrr<'_>| {
        first <= other.last && other.first <= last && (first, last) != (other.first, other.last)
    };
    let mut before = dmar.reserved_regions().take_while(|other| other.offset < offset);
    if let Some(other) = before.find(|other| !region.is_reversed() && !other.is_reversed() && shares(other)) {
        report(Warning::OverlappingRegions { offset, first: other.offset });
    }
}

fn check_affinity(dmar: &Dmar<'_>, rhsa: &Rhsa, report: &mut impl FnMut(Warning)) {
    let &Rhsa { offset, base, surplus_bytes, .. } = rhsa;
    reserved(report, offset, "the RHSA's reserved bytes", rhsa.reserved);
    if !dmar.units().any(|unit| unit.base == base) {
        report(Warning::UnknownUnit { offset, base });
    }
    if surplus_bytes != 0 {
        let offset = offset + StructureKind::Rhsa.fixed_bytes();
        report(Warning::SurplusBytes { offset, kind: StructureKind::Rhsa, bytes: surplus_bytes });
    }
}

fn check_name(andd: &Andd<'_>, report: &mut impl FnMut(Warning)) {
    let set = andd.reserved.iter().fold(0, |set, byte| set | byte);
    reserved(report, andd.offset, "the ANDD's reserved bytes", set);
    if !andd.terminated {
        report(Warning::UnterminatedName { offset: andd.offset });
    }
}

/// Which ACPI device numbers an ANDD declares.
struct Declared([bool; 256]);

impl Declared {
    fn of(dmar: &Dmar<'_>) -> Self {
        let mut declared = Self([false; 256]);
        for structure in dmar.structures() {
            if let Structure::Andd(andd) = structure {
                declared.0[usize::from(andd.number)] = true;
            }
        }
        declared
    }
}

fn check_scopes(structure: &Structure<'_>, declared: &Declared, report: &mut impl FnMut(Warning)) {
    let Some(scopes) = structure.scopes() else { return };
    let speaks_of_all = match structure {
        Structure::Drhd(unit) => unit.include_pci_all,
        Structure::Atsr(atsr) => atsr.all_ports,
        _ => false,
    };
    if !speaks_of_all && scopes.clone().next().is_none() {
        report(Warning::NoScopes { offset: structure.offset(), kind: structure.kind() });
    }
    for scope in scopes {
        check_scope(&scope, structure.kind(), declared, report);
    }
}

fn check_scope(
    scope: &Scope<'_>,
    holder: StructureKind,
    declared: &Declared,
    report: &mut impl FnMut(Warning),
) {
    let offset = scope.offset;
    let known = if holder == StructureKind::Sidp { ScopeFlags::all() } else { ScopeFlags::empty() };
    reserved(report, offset, "the device scope's flags", scope.flags.difference(known).bits());
    reserved(report, offset, "the device scope's reserved byte", scope.reserved);
    match scope.kind {
        ScopeKind::Unknown(kind) => report(Warning::UnknownScope { offset, kind }),
        ScopeKind::Acpi { number } if !declared.0[usize::from(number)] => {
            report(Warning::UndeclaredDevice { offset, number });
        }
        _ => {}
    }
    for (index, hop) in scope.path.hops().enumerate() {
        if hop.on(0, 0).is_none() {
            report(Warning::BadHop { offset, index, device: hop.device, function: hop.function });
        }
    }
}

fn reserved(report: &mut impl FnMut(Warning), offset: usize, field: &'static str, bits: impl Into<u64>) {
    let bits = bits.into();
    if bits != 0 {
        report(Warning::ReservedBits { offset, field, bits });
    }
}
