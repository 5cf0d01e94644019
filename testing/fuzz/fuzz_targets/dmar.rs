//! The DMAR parser on arbitrary bytes: it ends, stays inside the table, and says the same twice.

#![no_main]

use core::fmt::Write;

use iommu::dmar::{Dmar, HEADER_BYTES, MAX_STRUCTURES};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let whole = Dmar::parse(bytes);
    let Ok((dmar, error)) = Dmar::parse_prefix(bytes) else {
        let error = whole.expect_err("a table without a header was accepted");
        assert!(error.offset() <= bytes.len() && !error.to_string().is_empty());
        return;
    };
    assert_eq!(whole.err(), error);
    if let Some(error) = error {
        assert!(error.offset() <= bytes.len(), "{error}");
        assert!(!error.to_string().is_empty());
    }

    let mut end = HEADER_BYTES;
    let mut structures = 0;
    for structure in dmar.structures() {
        assert!(structure.offset() >= end && structure.offset() < bytes.len());
        end = structure.offset() + 4;
        structures += 1;
        let mut scope_end = end;
        for scope in structure.scopes().into_iter().flatten() {
            assert!(scope.offset >= scope_end);
            scope_end = scope.offset + 6 + 2 * scope.path.hops().len();
            assert!(scope_end <= bytes.len() && scope.path.hops().len() > 0);
        }
        end = end.max(scope_end);
    }
    assert!(structures <= MAX_STRUCTURES);
    assert!(dmar.reserved_regions().filter_map(|region| region.pages()).all(|pages| pages.bytes % 4096 == 0));
    assert!(dmar.units().filter_map(|unit| unit.registers()).all(|registers| registers.bytes >= 4096));

    let mut text = String::new();
    dmar.warnings(|warning| {
        assert!(warning.offset() <= bytes.len());
        text.clear();
        write!(text, "{warning}").expect("a string takes everything");
    });
});
