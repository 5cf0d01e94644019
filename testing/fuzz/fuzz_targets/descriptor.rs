//! The decoder of invalidation descriptors on arbitrary bits: what it understands, it writes as it was.

#![no_main]

use iommu::vtd::spec::RawDescriptor;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: [u8; 16]| {
    let raw = RawDescriptor(u128::from_le_bytes(bytes));
    match raw.decode() {
        Ok(descriptor) => {
            assert_eq!(descriptor.encode(), raw);
            assert!(!format!("{descriptor:?}").is_empty());
        }
        Err(unknown) => assert!(!unknown.to_string().is_empty()),
    }
});
