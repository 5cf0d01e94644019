//! The check of the capability registers on arbitrary values: what is accepted keeps its registers apart and in reach.

#![no_main]

use iommu::vtd::Capability;
use iommu::vtd::spec::{Capabilities, ExtendedCapabilities, FaultRecord, Version};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|registers: (u32, u64, u64)| {
    let (version, cap, ecap) = registers;
    let decoded = Capability::decode(
        Version::from_bits(version),
        Capabilities::from_bits(cap),
        ExtendedCapabilities::from_bits(ecap),
    );
    let capability = match decoded {
        Ok(capability) => capability,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let bytes = capability.register_bytes();
    // FRO has 10 bits of 16 bytes, and at most 256 records follow.
    assert!((4096..=32 * 1024).contains(&bytes), "{bytes}");
    assert!((1..=256).contains(&capability.fault_records()));
    for index in 0..capability.fault_records() {
        let record = capability.fault_record(index);
        assert!(record.is_multiple_of(16) && record + FaultRecord::BYTES <= bytes);
    }
    assert!(capability.invalidate_area() + 16 <= bytes);
    assert!((16..=1 << 16).contains(&capability.domain_ids()));
    assert!(capability.address_bits() <= 64);
    let _ = (capability.widest(), capability.fitting_width(), capability.leaf_sizes());
    let _ = (capability.page_selective_order(), capability.interrupt_entries_order());
});
