//! Mappings at addresses that the driver chooses: what is refused, by which name, and that the range is the mapping's
//! alone for as long as it lives.

use driven::Driven;
use iommu::{Bidirectional, DmaDevice, DmaError, FromDevice, Iova};
use vtd_model::{Access, MachineConfig, ModelBuffer, ReservedMemory};

const PAGE: u64 = 0x1000;
/// Three pages, that firmware reserves for the function.
const RESERVED: (u64, u64) = (0x5000_0000, 0x5000_2fff);

fn machine() -> (Driven, DmaDevice) {
    let mut config = MachineConfig::plain(2);
    (config.units[0].sagaw, config.units[0].mgaw) = (0b010, 39);
    config.relax_ns = 1_000_000;
    let function = config.functions[0].address;
    config.reserved.push(ReservedMemory { function, base: RESERVED.0, limit: RESERVED.1 });
    let driven = Driven::start(config).expect("a unit that works");
    let handle = driven.iommu.claim(function).expect("a free function");
    driven.enable(function);
    (driven, handle)
}

fn buffer(driven: &Driven, pages: u32) -> ModelBuffer {
    driven.machine.allocate_buffer(pages, 1).expect("memory")
}

#[test]
fn each_refusal_has_its_own_name_and_leaves_everything_as_it_was() {
    let (driven, handle) = machine();
    let device = driven.device(driven.function(0));
    let taken = handle.dma_map_at(buffer(&driven, 2), FromDevice, Iova::new(0x7000_0000)).expect("free");
    let before = (device.reach_of_tables(), driven.iommu.live_mappings());
    let last = (1 << 39) - 1;
    let of = |first: u64, bits: u32, name: fn(Iova) -> DmaError| (first, bits, name(Iova::new(first)));
    let beyond = |first: u64, bits: u32, last: u64| {
        (first, bits, DmaError::IovaBeyond { iova: Iova::new(first), last })
    };
    let cases = [
        of(0x7000_0000, 64, |iova| DmaError::IovaTaken { iova }),
        of(0x7000_1000, 64, |iova| DmaError::IovaTaken { iova }),
        of(0x6fff_f000, 64, |iova| DmaError::IovaTaken { iova }),
        of(0xfee0_0000, 64, |iova| DmaError::IovaReserved { iova }),
        of(0xfedf_f000, 64, |iova| DmaError::IovaReserved { iova }),
        of(0xfeef_f000, 64, |iova| DmaError::IovaReserved { iova }),
        of(RESERVED.0, 64, |iova| DmaError::IovaReserved { iova }),
        of(RESERVED.0 - PAGE, 64, |iova| DmaError::IovaReserved { iova }),
        of(RESERVED.1 + 1 - PAGE, 64, |iova| DmaError::IovaReserved { iova }),
        of(0x6000_0008, 64, |iova| DmaError::IovaUnaligned { iova }),
        beyond(last + 1, 64, last),
        beyond(last + 1 - PAGE, 64, last),
        beyond(u64::MAX - PAGE + 1, 64, last),
        beyond(u64::MAX - 2 * PAGE + 1, 64, last),
        beyond(1 << 32, 32, u32::MAX.into()),
        beyond((1 << 32) - PAGE, 32, u32::MAX.into()),
        // Being out of reach comes before what else is there.
        beyond(0x7000_0000, 30, (1 << 30) - 1),
    ];
    for (first, bits, expected) in cases {
        handle.set_address_bits(bits);
        let refused = handle.dma_map_at(buffer(&driven, 2), Bidirectional, Iova::new(first));
        let Err(rejected) = refused else { panic!("{first:#x} with {bits} bits was mapped") };
        assert_eq!(rejected.error, expected, "{first:#x}");
        assert!(rejected.buffer.is_some(), "{first:#x}");
        assert_eq!((device.reach_of_tables(), driven.iommu.live_mappings()), before, "{first:#x}");
    }
    handle.set_address_bits(64);
    // Just beside each of them is free.
    for first in [0x6fff_e000, 0x7000_2000, 0xfedf_e000, 0xfef0_0000, RESERVED.1 + 1, last + 1 - 2 * PAGE] {
        let mapping = handle.dma_map_at(buffer(&driven, 2), FromDevice, Iova::new(first));
        let mapping = mapping.unwrap_or_else(|rejected| panic!("{first:#x}: {}", rejected.error));
        assert!(device.probe(first + PAGE, Access::Write).is_ok());
        mapping.unmap().expect("a unit that works");
    }
    taken.unmap().expect("a unit that works");
    driven.assert_content("after refusals");
}

/// In a window so small that the allocator has to look at every address, it never comes upon one that was chosen, and
/// finds it again when it is free.
#[test]
fn a_chosen_range_is_nobody_elses_until_it_is_unmapped() {
    // What bits that small leave: the window is 256 pages, page 0 is never handed out.
    const BITS: u32 = 20;
    const WINDOW: u64 = 1 << (BITS - 12);
    let (driven, handle) = machine();
    handle.set_address_bits(BITS);
    let fill = |expected: u64| {
        let mut all = Vec::new();
        let error = loop {
            match handle.dma_map(buffer(&driven, 1), FromDevice) {
                Ok(mapping) => all.push(mapping),
                Err(rejected) => break rejected.error,
            }
        };
        assert!(matches!(error, DmaError::NoIova { .. }), "{error}");
        assert_eq!(all.len() as u64, expected);
        all
    };
    for chosen in [1_u64, 7, 64, 253] {
        // Addresses are in the magazines, too, when the range is asked for.
        for mapping in fill(WINDOW - 1) {
            mapping.unmap().expect("a unit that works");
        }
        let iova = Iova::new(chosen * PAGE);
        let fixed = handle.dma_map_at(buffer(&driven, 3), FromDevice, iova).expect("free");
        assert_eq!(fixed.iova(), iova);
        let others = fill(WINDOW - 1 - 3);
        let range = iova.as_u64()..iova.as_u64() + 3 * PAGE;
        assert!(others.iter().all(|other| !range.contains(&other.iova().as_u64())));
        let refused = handle.dma_map_at(buffer(&driven, 1), FromDevice, Iova::new((chosen + 2) * PAGE));
        let error = refused.map(drop).map_err(|rejected| rejected.error);
        assert_eq!(error, Err(DmaError::IovaTaken { iova: Iova::new((chosen + 2) * PAGE) }));
        fixed.unmap().expect("a unit that works");
        let again = fill(3);
        assert!(again.iter().all(|mapping| range.contains(&mapping.iova().as_u64())));
        others.into_iter().chain(again).for_each(|mapping| drop(mapping.unmap().expect("works")));
    }
    driven.machine.audit();
    driven.assert_content("with a full window");
}

#[test]
fn nothing_is_mapped_at_a_chosen_address_after_the_device_was_taken() {
    let (driven, handle) = machine();
    let iova = Iova::new(0x7000_0000);
    let mapping = handle.dma_map_at(buffer(&driven, 1), FromDevice, iova).expect("free");
    driven.iommu.quarantine(driven.function(0)).expect("a unit that works");
    let refused = handle.dma_map_at(buffer(&driven, 1), FromDevice, Iova::new(0x7100_0000));
    assert_eq!(refused.map(drop).map_err(|rejected| rejected.error), Err(DmaError::Revoked));
    let physical = mapping.iova();
    assert_eq!(mapping.unmap().map(drop), Err(DmaError::Revoked), "{physical}");
    driven.iommu.release(driven.function(0), |_| true).expect("a unit that works");
    driven.pump();
    assert_eq!(driven.iommu.live_mappings(), 0);
    // The next owner starts with all addresses free.
    let next = driven.iommu.claim(driven.function(0)).expect("a free function");
    let mapping = next.dma_map_at(buffer(&driven, 1), FromDevice, iova).expect("free");
    mapping.unmap().expect("a unit that works");
    driven.machine.audit();
    driven.assert_content("after a change of owner");
}
