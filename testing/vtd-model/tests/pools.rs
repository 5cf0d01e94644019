//! Pools: buffers that stay mapped. What a device reaches of them, and when it no longer does.

use std::{collections::BTreeSet, thread};

use driven::Driven;
use iommu::{
    Bidirectional, DmaDevice, DmaError, FromDevice, Options, Pool, PoolBuffer, ToDevice, dma::Direction,
    options::Mode,
};
use vtd_model::{Access, Device, MachineConfig, UnitConfig, become_cpu};

const PAGE: u64 = 4096;

fn start() -> (Driven, DmaDevice, Device) {
    let driven = Driven::start(MachineConfig::plain(1)).expect("units that work");
    let (handle, device) = claim(&driven);
    (driven, handle, device)
}

fn claim(driven: &Driven) -> (DmaDevice, Device) {
    let function = driven.function(0);
    let handle = driven.iommu.claim(function).expect("a free function");
    driven.enable(function);
    (handle, driven.device(function))
}

/// Takes all that are left.
fn drain<D: Direction>(pool: &Pool<D>) -> Vec<PoolBuffer<D>> {
    std::iter::from_fn(|| pool.take()).collect()
}

/// Pages that the device reaches, with what it may do there.
fn reached(device: &Device) -> BTreeSet<(u64, bool, bool)> {
    let runs = device.reach_of_tables().expect("translated");
    let pages = runs
        .iter()
        .flat_map(|run| (0..run.bytes / PAGE).map(|page| (run.address + page * PAGE, run.read, run.write)));
    pages.collect()
}

/// Every size that lies differently: small ones, a page, more than a page, more than is mapped at once.
const SIZES: [(usize, usize); 8] =
    [(1, 65), (64, 70), (1514, 40), (2048, 33), (2049, 3), (4096, 20), (4097, 9), (70_000, 2)];

#[test]
fn buffers_lie_apart_in_whole_pages_that_hold_nothing_else() {
    let (driven, handle, device) = start();
    for (bytes, count) in SIZES {
        let pool = handle.dma_pool(bytes, count, FromDevice).expect("memory");
        assert_eq!((pool.capacity(), pool.buffer_len()), (count, bytes));
        let buffers = drain(&pool);
        assert_eq!(buffers.len(), count);
        let mut pages = BTreeSet::new();
        let mut ends: Vec<(u64, u64)> = buffers
            .iter()
            .map(|buffer| (buffer.iova().as_u64(), buffer.iova().as_u64() + buffer.len() as u64))
            .collect();
        ends.sort_unstable();
        assert!(ends.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{bytes}: two buffers overlap");
        for &(first, end) in &ends {
            assert_eq!((end - first, first % 64), (bytes as u64, 0));
            let within = first / PAGE == (end - 1) / PAGE;
            assert!(within || (bytes > 4096 && first % PAGE == 0), "{bytes}: {first:#x} straddles");
            pages.extend((first / PAGE..=(end - 1) / PAGE).map(|page| (page * PAGE, false, true)));
        }
        assert_eq!(reached(&device), pages, "{bytes}");
        drop((pool, buffers));
        driven.pump();
        assert!(reached(&device).is_empty(), "{bytes}");
        assert_eq!(driven.iommu.live_mappings(), 0);
    }
    driven.assert_content("after pools");
}

#[test]
fn bytes_go_both_ways_and_stay_in_their_buffer() {
    let (driven, handle, device) = start();
    for (bytes, count) in SIZES {
        let pool = handle.dma_pool(bytes, count, Bidirectional).expect("memory");
        let mut buffers = drain(&pool);
        let sent = |index: usize| vec![index as u8 + 1; bytes];
        buffers.iter_mut().enumerate().for_each(|(index, buffer)| buffer.copy_from(0, &sent(index)));
        for (index, buffer) in buffers.iter().enumerate() {
            let mut got = vec![0; bytes];
            device.read(buffer.iova().as_u64(), &mut got).expect("mapped");
            assert_eq!(got, sent(index), "{bytes}");
            device.write(buffer.iova().as_u64() + bytes as u64 - 1, b"!").expect("mapped");
        }
        for (index, buffer) in buffers.iter().enumerate() {
            let mut expected = sent(index);
            expected[bytes - 1] = b'!';
            for offset in [0, bytes / 3] {
                let mut got = vec![0; bytes - offset];
                buffer.copy_to(offset, &mut got);
                assert_eq!(got, expected[offset..], "{bytes} at {offset}");
            }
        }
    }
    driven.assert_content("after copies");
}

#[test]
fn the_direction_says_what_the_device_may_do() {
    let (_driven, handle, device) = start();
    let (sent, received) = (handle.dma_pool(256, 4, ToDevice), handle.dma_pool(256, 4, FromDevice));
    let (sent, received) = (sent.expect("memory"), received.expect("memory"));
    for (iova, read, write) in [
        (sent.take().expect("a buffer").iova(), true, false),
        (received.take().expect("a buffer").iova(), false, true),
    ] {
        assert_eq!(device.probe(iova.as_u64(), Access::Read).is_ok(), read);
        assert_eq!(device.probe(iova.as_u64(), Access::Write).is_ok(), write);
    }
}

#[test]
fn copies_beyond_a_buffer_are_refused() {
    let (_driven, handle, _) = start();
    let pool = handle.dma_pool(100, 2, Bidirectional).expect("memory");
    for (offset, bytes) in [(0, 101), (100, 1), (1, 100), (usize::MAX, 2)] {
        let mut buffer = pool.take().expect("a buffer");
        let read = std::panic::AssertUnwindSafe(|| buffer.copy_to(offset, &mut vec![0; bytes]));
        assert!(std::panic::catch_unwind(read).is_err(), "{bytes} read at {offset}");
        let write = std::panic::AssertUnwindSafe(|| buffer.copy_from(offset, &vec![0; bytes]));
        assert!(std::panic::catch_unwind(write).is_err(), "{bytes} written at {offset}");
    }
}

#[test]
fn taking_and_giving_back_costs_no_memory_and_no_register() {
    let (driven, handle, _) = start();
    let pool = handle.dma_pool(2048, 8, FromDevice).expect("memory");
    let before = (driven.machine.register_writes(0), driven.machine.live_table_pages());
    driven.machine.set_shortage(Some(0));
    for _ in 0..100 {
        let taken = drain(&pool);
        assert_eq!(taken.len(), 8);
        // A handler of an interrupt does the same.
        vtd_model::in_interrupt(|| {
            assert!(pool.take().is_none());
            drop(taken);
            assert!(pool.take().is_some());
        });
    }
    assert_eq!((driven.machine.register_writes(0), driven.machine.live_table_pages()), before);
}

#[test]
fn no_buffer_is_in_two_hands() {
    let (_driven, handle, _) = start();
    let pool = handle.dma_pool(64, 6, Bidirectional).expect("memory");
    thread::scope(|scope| {
        for cpu in 0..4_u8 {
            let pool = pool.clone();
            scope.spawn(move || {
                become_cpu(cpu.into());
                for round in 0..5_000_u16 {
                    let Some(mut buffer) = pool.take() else { continue };
                    let mine = [cpu; 64].map(|byte| byte.wrapping_add(round as u8));
                    buffer.copy_from(0, &mine);
                    let mut read = [0; 64];
                    buffer.copy_to(0, &mut read);
                    assert_eq!(read, mine, "somebody else writes it");
                }
            });
        }
    });
    assert_eq!(drain(&pool).len(), 6);
}

#[test]
fn a_buffer_keeps_its_pool() {
    let (driven, handle, device) = start();
    let pool = handle.dma_pool(4096, 2, ToDevice).expect("memory");
    let buffer = pool.take().expect("a buffer");
    drop((pool, handle));
    driven.pump();
    assert!(device.probe(buffer.iova().as_u64(), Access::Read).is_ok());
    let iova = buffer.iova().as_u64();
    drop(buffer);
    driven.pump();
    assert!(device.probe(iova, Access::Read).is_err());
    assert_eq!(driven.iommu.live_mappings(), 0);
}

#[test]
fn a_revoked_pool_is_out_of_reach_and_comes_back_when_the_device_is_quiet() {
    let (driven, handle, device) = start();
    let pool = handle.dma_pool(2048, 100, Bidirectional).expect("memory");
    let mut buffer = pool.take().expect("a buffer");
    let function = handle.function();
    driven.iommu.quarantine(function).expect("a unit that works");
    driven.enable(function);
    assert!(device.probe(buffer.iova().as_u64(), Access::Read).is_err());
    assert!(reached(&device).is_empty());
    // Its driver notices in its own time: what it does meanwhile harms nobody.
    buffer.copy_from(0, b"unheard");
    assert!(pool.take().is_some());
    assert_eq!(handle.dma_pool(2048, 1, Bidirectional).map(drop), Err(DmaError::Revoked));
    drop((pool, buffer, handle));
    driven.pump();
    assert!(driven.iommu.live_mappings() > 0, "its memory came back before the device was quiet");
    driven.iommu.release(function, |_| true).expect("a quiet device");
    driven.pump();
    assert_eq!(driven.iommu.live_mappings(), 0);
    let (handle, _) = claim(&driven);
    assert!(handle.dma_pool(2048, 1, Bidirectional).is_ok());
    driven.machine.audit();
    driven.assert_content("after a revocation");
}

#[test]
fn pools_that_cannot_be_are_an_error() {
    let (driven, handle, device) = start();
    for (bytes, count, wrong) in
        [(0, 1, 0), (1, 0, 0), (usize::MAX, 1, usize::MAX), (1, usize::MAX, usize::MAX)]
    {
        let refused = handle.dma_pool(bytes, count, ToDevice).map(drop);
        assert_eq!(refused, Err(DmaError::BadLength { count: wrong }), "{bytes} x {count}");
    }
    assert_eq!(handle.dma_pool(1 << 62, 1, ToDevice).map(drop), Err(DmaError::OutOfMemory));
    // A shortage half way leaves nothing.
    for remaining in 0..64 {
        driven.machine.set_shortage(Some(remaining));
        let made = handle.dma_pool(4096, 600, ToDevice);
        driven.machine.set_shortage(None);
        let done = made.is_ok();
        assert!(done || matches!(made, Err(DmaError::OutOfMemory)));
        drop(made);
        driven.pump();
        assert_eq!(driven.iommu.live_mappings(), 0, "{remaining}");
        assert!(reached(&device).is_empty(), "{remaining}");
        if done {
            assert!(remaining > 0, "no memory was needed");
            driven.assert_content("after shortages");
            return;
        }
    }
    panic!("it always fails");
}

#[test]
fn the_mask_of_the_device_holds_for_pools() {
    let (_driven, handle, _) = start();
    handle.set_address_bits(32);
    let pool = handle.dma_pool(4096, 64, ToDevice).expect("memory");
    assert!(drain(&pool).iter().all(|buffer| buffer.iova().as_u64() < 1 << 32));
}

#[test]
fn without_isolation_a_pool_lies_where_its_memory_does() {
    let options = Options { mode: Mode::Off, ..Options::default() };
    let driven = Driven::start_with(MachineConfig::plain(1), options).expect("nothing to start");
    let (handle, device) = claim(&driven);
    for (bytes, count) in SIZES {
        let pool = handle.dma_pool(bytes, count, Bidirectional).expect("memory");
        for (index, buffer) in drain(&pool).iter_mut().enumerate() {
            buffer.copy_from(0, &[index as u8]);
            let mut got = [0];
            device.read(buffer.iova().as_u64(), &mut got).expect("all of memory");
            assert_eq!(got, [index as u8]);
        }
    }
    driven.pump();
    assert_eq!(driven.iommu.live_mappings(), 0);
}

/// With caching mode on a unit may remember that nothing was mapped.
#[test]
fn a_unit_that_caches_what_is_not_there_sees_a_new_pool() {
    let mut config = MachineConfig::plain(1);
    config.units[0] = UnitConfig { caching_mode: true, ..UnitConfig::plain(config.units[0].base) };
    let driven = Driven::start(config).expect("units that work");
    let (handle, device) = claim(&driven);
    for _ in 0..4 {
        let pool = handle.dma_pool(4096, 20, FromDevice).expect("memory");
        let iovas: Vec<u64> = drain(&pool).iter().map(|buffer| buffer.iova().as_u64()).collect();
        iovas.iter().for_each(|&iova| assert!(device.probe(iova, Access::Write).is_ok()));
        drop(pool);
        driven.pump();
        iovas.iter().for_each(|&iova| assert!(device.probe(iova, Access::Write).is_err()));
    }
    driven.assert_content("in caching mode");
}
