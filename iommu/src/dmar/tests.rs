use std::{format, string::ToString, vec, vec::Vec};

use mm::{PhysAddr, PhysRange};

use super::{
    builder::{ScopeBytes, TableBytes},
    *,
};

fn warnings(table: &[u8]) -> Vec<Warning> {
    let mut found = Vec::new();
    Dmar::parse(table).unwrap().warnings(|warning| found.push(warning));
    found
}

fn error(table: &[u8]) -> DmarError {
    Dmar::parse(table).unwrap_err()
}

/// One unit that serves everything: a table without a warning to build on.
fn plain() -> TableBytes {
    TableBytes::new().drhd(0xfed9_0000, 0, true, &[])
}

/// A table with a structure of each known type, and scopes of each type.
fn full() -> TableBytes {
    TableBytes::new()
        .drhd(0xfed9_0000, 0, false, &[ScopeBytes::endpoint(0, &[(2, 0)])])
        .drhd_with_size(
            0xfed9_2000,
            1,
            0,
            true,
            &[
                ScopeBytes::io_apic(8, 0xf0, (0x1f, 0)),
                ScopeBytes::hpet(1, 0xf0, (0xf, 7)),
                ScopeBytes::acpi(3, 0, (0x15, 1)),
                ScopeBytes::bridge(0, &[(0x1c, 4), (0, 0)]),
            ],
        )
        .rmrr(0x7000_0000, 0x7001_ffff, 0, &[ScopeBytes::endpoint(0, &[(0x14, 0)])])
        .atsr(0, false, &[ScopeBytes::bridge(0, &[(1, 0)])])
        .rhsa(0xfed9_2000, 7)
        .andd(3, b"\\_SB.PCI0.I2C0\0")
        .satc(0, true, &[ScopeBytes::endpoint(0, &[(0xb, 0)])])
        .sidp(0, &[ScopeBytes::endpoint(0, &[(0xa, 0)]).with_byte(2, 0b1_0001)])
}

#[test]
fn reads_every_field_of_every_structure() {
    let table = full().finish();
    let dmar = Dmar::parse(&table).unwrap();
    let header = dmar.header();
    assert_eq!((header.length as usize, header.revision), (table.len(), 1));
    assert_eq!((&header.oem_id, &header.oem_table_id), (b"SLUICE", b"TESTDMAR"));
    assert_eq!((header.oem_revision, &header.creator_id, header.creator_revision), (1, b"TEST", 1));
    assert_eq!((header.host_address_bits, header.flags), (39, HeaderFlags::INTR_REMAP));

    let structures: Vec<_> = dmar.structures().collect();
    let [
        Structure::Drhd(graphics),
        Structure::Drhd(all),
        Structure::Rmrr(rmrr),
        Structure::Atsr(atsr),
        Structure::Rhsa(rhsa),
        Structure::Andd(andd),
        Structure::Satc(satc),
        Structure::Sidp(sidp),
    ] = &structures[..]
    else {
        panic!("{structures:?}");
    };
    assert_eq!((graphics.offset, graphics.base, graphics.include_pci_all), (48, 0xfed9_0000, false));
    assert_eq!(graphics.register_bytes(), 0x1000);
    assert_eq!((all.offset, all.segment, all.include_pci_all), (72, 0, true));
    assert_eq!(all.registers(), Some(PhysRange::new(PhysAddr::new(0xfed9_2000), 0x2000)));
    let named: Vec<_> = all.scopes.clone().map(|scope| scope.to_string()).collect();
    assert_eq!(
        named,
        ["I/O APIC 8 f0:1f.0", "HPET 1 f0:0f.7", "ACPI device 3 00:15.1", "bridge 00:1c.4/00.0"]
    );
    assert_eq!((rmrr.first, rmrr.last), (0x7000_0000, 0x7001_ffff));
    assert_eq!(rmrr.pages(), Some(PhysRange::new(PhysAddr::new(0x7000_0000), 0x2_0000)));
    assert!(!atsr.all_ports);
    assert_eq!((rhsa.base, rhsa.proximity), (0xfed9_2000, 7));
    assert_eq!((andd.number, andd.name), (3, &b"\\_SB.PCI0.I2C0"[..]));
    assert!(satc.atc_required);
    let flags = sidp.scopes.clone().next().unwrap().flags;
    assert_eq!(flags, ScopeFlags::NO_NESTED_WITHOUT_PASID | ScopeFlags::ATC_REQUIRED);
    assert_eq!(dmar.units().count(), 2);
    assert_eq!(dmar.reserved_regions().count(), 1);
    assert_eq!(warnings(&table), []);
}

#[test]
fn each_structure_keeps_its_segment() {
    let scope = [ScopeBytes::endpoint(0, &[(1, 0)])];
    let table = TableBytes::new()
        .drhd(0x1000, 0x1234, true, &[])
        .rmrr(0, 0xfff, 0x2345, &scope)
        .atsr(0x3456, true, &[])
        .satc(0x4567, false, &scope)
        .sidp(0x5678, &scope)
        .finish();
    let segments: Vec<u16> = Dmar::parse(&table)
        .unwrap()
        .structures()
        .map(|structure| match structure {
            Structure::Drhd(drhd) => drhd.segment,
            Structure::Rmrr(rmrr) => rmrr.segment,
            Structure::Atsr(atsr) => atsr.segment,
            Structure::Satc(satc) => satc.segment,
            Structure::Sidp(sidp) => sidp.segment,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(segments, [0x1234, 0x2345, 0x3456, 0x4567, 0x5678]);
}

#[test]
fn header_that_cannot_be_read_is_an_error() {
    let table = plain().finish();
    for available in 0..HEADER_BYTES {
        assert_eq!(error(&table[..available]), DmarError::HeaderTruncated { available });
    }
    assert_eq!(error(&plain().byte(0, b'd').finish()), DmarError::Signature { found: *b"dMAR" });
    let short = plain().finish_with_length(47);
    assert_eq!(error(&short), DmarError::TableTooShort { length: 47 });
    let long = plain().finish_with_length(u32::MAX);
    assert_eq!(error(&long), DmarError::TableTooLong { length: u32::MAX });
}

#[test]
fn a_table_cut_anywhere_is_an_error_and_keeps_what_is_whole() {
    let table = full().finish();
    let ends: Vec<usize> = Dmar::parse(&table).unwrap().structures().map(|s| s.offset()).collect();
    for cut in HEADER_BYTES..table.len() {
        let (dmar, error) = Dmar::parse_prefix(&table[..cut]).unwrap();
        let whole = ends.iter().skip(1).filter(|&&end| end <= cut).count();
        assert_eq!(dmar.structures().count(), whole, "cut at {cut:#x}");
        match error.unwrap() {
            DmarError::StructurePastEnd { offset, available, .. } => {
                assert_eq!(offset + available, cut);
                assert!(ends.contains(&offset));
            }
            DmarError::TableTruncated { available, .. } => assert_eq!(available, cut),
            other => panic!("cut at {cut:#x}: {other}"),
        }
    }
}

#[test]
fn zero_length_and_short_structures_are_errors() {
    let minimums = [(0, 16), (1, 24), (2, 8), (3, 20), (4, 8), (5, 8), (6, 8), (0x4711, 4)];
    for (raw, minimum) in minimums {
        for length in 0..minimum {
            let mut bytes = vec![0; minimum];
            bytes[..2].copy_from_slice(&u16::to_le_bytes(raw));
            bytes[2] = length as u8;
            let builder = plain();
            let offset = builder.offset();
            let kind = StructureKind::from_raw(raw);
            assert_eq!(
                error(&builder.raw(&bytes).finish()),
                DmarError::StructureTooShort { kind, offset, length, minimum }
            );
        }
    }
}

#[test]
fn a_structure_that_passes_the_end_is_an_error() {
    let builder = plain();
    let offset = builder.offset();
    assert_eq!(
        error(&builder.raw(&[0, 0, 17, 0]).raw(&[0; 12]).finish()),
        DmarError::StructurePastEnd { kind: StructureKind::Drhd, offset, length: 17, available: 16 }
    );
    let unknown = plain().raw(&[0x99, 0, 0xff, 0xff]).finish();
    assert_eq!(
        error(&unknown),
        DmarError::StructurePastEnd {
            kind: StructureKind::Unknown(0x99),
            offset,
            length: 0xffff,
            available: 4
        }
    );
}

#[test]
fn scopes_that_overlap_the_next_structure_are_errors() {
    let good = ScopeBytes::endpoint(0, &[(2, 0)]);
    let structure = plain().offset();
    let holder = StructureKind::Drhd;
    for length in [0, 1, 5, 6, 7, 9] {
        let table = plain().drhd(0x5000, 0, false, &[good.clone().with_byte(1, length)]).finish();
        let offset = structure + 16;
        let length = usize::from(length);
        assert_eq!(error(&table), DmarError::ScopeLength { kind: holder, structure, offset, length });
    }
    let long = [good.clone(), good.clone().with_byte(1, 10)];
    let table = plain().drhd(0x5000, 0, false, &long).rmrr(0, 0xfff, 0, &[good]).finish();
    let expected = DmarError::ScopePastEnd { kind: holder, structure, offset: structure + 24, available: 8 };
    assert_eq!(error(&table), expected);
    assert_eq!(
        expected.to_string(),
        "device scope at offset 0x58 in DRHD at 0x40: passes the structure's end, 8 bytes on"
    );
}

#[test]
fn the_end_of_a_structure_cuts_its_last_scope() {
    for rest in 1..8 {
        let mut fields = vec![0; 12];
        fields.extend(&[1, 8, 0, 0, 0, 0, 2, 0][..rest]);
        let error = error(&plain().structure(0, &fields, &[]).finish());
        let DmarError::ScopePastEnd { offset, available, .. } = error else { panic!("{rest}: {error}") };
        assert_eq!((offset, available), (plain().offset() + 16, rest));
    }
}

#[test]
fn too_many_structures_are_refused() {
    let mut builder = TableBytes::new();
    for _ in 0..MAX_STRUCTURES {
        builder = builder.raw(&[0x99, 0, 4, 0]);
    }
    assert_eq!(Dmar::parse(&builder.clone().finish()).unwrap().structures().count(), MAX_STRUCTURES);
    let offset = builder.offset();
    assert_eq!(error(&builder.raw(&[0x99, 0, 4, 0]).finish()), DmarError::TooManyStructures { offset });
}

#[test]
fn unknown_structures_are_skipped_with_a_warning() {
    let builder = plain();
    let offset = builder.offset();
    let table = builder.structure(0x77, &[1, 2, 3], &[]).finish();
    let dmar = Dmar::parse(&table).unwrap();
    let last = dmar.structures().last().unwrap();
    let Structure::Unknown(unknown) = last else { panic!("{last:?}") };
    assert_eq!((unknown.kind, unknown.bytes), (0x77, &[0x77, 0, 7, 0, 1, 2, 3][..]));
    assert_eq!(warnings(&table), [Warning::UnknownStructure { offset, kind: 0x77, length: 7 }]);
}

#[test]
fn trailing_bytes_are_warned_of_inside_and_after_the_table() {
    let offset = plain().offset();
    let mut table = plain().raw(&[0xaa; 3]).finish();
    assert_eq!(warnings(&table), [Warning::TrailingBytes { offset, bytes: 3 }]);
    table.extend([1, 2]);
    assert_eq!(warnings(&table), [Warning::TrailingBytes { offset, bytes: 5 }]);
}

#[test]
fn a_bad_checksum_is_warned_of() {
    let mut table = plain().finish();
    table[9] = table[9].wrapping_add(3);
    assert_eq!(warnings(&table), [Warning::BadChecksum { sum: 3 }]);
}

#[test]
fn header_oddities_are_warned_of() {
    let unknown = HeaderFlags::from_bits_retain(0x88 | 0x2);
    let table = plain().flags(unknown).byte(36, 52).byte(40, 1).finish();
    assert_eq!(
        warnings(&table),
        [
            Warning::HostAddressBits { bits: 53 },
            Warning::OptOutWithoutRemapping,
            Warning::ReservedBits { offset: 37, field: "the header's flags", bits: 0x88 },
            Warning::ReservedBits { offset: 38, field: "the header's reserved bytes", bits: 1 },
        ]
    );
    assert_eq!(warnings(&TableBytes::new().finish()), [Warning::NoUnits]);
}

#[test]
fn include_all_is_last_and_once_in_each_segment() {
    let other = [ScopeBytes::endpoint(0, &[(2, 0)])];
    let fine = TableBytes::new().drhd(0x1000, 0, true, &[]).drhd(0x2000, 1, true, &[]).finish();
    assert_eq!(warnings(&fine), []);

    let not_last = TableBytes::new().drhd(0x1000, 0, true, &[]).drhd(0x2000, 0, false, &other).finish();
    assert_eq!(warnings(&not_last), [Warning::IncludeAllNotLast { offset: 48, segment: 0, other: 64 }]);

    let twice = TableBytes::new().drhd(0x1000, 7, true, &[]).drhd(0x2000, 7, true, &[]).finish();
    assert_eq!(
        warnings(&twice),
        [
            Warning::IncludeAllNotLast { offset: 48, segment: 7, other: 64 },
            Warning::IncludeAllTwice { offset: 64, segment: 7, first: 48 },
        ]
    );
}

#[test]
fn impossible_and_shared_bases_are_warned_of() {
    for base in [0, u64::MAX, 0xfed9_0800, 1 << 52] {
        let table = TableBytes::new().drhd(base, 0, true, &[]).finish();
        assert_eq!(warnings(&table), [Warning::BadBase { offset: 48, base }]);
        assert_eq!(Dmar::parse(&table).unwrap().units().next().unwrap().registers(), None);
    }
    // The size counts: two pages at 0x4000 reach 0x5000.
    let scope = [ScopeBytes::endpoint(0, &[(2, 0)])];
    let table = TableBytes::new()
        .drhd_with_size(0x4000, 1, 0, false, &scope)
        .drhd(0x5000, 0, false, &scope)
        .drhd(0x6000, 0, true, &[])
        .finish();
    assert_eq!(warnings(&table), [Warning::SharedBase { offset: 72, base: 0x5000, first: 48 }]);
    let zeros = TableBytes::new().drhd(0, 0, false, &scope).drhd(0, 0, true, &[]).finish();
    assert!(warnings(&zeros).contains(&Warning::SharedBase { offset: 72, base: 0, first: 48 }));
}

#[test]
fn register_sets_at_the_top_of_the_address_space_do_not_wrap() {
    let top = (1 << 52) - 0x1000;
    let fits = TableBytes::new().drhd(top, 0, true, &[]).finish();
    assert!(Dmar::parse(&fits).unwrap().units().next().unwrap().registers().is_some());
    let beyond = TableBytes::new().drhd_with_size(top, 15, 0, true, &[]).finish();
    assert_eq!(warnings(&beyond), [Warning::BadBase { offset: 48, base: top }]);
}

#[test]
fn bad_regions_are_warned_of() {
    let scope = [ScopeBytes::endpoint(0, &[(0x14, 0)])];
    let offset = plain().offset();
    let region = |first, last| plain().rmrr(first, last, 0, &scope).finish();
    let pages = |table: &[u8]| Dmar::parse(table).unwrap().reserved_regions().next().unwrap().pages();

    let reversed = region(0x9000, 0x7fff);
    let warning = Warning::ReversedRegion { offset, first: 0x9000, last: 0x7fff };
    assert_eq!((warnings(&reversed), pages(&reversed)), (vec![warning], None));

    for (first, last) in [(0x7001, 0x8fff), (0x7000, 0x8ffe), (0x7000, 0x8000)] {
        let unaligned = region(first, last);
        assert_eq!(warnings(&unaligned), [Warning::UnalignedRegion { offset, first, last }]);
        assert_eq!(pages(&unaligned), Some(PhysRange::new(PhysAddr::new(0x7000), 0x2000)));
    }
    let high = region(0x80_0000_0000, 0x80_0000_0fff);
    assert_eq!(warnings(&high), [Warning::RegionTooHigh { offset, last: 0x80_0000_0fff, bits: 39 }]);
    let highest = region(u64::MAX - 0xfff, u64::MAX);
    assert_eq!(pages(&highest), None);
}

#[test]
fn overlapping_regions_are_warned_of_but_not_the_same_one_twice() {
    let scope = [ScopeBytes::endpoint(0, &[(0x14, 0)])];
    let two = |first, last| plain().rmrr(0x7000, 0x9fff, 0, &scope).rmrr(first, last, 0, &scope).finish();
    let warning = Warning::OverlappingRegions { offset: 96, first: 64 };
    assert_eq!(warnings(&two(0x9000, 0xafff)), [warning]);
    assert_eq!(warnings(&two(0x6000, 0x7fff)), [warning]);
    assert_eq!(warnings(&two(0xa000, 0xafff)), []);
    assert_eq!(warnings(&two(0x7000, 0x9fff)), []);
}

#[test]
fn oddities_of_the_other_structures_are_warned_of() {
    let offset = plain().offset();
    let structure = |kind, fields: &[u8]| warnings(&plain().structure(kind, fields, &[]).finish());
    let no_scopes = |kind| Warning::NoScopes { offset, kind };
    let reserved = |field, bits| Warning::ReservedBits { offset, field, bits };

    assert_eq!(
        structure(2, &[0x80, 1, 0, 0]),
        [
            reserved("the ATSR's flags", 0x80),
            reserved("the ATSR's reserved byte", 1),
            no_scopes(StructureKind::Atsr)
        ]
    );
    assert_eq!(
        structure(5, &[2, 1, 0, 0]),
        [
            reserved("the SATC's flags", 2),
            reserved("the SATC's reserved byte", 1),
            no_scopes(StructureKind::Satc)
        ]
    );
    assert_eq!(
        structure(6, &[0, 1, 0, 0]),
        [reserved("the SIDP's reserved bytes", 0x100), no_scopes(StructureKind::Sidp)]
    );
    let unknown_unit = Warning::UnknownUnit { offset, base: 0x1000 };
    assert_eq!(warnings(&plain().rhsa(0x1000, 0).finish()), [unknown_unit]);
    assert_eq!(
        structure(3, &[1, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0, 0, 0, 0, 0, 5]),
        [
            reserved("the RHSA's reserved bytes", 1),
            Warning::SurplusBytes { offset: offset + 20, kind: StructureKind::Rhsa, bytes: 1 }
        ]
    );
    assert_eq!(
        structure(4, b"\0\x01\0\x02ABC"),
        [reserved("the ANDD's reserved bytes", 1), Warning::UnterminatedName { offset }]
    );
    assert_eq!(
        warnings(&plain().rmrr(0, 0xfff, 0, &[]).byte(offset + 4, 1).finish()),
        [reserved("the RMRR's reserved bytes", 1), no_scopes(StructureKind::Rmrr)]
    );
    let scope = [ScopeBytes::endpoint(0, &[(2, 0)])];
    assert_eq!(
        warnings(&TableBytes::new().drhd(0x1000, 0, false, &scope).byte(52, 2).byte(53, 0x10).finish()),
        [
            Warning::ReservedBits { offset: 48, field: "the DRHD's flags", bits: 2 },
            Warning::ReservedBits { offset: 48, field: "the DRHD's size", bits: 0x10 },
        ]
    );
}

#[test]
fn structures_out_of_order_are_read_and_warned_of() {
    let scope = [ScopeBytes::endpoint(0, &[(0x14, 0)])];
    let table = TableBytes::new().rmrr(0, 0xfff, 0, &scope).drhd(0x1000, 0, true, &[]).finish();
    assert_eq!(warnings(&table), [Warning::OutOfOrder { offset: 80, kind: StructureKind::Drhd }]);
    assert_eq!(Dmar::parse(&table).unwrap().units().count(), 1);
}

#[test]
fn oddities_of_scopes_are_warned_of() {
    let scope = |scope| warnings(&TableBytes::new().drhd(0x1000, 0, false, &[scope]).finish());
    assert_eq!(scope(ScopeBytes::new(9, 0, 0, &[(2, 0)])), [Warning::UnknownScope { offset: 64, kind: 9 }]);
    assert_eq!(scope(ScopeBytes::acpi(5, 0, (2, 0))), [Warning::UndeclaredDevice { offset: 64, number: 5 }]);
    assert_eq!(
        scope(ScopeBytes::endpoint(0, &[(1, 0), (32, 8)])),
        [Warning::BadHop { offset: 64, index: 1, device: 32, function: 8 }]
    );
    assert_eq!(
        scope(ScopeBytes::endpoint(0, &[(1, 0)]).with_byte(2, 1).with_byte(3, 2)),
        [
            Warning::ReservedBits { offset: 64, field: "the device scope's flags", bits: 1 },
            Warning::ReservedBits { offset: 64, field: "the device scope's reserved byte", bits: 2 },
        ]
    );
}

#[test]
fn errors_and_warnings_name_structure_and_offset() {
    let texts = [
        (
            error(&plain().raw(&[0, 0, 0, 0]).finish()).to_string(),
            "DRHD at offset 0x40: length 0 is below 16",
        ),
        (
            error(&plain().raw(&[1, 0, 24, 0]).finish()).to_string(),
            "RMRR at offset 0x40: length 24 passes the table's end, 4 bytes on",
        ),
        (
            format!("{}", Warning::BadBase { offset: 0x30, base: 0 }),
            "offset 0x30: no unit can be at base address 0x0",
        ),
    ];
    for (text, expected) in texts {
        assert_eq!(text, expected);
    }
}

/// Any byte of a good table replaced by any of a few values: never a panic, and the iterators end.
#[test]
fn single_wrong_bytes_never_panic() {
    let good = full().finish();
    let step = if cfg!(miri) { 37 } else { 1 };
    for position in (0..good.len()).step_by(step) {
        for value in [0, 1, 3, 5, 7, 0x10, 0x7f, 0x80, 0xff] {
            let mut table = good.clone();
            table[position] = value;
            if let Ok((dmar, _)) = Dmar::parse_prefix(&table) {
                let scopes: usize = dmar.structures().filter_map(|s| s.scopes()).map(Iterator::count).sum();
                assert!(scopes < table.len());
                dmar.warnings(|warning| assert!(warning.offset() <= table.len()));
            }
        }
    }
}
