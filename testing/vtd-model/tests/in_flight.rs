//! Accesses that were translated before an unmapping and get to memory after it, unless the unit waits for them.

use driven::Driven;
use iommu::Bidirectional;
use vtd_model::MachineConfig;

/// Units that can wait for neither, one or both kinds, told by descriptor and by register. What one cannot be told to
/// wait for it waits for by itself, and takes it badly to be told.
#[test]
fn when_an_unmapping_returns_no_access_is_in_flight() {
    for traits in 0..8_u8 {
        let mut config = MachineConfig::plain(1);
        let unit = &mut config.units[0];
        (unit.drains_writes, unit.drains_reads) = (traits & 1 != 0, traits & 2 != 0);
        unit.queued = traits & 4 != 0;
        (unit.interrupt_remapping, unit.device_tlb) = (unit.queued, unit.queued);
        // The first look at a wait's status is not to be what lets time pass.
        (unit.descriptor_ns, unit.command_ns) = (0, 0);
        let driven = Driven::start(config).expect("a unit that works");
        let function = driven.function(0);
        let handle = driven.iommu.claim(function).expect("a free function");
        driven.enable(function);
        let device = driven.device(function);
        for round in 0..20_u8 {
            let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
            let mapping = handle.dma_map(buffer, Bidirectional).expect("room");
            let iova = mapping.iova().as_u64();
            device.post_write(iova, &[round; 8]).expect("mapped");
            device.post_read(iova + 64, 8).expect("mapped");
            let buffer = mapping.unmap().expect("a unit that works");
            assert_eq!(buffer.as_slice()[..8], [round; 8], "traits {traits:#b}: it came too late");
            driven.assert_content(&format!("traits {traits:#b}, round {round}"));
        }
    }
}
