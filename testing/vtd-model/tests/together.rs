//! Many buffers at once: lists, batches, and what they cost; the limits of a device's own lists; buffers that the CPU
//! has for a while.

mod part;

use std::panic::{self, AssertUnwindSafe};

use driven::Driven;
use iommu::{
    Bidirectional, DmaBuffer, DmaDevice, DmaError, FromDevice, Iova, Mapping, Options, PageBuffer, ToDevice,
    dma::{Direction, RawBuffer, ScatterList, SegmentLimits, Stuck},
    options::Mode,
};
use part::{BESIDE, Part};
use vtd_model::{Access, Device, MachineConfig, ModelBuffer, UnitConfig};

const PAGE: usize = 4096;

fn start() -> (Driven, DmaDevice, Device) {
    start_on(MachineConfig::plain(2), Options::default())
}

fn start_on(mut config: MachineConfig, options: Options) -> (Driven, DmaDevice, Device) {
    config.relax_ns = 1_000_000;
    let driven = Driven::start_with(config, options).expect("units that work");
    let (handle, device) = claim(&driven, 0);
    (driven, handle, device)
}

fn claim(driven: &Driven, index: usize) -> (DmaDevice, Device) {
    let function = driven.function(index);
    let handle = driven.iommu.claim(function).expect("a free function");
    driven.enable(function);
    (handle, driven.device(function))
}

fn map<B: DmaBuffer, D: Direction>(handle: &DmaDevice, buffer: B, direction: D) -> Mapping<B, D> {
    handle.dma_map(buffer, direction).map_err(|rejected| rejected.error).expect("room")
}

fn buffer(driven: &Driven, pages: u32) -> ModelBuffer {
    driven.machine.allocate_buffer(pages, 1).expect("memory")
}

fn list<B: DmaBuffer>(buffers: impl IntoIterator<Item = B>) -> ScatterList<B> {
    let mut list = ScatterList::with_capacity(0).expect("memory");
    buffers.into_iter().for_each(|buffer| list.push(buffer).map_err(|r| r.error).expect("memory"));
    list
}

/// Register writes and descriptors that `work` takes of the unit.
fn cost<R>(driven: &Driven, work: impl FnOnce() -> R) -> (u64, u64, R) {
    let before = (driven.machine.register_writes(0), driven.machine.descriptors(0));
    let result = work();
    let after = (driven.machine.register_writes(0), driven.machine.descriptors(0));
    (after.0 - before.0, after.1 - before.1, result)
}

#[test]
fn an_unmap_rings_once_and_waits_once_whatever_its_length_and_a_map_not_at_all() {
    let (driven, handle, _) = start();
    // The caches of addresses and tables are filled.
    drop(map(&handle, buffer(&driven, 1), Bidirectional).unmap());
    for pages in [1, 2, 16, 256, 600] {
        let memory = buffer(&driven, pages);
        let (writes, descriptors, mapping) = cost(&driven, || map(&handle, memory, Bidirectional));
        assert_eq!((writes, descriptors), (0, 0), "map of {pages}");
        let (writes, descriptors, _buffer) = cost(&driven, || mapping.unmap().expect("works"));
        assert_eq!(writes, 1, "unmap of {pages}");
        assert!((2..=3).contains(&descriptors), "unmap of {pages}: {descriptors} descriptors");
    }
    let parts = list([Part::new(5, 100), Part::new(0, PAGE), Part::new(77, 3 * PAGE)]);
    let (writes, descriptors, mapping) = cost(&driven, || handle.dma_map_sg(parts, Bidirectional));
    assert_eq!((writes, descriptors), (0, 0), "map of a list");
    let (writes, descriptors, _list) = cost(&driven, || mapping.expect("room").unmap().expect("works"));
    assert_eq!(writes, 1, "unmap of a list");
    assert!((2..=3).contains(&descriptors), "unmap of a list: {descriptors} descriptors");
}

#[test]
fn a_batch_comes_back_in_its_order_for_one_doorbell() {
    let (driven, handle, device) = start();
    for count in [0, 1, 2, 100] {
        let buffers: Vec<_> = (0..count).map(|index| buffer(&driven, 1 + index % 5)).collect();
        let memory: Vec<_> = buffers.iter().map(ModelBuffer::physical).collect();
        let mappings: Vec<_> = buffers.into_iter().map(|b| map(&handle, b, Bidirectional)).collect();
        let iovas: Vec<_> = mappings.iter().map(|mapping| mapping.iova().as_u64()).collect();
        for &iova in &iovas {
            assert!(device.probe(iova, Access::Write).is_ok());
        }
        let (writes, _, unmapped) =
            cost(&driven, || handle.unmap_batch(mappings).expect("a unit that works"));
        assert_eq!((writes, unmapped.len()), (u64::from(count > 0), count as usize));
        for iova in iovas {
            assert!(device.probe(iova, Access::Write).is_err());
        }
        assert_eq!(unmapped.map(|buffer| buffer.physical()).collect::<Vec<_>>(), memory);
        assert_eq!(driven.iommu.live_mappings(), 0);
    }
    driven.assert_content("after batches");
}

#[test]
fn a_batch_holds_ragged_buffers_and_those_of_other_devices() {
    let (driven, handle, device) = start();
    let (other, other_device) = claim(&driven, 1);
    let mut mappings = Vec::new();
    for round in 0..12_u8 {
        let (handle, device) = if round % 3 == 0 { (&other, &other_device) } else { (&handle, &device) };
        let mapping = map(handle, Part::new(round.into(), 100), FromDevice);
        device.write(mapping.iova().as_u64(), &[round; 100]).expect("mapped");
        mappings.push(mapping);
    }
    let parts: Vec<Part> = handle.unmap_batch(mappings).expect("a unit that works").collect();
    for (round, part) in (0..).zip(parts) {
        assert!(part.bytes() == [round; 100] && part.is_intact());
    }
    assert_eq!(driven.iommu.live_mappings(), 0);
    driven.assert_content("after a mixed batch");
}

#[test]
fn what_is_not_taken_out_of_a_batch_is_freed() {
    let (driven, handle, _) = start();
    let buffers: Vec<_> = (0..4).map(|_| buffer(&driven, 1)).collect();
    let memory: Vec<_> = buffers.iter().map(ModelBuffer::physical).collect();
    let mappings = buffers.into_iter().map(|b| map(&handle, b, ToDevice)).collect();
    let mut unmapped = handle.unmap_batch(mappings).expect("a unit that works");
    let taken = unmapped.next().expect("four buffers");
    drop(unmapped);
    let lent: Vec<_> = memory.iter().map(|&memory| driven.machine.is_lent(memory)).collect();
    assert_eq!((lent, taken.physical()), (vec![false; 4], memory[0]));
    assert_eq!(driven.iommu.live_mappings(), 0);
}

#[test]
fn the_list_of_a_batch_comes_back_empty() {
    let (driven, handle, device) = start();
    let mut mappings = Vec::with_capacity(4);
    let place = mappings.as_ptr();
    for round in 0..3 {
        let buffers: Vec<_> = (0..4).map(|_| buffer(&driven, 1)).collect();
        let memory: Vec<_> = buffers.iter().map(ModelBuffer::physical).collect();
        mappings.extend(buffers.into_iter().map(|b| map(&handle, b, Bidirectional)));
        let iovas: Vec<_> = mappings.iter().map(|mapping| mapping.iova().as_u64()).collect();
        let mut unmapped = handle.unmap_batch(mappings).expect("a unit that works");
        let taken: Vec<_> = unmapped.by_ref().take(round).collect();
        mappings = unmapped.into_list();
        assert_eq!((mappings.len(), mappings.capacity(), mappings.as_ptr()), (0, 4, place));
        assert!(taken.iter().map(ModelBuffer::physical).eq(memory[..round].iter().copied()));
        assert!(memory[round..].iter().all(|&memory| !driven.machine.is_lent(memory)), "freed");
        assert!(iovas.iter().all(|&iova| device.probe(iova, Access::Write).is_err()));
        assert_eq!(driven.iommu.live_mappings(), 0);
    }
    driven.assert_content("after batches from one list");
}

#[test]
fn a_batch_or_list_of_a_device_that_was_taken_away_is_the_reapers() {
    let (driven, handle, device) = start();
    let (one, two, three, four) =
        (buffer(&driven, 1), buffer(&driven, 1), buffer(&driven, 1), buffer(&driven, 3));
    let memory = [one.physical(), two.physical(), three.physical(), four.physical()];
    let batch = vec![map(&handle, one, Bidirectional), map(&handle, two, Bidirectional)];
    let scattered = handle.dma_map_sg(list([three, four]), Bidirectional).expect("room");
    let first = scattered.segments().next().expect("a segment").iova.as_u64();
    driven.iommu.quarantine(handle.function()).expect("a unit that works");
    driven.enable(handle.function());
    assert!(device.probe(first, Access::Write).is_err());
    assert_eq!(handle.unmap_batch(batch).map(drop), Err(DmaError::Revoked));
    assert_eq!(scattered.unmap().map(drop), Err(DmaError::Revoked));
    let refused = handle.dma_map_sg(list([buffer(&driven, 1)]), ToDevice);
    assert!(refused.is_err_and(|r| r.error == DmaError::Revoked && r.buffer.is_some()));
    driven.pump();
    assert!(memory.iter().all(|&memory| driven.machine.is_lent(memory)), "too early");
    driven.iommu.release(handle.function(), |_| true).expect("a quiet device");
    driven.pump();
    assert!(memory.iter().all(|&memory| !driven.machine.is_lent(memory)));
    assert_eq!(driven.iommu.live_mappings(), 0);
    driven.assert_content("after a revocation");
}

#[test]
fn behind_a_unit_that_does_not_answer_batches_and_lists_stay_pinned() {
    let (driven, handle, _) = start();
    let (one, two) = (buffer(&driven, 1), buffer(&driven, 1));
    let memory = [one.physical(), two.physical()];
    let batch = vec![map(&handle, one, Bidirectional)];
    let scattered = handle.dma_map_sg(list([two]), Bidirectional).expect("room");
    driven.machine.misbehave(0, |unit| unit.statuses_lost = true);
    let stuck = DmaError::Stuck(Stuck { unit: 0 });
    assert_eq!(handle.unmap_batch(batch).map(drop), Err(stuck));
    assert_eq!(scattered.unmap().map(drop), Err(stuck));
    driven.pump();
    assert!(memory.iter().all(|&memory| driven.machine.is_lent(memory)));
}

#[test]
fn a_list_is_one_range_in_which_whole_pages_are_contiguous() {
    let (driven, handle, device) = start();
    let buffers: Vec<_> = [1, 3, 2].map(|pages| buffer(&driven, pages)).into();
    let memory: Vec<_> = buffers.iter().map(ModelBuffer::physical).collect();
    let mapping = handle.dma_map_sg(list(buffers), Bidirectional).expect("room");
    let segments: Vec<_> = mapping.segments().collect();
    let [segment] = segments[..] else { panic!("{segments:?}") };
    assert_eq!(segment.bytes, 6 * PAGE as u64);
    let pages = [(0, 0), (0, 1), (1, 1), (2, 1), (0, 2), (1, 2)];
    for (index, (page, buffer)) in pages.into_iter().enumerate() {
        let physical = device.probe(segment.iova.as_u64() + (index * PAGE) as u64, Access::Write);
        assert_eq!(physical, Ok(memory[buffer] + page * PAGE as u64));
    }
    assert_eq!(driven.iommu.live_mappings(), 1);
    let mut buffers = mapping.unmap().expect("a unit that works");
    assert_eq!(buffers.pop().map(|buffer| buffer.physical()), Some(memory[2]));
    assert_eq!(buffers.len(), 2);
    // The list, what is left of it, is as good as new.
    let mapping = handle.dma_map_sg(buffers, ToDevice).expect("room");
    drop(mapping);
    driven.pump();
    assert!(!driven.machine.is_lent(memory[0]));
    assert_eq!((driven.iommu.live_mappings(), device.reach_of_tables()), (0, Some(Vec::new())));
    driven.assert_content("after a list");
}

#[test]
fn a_list_of_ragged_buffers_shows_nothing_beside_them() {
    let (driven, handle, device) = start();
    let shapes = [(100, 50), (0, PAGE), (4000, 96), (0, 1), (1, 3 * PAGE), (2048, 2048), (0, 2 * PAGE + 5)];
    let content = |index: usize, bytes: usize| vec![index as u8 + 1; bytes];
    let parts =
        shapes.iter().enumerate().map(|(i, &(offset, bytes))| Part::holding(offset, &content(i, bytes)));
    let mapping = handle.dma_map_sg(list(parts), Bidirectional).expect("room");
    let total: u64 = mapping.segments().map(|segment| segment.bytes).sum();
    assert_eq!(total, shapes.iter().map(|&(_, bytes)| bytes as u64).sum());
    let mut read = Vec::new();
    for segment in mapping.segments() {
        let mut bytes = vec![0; segment.bytes as usize];
        device.read(segment.iova.as_u64(), &mut bytes).expect("mapped");
        read.extend(bytes);
    }
    let expected = shapes.iter().enumerate().flat_map(|(index, &(_, bytes))| content(index, bytes));
    assert!(read.into_iter().eq(expected));
    for run in device.reach_of_tables().expect("translated") {
        let mut all = vec![0; run.bytes as usize];
        device.read(run.address, &mut all).expect("mapped");
        assert!(!all.contains(&BESIDE));
        device.write(run.address, &vec![0x77; run.bytes as usize]).expect("mapped");
    }
    let mut parts = mapping.unmap().expect("a unit that works");
    let mut count = 0;
    while let Some(part) = parts.pop() {
        assert!(part.is_intact() && part.bytes().iter().all(|&byte| byte == 0x77));
        count += 1;
    }
    assert_eq!((count, driven.iommu.live_mappings()), (shapes.len(), 0));
    driven.assert_content("after a ragged list");
}

#[test]
fn a_list_that_cannot_be_mapped_comes_back_as_it_was() {
    let (driven, handle, device) = start();
    let empty = handle.dma_map_sg(list::<Part>([]), ToDevice);
    assert!(empty.is_err_and(|rejected| rejected.error == DmaError::BadLength { count: 0 }));
    let mut parts = list([Part::holding(9, &[3; 100]), Part::holding(0, &[4; 5000])]);
    for remaining in 0..64 {
        driven.machine.set_shortage(Some(remaining));
        let mapped = handle.dma_map_sg(parts, Bidirectional);
        driven.machine.set_shortage(None);
        match mapped {
            Ok(mapping) => {
                assert!(remaining > 0);
                let mut parts = mapping.unmap().expect("a unit that works");
                return assert_eq!(parts.pop().expect("the second").bytes(), [4; 5000]);
            }
            Err(rejected) => {
                assert_eq!(rejected.error, DmaError::OutOfMemory);
                parts = rejected.buffer.expect("the list");
                assert_eq!((driven.iommu.live_mappings(), device.reach_of_tables()), (0, Some(Vec::new())));
            }
        }
    }
    panic!("it always fails");
}

#[test]
fn segments_keep_to_the_limits_of_the_device() {
    let (_driven, handle, _) = start();
    for limits in [
        SegmentLimits { max_bytes: 1000, boundary: 0 },
        SegmentLimits { max_bytes: u64::MAX, boundary: 4096 },
        SegmentLimits { max_bytes: 6000, boundary: 8192 },
    ] {
        handle.set_segment_limits(limits);
        let pages = PageBuffer::zeroed(9).expect("memory");
        let mapping = handle.dma_map_sg(list([pages]), ToDevice).expect("room");
        let mut next = None;
        let mut total = 0;
        for segment in mapping.segments() {
            let first = segment.iova.as_u64();
            assert!(next.is_none_or(|next| next == first) && segment.bytes > 0);
            assert!(segment.bytes <= limits.max_bytes, "{limits:?}");
            let last = first + segment.bytes - 1;
            assert_eq!(first.checked_div(limits.boundary), last.checked_div(limits.boundary));
            (next, total) = (Some(first + segment.bytes), total + segment.bytes);
        }
        assert_eq!(total, 9 * PAGE as u64);
    }
}

#[test]
fn a_mapping_is_one_segment_within_the_limits_or_refused() {
    let (driven, handle, _) = start();
    let boundary = 0x1_0000;
    handle.set_segment_limits(SegmentLimits { max_bytes: u64::MAX, boundary });
    let mut held = Vec::new();
    for round in 0..200 {
        let mapping = map(&handle, buffer(&driven, 1 + round % 16), ToDevice);
        let (first, bytes) = (mapping.iova().as_u64(), mapping.len() as u64);
        assert_eq!(first / boundary, (first + bytes - 1) / boundary, "{bytes} bytes at {first:#x}");
        held.push(mapping);
    }
    let refused = handle.dma_map(buffer(&driven, 17), ToDevice);
    let error = DmaError::TooLong { bytes: 17 * PAGE, limit: boundary };
    assert!(refused.is_err_and(|rejected| rejected.error == error && rejected.buffer.is_some()));
    // Of one's own choice: up to the boundary, and not beyond.
    let chosen = |pages| {
        let iova = Iova::new(3 * boundary - PAGE as u64);
        let mapping = handle.dma_map_at(buffer(&driven, pages), ToDevice, iova);
        mapping.map(drop).map_err(|rejected| (rejected.error, rejected.buffer.is_some()))
    };
    let beyond = DmaError::TooLong { bytes: 2 * PAGE, limit: PAGE as u64 };
    assert_eq!((chosen(1), chosen(2)), (Ok(()), Err((beyond, true))));
    // A ring is told as a whole.
    let ring = handle.alloc_coherent::<u64>(10_000).expect("room");
    assert_eq!(ring.iova_of(9_999).as_u64(), ring.iova().as_u64() + 79_992);
    // A pool keeps its buffers within them.
    handle.set_segment_limits(SegmentLimits { max_bytes: 8192, boundary: 8192 });
    let pool = handle.dma_pool(6000, 20, ToDevice).expect("memory");
    while let Some(buffer) = pool.take() {
        let first = buffer.iova().as_u64();
        assert_eq!(first / 8192, (first + 5999) / 8192);
        std::mem::forget(buffer);
    }
    let too_long = DmaError::TooLong { bytes: 9000, limit: 8192 };
    assert_eq!(handle.dma_pool(9000, 1, ToDevice).map(drop), Err(too_long));
    // Where they lie in pages longer than one may be, each is short enough.
    handle.set_segment_limits(SegmentLimits { max_bytes: 2048, boundary: 0 });
    assert_eq!(handle.dma_pool(2048, 5, ToDevice).map(|pool| pool.capacity()), Ok(5));
    assert!(handle.dma_pool(2049, 5, ToDevice).is_err());
}

/// A buffer that cannot be freed without a panic.
struct Fragile(Option<PageBuffer>);

// SAFETY: the memory is the page buffer's, which keeps the contract.
unsafe impl DmaBuffer for Fragile {
    fn into_raw(mut self) -> RawBuffer {
        self.0.take().expect("pages").into_raw()
    }

    unsafe fn from_raw(raw: RawBuffer) -> Self {
        // SAFETY: passed on to the caller.
        Self(Some(unsafe { PageBuffer::from_raw(raw) }))
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        assert!(self.0.is_none(), "with pages in it");
    }
}

/// The others of a batch have been unmapped, and their addresses are somebody else's.
#[test]
fn a_buffer_that_panics_as_it_is_freed_takes_nobody_elses_mapping_along() {
    let (driven, handle, device) = start();
    let fragile = || Fragile(PageBuffer::zeroed(1));
    let mappings: Vec<_> = (0..3).map(|_| map(&handle, fragile(), Bidirectional)).collect();
    let addresses: Vec<_> = mappings.iter().map(Mapping::iova).collect();
    let unmapped = handle.unmap_batch(mappings).expect("a unit that works");
    let others: Vec<_> = addresses
        .iter()
        .map(|&iova| handle.dma_map_at(buffer(&driven, 1), Bidirectional, iova).expect("free again"))
        .collect();
    let freed = panic::catch_unwind(AssertUnwindSafe(|| drop(unmapped)));
    assert!(freed.is_err());
    driven.pump();
    for other in others {
        assert!(device.probe(other.iova().as_u64(), Access::Write).is_ok(), "it was unmapped with another's");
        drop(other.unmap().expect("a unit that works"));
    }
    assert_eq!(driven.iommu.live_mappings(), 0);
}

#[test]
fn the_cpu_has_a_buffer_for_a_while() {
    let (driven, handle, device) = start();
    for (offset, bytes) in [(0, PAGE), (10, 100), (4090, 2 * PAGE)] {
        let mapping = map(&handle, Part::holding(offset, &vec![1; bytes]), Bidirectional);
        let iova = mapping.iova();
        device.write(iova.as_u64(), &vec![2; bytes]).expect("mapped");
        let mut buffer = mapping.sync_for_cpu();
        let mut seen = vec![0; bytes];
        buffer.copy_to(0, &mut seen);
        assert_eq!(seen, vec![2; bytes]);
        buffer.copy_from(bytes - 3, &[3; 3]);
        let mapping = buffer.sync_for_device();
        assert_eq!(mapping.iova(), iova);
        device.read(iova.as_u64(), &mut seen).expect("mapped");
        assert!(seen[..bytes - 3] == vec![2; bytes - 3] && seen[bytes - 3..] == [3; 3]);
        let part = mapping.unmap().expect("a unit that works");
        assert!(part.bytes() == seen && part.is_intact());
        // Dropped while the CPU has it, it is unmapped like any other.
        drop(map(&handle, part, Bidirectional).sync_for_cpu());
        driven.pump();
        assert_eq!(driven.iommu.live_mappings(), 0);
    }
    driven.assert_content("after syncs");
}

#[test]
fn caching_mode_sees_a_new_list() {
    let mut config = MachineConfig::plain(1);
    config.units[0] = UnitConfig { caching_mode: true, ..UnitConfig::plain(config.units[0].base) };
    let (driven, handle, device) = start_on(config, Options::default());
    for _ in 0..4 {
        let parts = list([Part::new(0, 3 * PAGE), Part::new(8, 100)]);
        let (writes, _, mapping) = cost(&driven, || handle.dma_map_sg(parts, FromDevice).expect("room"));
        assert_eq!(writes, 1, "one flush for all of it");
        let iovas: Vec<u64> = mapping.segments().map(|segment| segment.iova.as_u64()).collect();
        assert!(iovas.iter().all(|&iova| device.probe(iova, Access::Write).is_ok()));
        drop(mapping.unmap().expect("a unit that works"));
        assert!(iovas.iter().all(|&iova| device.probe(iova, Access::Write).is_err()));
    }
    driven.assert_content("in caching mode");
}

#[test]
fn without_isolation_lists_and_batches_lie_where_their_memory_does() {
    let options = Options { mode: Mode::Off, ..Options::default() };
    let (driven, handle, device) = start_on(MachineConfig::plain(2), options);
    let mapping = handle.dma_map_sg(list([Part::new(3, 100), Part::new(0, 5000)]), Bidirectional);
    let mapping = mapping.expect("nothing to reserve");
    for segment in mapping.segments() {
        device.write(segment.iova.as_u64(), &vec![8; segment.bytes as usize]).expect("all of memory");
    }
    let mut parts = mapping.unmap().expect("nothing to flush");
    while let Some(part) = parts.pop() {
        assert!(part.is_intact() && part.bytes().iter().all(|&byte| byte == 8));
    }
    let batch = (0..5).map(|_| map(&handle, Part::new(3, 100), Bidirectional)).collect();
    assert_eq!(handle.unmap_batch(batch).expect("nothing to flush").len(), 5);
    drop(handle.dma_map_sg(list([Part::new(3, 100)]), Bidirectional));
    driven.pump();
    assert_eq!(driven.iommu.live_mappings(), 0);
}
