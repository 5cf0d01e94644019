use super::*;

const DOMAIN: DomainId = DomainId::new(0xabcd);

fn depth(depth: u8) -> NonZeroU8 {
    NonZeroU8::new(depth).unwrap()
}

fn iotlb(granularity: Granularity) -> Descriptor {
    Descriptor::Iotlb {
        granularity,
        domain: DOMAIN,
        first: Iova::new(0x1234_5678_9000),
        order: 0,
        leaf_only: false,
        drain_writes: false,
        drain_reads: false,
    }
}

/// Each field against the bit numbers of the specification.
#[test]
fn fields_lie_where_the_specification_puts_them() {
    let context = |granularity, mask| {
        Descriptor::Context { granularity, domain: DOMAIN, source: 0x4567, mask }.encode().0
    };
    let fields = 0x4567 << 32 | 0xabcd << 16;
    assert_eq!(context(Granularity::Selective, FunctionMask::Exact), fields | 0x31);
    assert_eq!(context(Granularity::Selective, FunctionMask::Device), 3 << 48 | fields | 0x31);
    assert_eq!(context(Granularity::Domain, FunctionMask::Bit2), 1 << 48 | fields | 0x21);
    assert_eq!(iotlb(Granularity::Global).encode().0, 0xabcd_0012);
    assert_eq!(iotlb(Granularity::Domain).encode().0, 0xabcd_0022);
    assert_eq!(iotlb(Granularity::Selective).encode().0, 0x1234_5678_9000 << 64 | 0xabcd_0032);
    let drained = Descriptor::Iotlb {
        granularity: Granularity::Selective,
        domain: DomainId::new(1),
        first: Iova::new(0x20_0000),
        order: 9,
        leaf_only: true,
        drain_writes: true,
        drain_reads: true,
    };
    assert_eq!(drained.encode().0, 0x20_0000 << 64 | 1 << 70 | 9 << 64 | 0x1_00f2);
    assert_eq!(Descriptor::InterruptEntries { entries: None }.encode().0, 4);
    let index = Descriptor::InterruptEntries { entries: Some((0xfffe, 1)) };
    assert_eq!(index.encode().0, 0xfffe << 32 | 1 << 27 | 0x14);
    let of_pasid = |pages| Descriptor::PasidIotlb { domain: DOMAIN, pages }.encode().0;
    assert_eq!(of_pasid(None), 0xabcd_0026);
    assert_eq!(of_pasid(Some((Iova::new(0x1234_5000), 3, true))), 0x1234_5043 << 64 | 0xabcd_0036);
    assert_eq!(Descriptor::PasidCache { domain: None }.encode().0, 0x37);
    assert_eq!(Descriptor::PasidCache { domain: Some(DOMAIN) }.encode().0, 0xabcd_0007);
    let wait = |completion, fence| Descriptor::Wait(Wait { completion, fence }).encode().0;
    assert_eq!(wait(Completion::Interrupt, false), 0x15);
    let status = Completion::Status { address: PhysAddr::new(0x1_0000_0ff8), value: 0xdead_beef };
    assert_eq!(wait(status, true), 0x1_0000_0ff8 << 64 | 0xdead_beef << 32 | 0x65);
}

#[test]
fn device_tlb_sizes_are_runs_of_ones() {
    let device = |scope| {
        let device =
            Descriptor::DeviceTlb { source: 0x0308, physical_function: 0xabcd, queue_depth: depth(5), scope };
        let encoded = device.encode();
        assert_eq!(encoded.low(), 0xabc << 52 | 0x0308 << 32 | 5 << 16 | 0xd << 12 | 3);
        encoded.high()
    };
    let pages = |first, order| DeviceTlbScope::Pages { first: Iova::new(first), order };
    assert_eq!(device(pages(0x5000, 0)), 0x5000);
    assert_eq!(device(pages(0x6000, 1)), 0x6001, "8 KiB: bit 12 is 0");
    assert_eq!(device(pages(0x4000, 2)), 0x5001, "16 KiB: bit 12 is 1, bit 13 is 0");
    assert_eq!(device(pages(0x20_0000, 9)), 0x2f_f001, "2 MiB: 19:12 ones, bit 20 is 0");
    assert_eq!(device(DeviceTlbScope::All), 0x7fff_ffff_ffff_f001);
}

#[test]
fn a_queue_depth_of_32_is_stored_as_0() {
    let device = Descriptor::DeviceTlb {
        source: 0,
        physical_function: 0,
        queue_depth: depth(32),
        scope: DeviceTlbScope::All,
    };
    assert_eq!(device.encode().low(), 3);
    assert_eq!(device.encode().decode(), Ok(device));
}

/// Everything that can be said survives a round trip.
#[test]
fn decode_undoes_encode() {
    let mut all = std::vec::Vec::new();
    for granularity in [Granularity::Global, Granularity::Domain] {
        all.push(Descriptor::Iotlb {
            granularity,
            domain: DOMAIN,
            first: Iova::new(0),
            order: 0,
            leaf_only: false,
            drain_writes: true,
            drain_reads: false,
        });
    }
    for mask in [FunctionMask::Exact, FunctionMask::Bit2, FunctionMask::Bits21, FunctionMask::Device] {
        all.push(Descriptor::Context {
            granularity: Granularity::Selective,
            domain: DOMAIN,
            source: 0xff07,
            mask,
        });
    }
    for order in 0..=DeviceTlbScope::MAX_ORDER {
        let scope = DeviceTlbScope::Pages { first: Iova::new(0), order };
        all.push(Descriptor::DeviceTlb {
            source: 7,
            physical_function: 0xffff,
            queue_depth: depth(1),
            scope,
        });
    }
    all.push(iotlb(Granularity::Selective));
    all.push(Descriptor::PasidIotlb { domain: DOMAIN, pages: None });
    all.push(Descriptor::PasidIotlb { domain: DOMAIN, pages: Some((Iova::new(0x7000), 5, false)) });
    all.push(Descriptor::PasidCache { domain: None });
    all.push(Descriptor::PasidCache { domain: Some(DOMAIN) });
    all.push(Descriptor::InterruptEntries { entries: None });
    all.push(Descriptor::InterruptEntries { entries: Some((0x8000, 15)) });
    all.push(Descriptor::Wait(Wait { completion: Completion::Interrupt, fence: false }));
    let completion = Completion::Status { address: PhysAddr::new(0xf_ffff_ffff_fffc), value: u32::MAX };
    all.push(Descriptor::Wait(Wait { completion, fence: true }));
    for descriptor in all {
        assert_eq!(descriptor.encode().decode(), Ok(descriptor));
    }
}

/// A descriptor with any one further bit set is another one or none: never the same.
#[test]
fn reserved_bits_are_not_ignored() {
    let plain = Descriptor::Wait(Wait { completion: Completion::Interrupt, fence: false });
    for bit in 0..128 {
        let raw = RawDescriptor(plain.encode().0 ^ 1 << bit);
        assert_ne!(raw.decode(), Ok(plain), "bit {bit}");
    }
    assert!(RawDescriptor(0).decode().is_err());
    assert!(RawDescriptor(0x35).decode().is_err(), "a wait with both completions");
    assert!(RawDescriptor(0x5).decode().is_err(), "a wait with none");
    assert!(RawDescriptor(0x17).decode().is_err(), "the entry of one PASID, which nobody asks for");
    assert!(RawDescriptor(0x201).decode().is_err(), "high part of the type");
    assert!(RawDescriptor(u128::MAX).decode().is_err());
}
