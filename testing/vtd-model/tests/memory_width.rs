//! Memory beyond the addresses that an entry can name, because firmware says so (host address width of the DMAR table).

use driven::Driven;
use iommu::{Bidirectional, ClaimError, dma::DmaError};
use vtd_model::MachineConfig;

/// A machine whose memory for buffers, or for tables too, is beyond.
fn start(host_address_bits: u8) -> Driven {
    let mut config = MachineConfig::plain(1);
    assert_eq!((config.memory.tables >> 33, config.memory.buffers >> 34), (1, 1));
    config.host_address_bits = host_address_bits;
    Driven::start(config).expect("units that work")
}

#[test]
fn a_buffer_beyond_is_refused_and_named() {
    let driven = start(34);
    let handle = driven.iommu.claim(driven.function(0)).expect("a free function");
    let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
    let rejected = handle.dma_map(buffer, Bidirectional).expect_err("an address that is too long");
    let DmaError::OutOfRange { memory } = rejected.error else { panic!("{}", rejected.error) };
    assert!(memory.start.as_u64() >> 34 != 0 && memory.bytes == 4096, "{memory:?}");
    assert!(rejected.buffer.is_some(), "nothing was mapped");
    driven.assert_content("refused");
}

#[test]
fn a_table_page_beyond_goes_back_and_is_never_linked() {
    let driven = start(33);
    let pages = driven.machine.live_table_pages();
    let refused = driven.iommu.claim(driven.function(0)).map(drop);
    assert_eq!(refused, Err(ClaimError::Domain(DmaError::OutOfMemory)));
    assert_eq!(driven.machine.live_table_pages(), pages);
    driven.machine.audit();
    driven.assert_content("refused");
}
