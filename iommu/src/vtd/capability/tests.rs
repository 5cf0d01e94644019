use super::*;

fn decode(cap: u64, ecap: u64) -> Result<Capability, CapabilityError> {
    let version = Version::new().with_major(1);
    Capability::decode(version, Capabilities::from_bits(cap), ExtendedCapabilities::from_bits(ecap))
}

/// What QEMU 10.0 reports by default.
const QEMU: (u64, u64) = (0x00d2_008c_222f_0606, 0x00f0_0f4a);

#[test]
fn qemu_is_understood() {
    let qemu = decode(QEMU.0, QEMU.1).unwrap();
    assert_eq!(qemu.domain_ids(), 1 << 16);
    assert_eq!((qemu.widest(), qemu.address_bits()), (Some(AddressWidth::Bits48), 48));
    assert_eq!(qemu.leaf_sizes(), LeafSizes::all());
    assert_eq!(qemu.page_selective_order(), Some(18));
    assert_eq!((qemu.fault_record(0), qemu.fault_records()), (0x220, 1));
    assert_eq!(qemu.invalidate_area(), 0xf0);
    assert_eq!(qemu.register_bytes(), 4096);
    assert!(qemu.has_queue() && qemu.has_interrupt_remapping() && qemu.has_pass_through());
    assert!(qemu.drains_reads() && qemu.drains_writes());
    assert!(!qemu.needs_write_buffer_flush() && !qemu.caches_not_present() && !qemu.walks_coherently());
    assert!(!qemu.set_root_invalidates() && !qemu.has_extended_interrupts());
    assert!(decode(QEMU.0 | 1 << 7, QEMU.1).unwrap().caches_not_present());
    assert!(decode(QEMU.0 | 1 << 63, QEMU.1).unwrap().set_root_invalidates());
    assert!(decode(QEMU.0, QEMU.1 | 1 << 4).unwrap().has_extended_interrupts());
}

#[test]
fn a_unit_that_translates_nothing_has_no_width() {
    let none = decode(QEMU.0 & !(0x1f << 8), QEMU.1).unwrap();
    assert_eq!((none.widest(), none.fitting_width()), (None, None));
}

#[test]
fn the_fitting_width_is_no_larger_than_the_hardware_address_width() {
    let width = |sagaw: u64, mgaw: u64| {
        let cap = QEMU.0 & !(0x1f << 8 | 0x3f << 16) | sagaw << 8 | (mgaw - 1) << 16;
        decode(cap, QEMU.1).unwrap().fitting_width()
    };
    assert_eq!(width(0b0110, 39), Some(AddressWidth::Bits39));
    assert_eq!(width(0b0110, 40), Some(AddressWidth::Bits48));
    assert_eq!(width(0b0010, 48), Some(AddressWidth::Bits39));
    assert_eq!(width(0b1110, 57), Some(AddressWidth::Bits57));
    assert_eq!(width(0b1000, 39), Some(AddressWidth::Bits57));
}

#[test]
fn a_first_stage_goes_by_the_second_stages_width_of_as_many_levels() {
    let width =
        |sagaw: u64| decode(QEMU.0 & !(0x1f << 8) | sagaw << 8, QEMU.1).unwrap().width_of_first_stage();
    let [bits_39, bits_48, bits_57] =
        [AddressWidth::Bits39, AddressWidth::Bits48, AddressWidth::Bits57].map(Some);
    assert_eq!([0b0100, 0b0110, 0b1110, 0b1100].map(width), [bits_48; 4]);
    assert_eq!([0, 0b0010, 0b1000, 0b1010].map(width), [None, bits_39, bits_57, bits_57]);
}

/// 2 MiB always, whatever the second stage has.
#[test]
fn leaves_of_the_first_stage_have_sizes_of_their_own() {
    const SECOND_STAGE_SIZES: u64 = 0xf << 34;
    const HUGE: u64 = 1 << 56;
    let sizes = |cap: u64| decode(cap, QEMU.1).unwrap().first_stage_leaf_sizes();
    let always = LeafSizes::SIZE_4K | LeafSizes::SIZE_2M;
    for second in [0, 1 << 34, 3 << 34] {
        let cap = QEMU.0 & !(SECOND_STAGE_SIZES | HUGE) | second;
        assert_eq!((sizes(cap), sizes(cap | HUGE)), (always, LeafSizes::all()), "{second:#x}");
    }
}

#[test]
fn registers_that_cannot_be_are_refused() {
    assert_eq!(decode(u64::MAX, QEMU.1), Err(CapabilityError::Absent { register: "CAP" }));
    assert_eq!(decode(QEMU.0, u64::MAX), Err(CapabilityError::Absent { register: "ECAP" }));
    assert_eq!(decode(QEMU.0 | 7, QEMU.1), Err(CapabilityError::ReservedDomainCount));
    let version = Version::new();
    let (cap, ecap) = (Capabilities::from_bits(QEMU.0), ExtendedCapabilities::from_bits(QEMU.1));
    assert_eq!(Capability::decode(version, cap, ecap), Err(CapabilityError::NoVersion));
}

#[test]
fn register_areas_may_not_overlap() {
    let faults_at = |units: u64| decode(QEMU.0 & !(0x3ff << 24) | units << 24, QEMU.1);
    assert_eq!(faults_at(0), Err(CapabilityError::Overlap { field: "CAP.FRO", offset: 0 }));
    assert_eq!(faults_at(0xe), Err(CapabilityError::Overlap { field: "CAP.FRO", offset: 0xe0 }));
    assert_eq!(faults_at(0xf), Err(CapabilityError::Overlap { field: "ECAP.IRO", offset: 0xf0 }));
    assert!(faults_at(0x10).is_ok());
    let invalidate_at = |units: u64| decode(QEMU.0, QEMU.1 & !(0x3ff << 8) | units << 8);
    assert_eq!(invalidate_at(0), Err(CapabilityError::Overlap { field: "ECAP.IRO", offset: 0 }));
    assert_eq!(invalidate_at(0x22), Err(CapabilityError::Overlap { field: "ECAP.IRO", offset: 0x220 }));
    assert!(invalidate_at(0x21).is_ok() && invalidate_at(0x23).is_ok());
}

#[test]
fn trap_a_register_set_larger_than_a_page_is_mapped_whole() {
    let largest = decode(QEMU.0 | 0x3ff << 24 | 0xff << 40, QEMU.1).unwrap();
    assert_eq!(largest.register_bytes(), 16 * 0x3ff + 16 * 256);
    let far = decode(QEMU.0, QEMU.1 | 0x3ff << 8).unwrap();
    assert_eq!(far.register_bytes(), 16 * 0x3ff + 16);
}

#[test]
fn queue_features_need_the_queue() {
    let without = decode(QEMU.0, QEMU.1 & !(1 << 1) | 1 << 2).unwrap();
    assert!(!without.has_interrupt_remapping() && !without.has_device_tlbs());
}
