//! The decoder of fault records on arbitrary bits.

#![no_main]

use iommu::fault::FaultTarget;
use iommu::vtd::spec::FaultRecord;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: ([u8; 16], u16)| {
    let (bytes, segment) = input;
    let bits = u128::from_le_bytes(bytes);
    let fault = FaultRecord::from_bits(bits).decode(segment);
    assert_eq!(fault.source.segment, segment);
    assert_eq!(fault.source.requester, (bits >> 64) as u16);
    assert_eq!(fault.reason.code, (bits >> 96) as u8);
    assert!(fault.pasid.is_none_or(|pasid| pasid < 1 << 20));
    if let FaultTarget::Address(address) = fault.target {
        assert_eq!(address.as_u64(), bits as u64 & !0xfff);
    }
    assert!(!fault.to_string().is_empty());
});
