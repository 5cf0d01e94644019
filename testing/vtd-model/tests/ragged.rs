//! Buffers that are not whole pages: the device reaches their bytes, and none beside them.

mod part;

use driven::Driven;
use iommu::{
    Bidirectional, DmaDevice, DmaError, FromDevice, Iova, Mapping, Options, ToDevice, dma::Direction,
    options::Mode,
};
use part::{BESIDE, Part};
use vtd_model::{Access, Device, MachineConfig};

const PAGE: usize = 4096;

/// Most slots of a domain.
const SLOTS: usize = 1024;

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

/// Offsets and lengths around the ends of pages.
fn shapes() -> impl Iterator<Item = (usize, usize)> {
    let offsets = [0, 1, 8, 2048, PAGE - 1];
    let lengths = [1, 7, 64, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE - 1, 2 * PAGE, 5 * PAGE + 100];
    offsets.into_iter().flat_map(move |offset| lengths.map(|bytes| (offset, bytes)))
}

/// Bytes that are never [`BESIDE`].
fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| (index % 199) as u8).collect()
}

fn map<D: Direction>(handle: &DmaDevice, part: Part, direction: D) -> Mapping<Part, D> {
    handle.dma_map(part, direction).map_err(|rejected| rejected.error).expect("room")
}

/// Everything that the device reaches, by address.
fn reach(device: &Device) -> Vec<(u64, u64)> {
    let runs = device.reach_of_tables().expect("translated");
    runs.iter().map(|run| (run.address, run.bytes)).collect()
}

#[test]
fn a_device_reads_the_buffer_and_nothing_beside_it() {
    let (driven, handle, device) = start();
    for (offset, bytes) in shapes() {
        let what = format!("{bytes} at {offset}");
        let mapping = map(&handle, Part::holding(offset, &content(bytes)), ToDevice);
        let iova = mapping.iova().as_u64();
        assert_eq!((iova as usize % PAGE, mapping.len()), (offset, bytes), "{what}");
        let mut read = vec![0; bytes];
        device.read(iova, &mut read).expect("mapped");
        assert_eq!(read, content(bytes), "{what}");
        let mut pages = 0;
        for (first, length) in reach(&device) {
            let mut all = vec![0; length as usize];
            device.read(first, &mut all).expect("mapped");
            assert!(!all.contains(&BESIDE), "{what}: the device sees what is beside the buffer");
            pages += length as usize / PAGE;
        }
        assert_eq!(pages, (offset + bytes).div_ceil(PAGE), "{what}");
        assert!(device.probe(iova, Access::Write).is_err(), "{what}");
        let part = mapping.unmap().expect("a unit that works");
        assert!(part.bytes() == content(bytes) && part.is_intact(), "{what}");
        assert!(device.probe(iova, Access::Read).is_err(), "{what}");
    }
    assert_eq!(driven.iommu.live_mappings(), 0);
    driven.assert_content("after reads");
}

#[test]
fn what_a_device_writes_arrives_in_the_buffer_and_nowhere_else() {
    let (driven, handle, device) = start();
    for (offset, bytes) in shapes() {
        let what = format!("{bytes} at {offset}");
        let mapping = map(&handle, Part::new(offset, bytes), FromDevice);
        assert!(device.probe(mapping.iova().as_u64(), Access::Read).is_err(), "{what}");
        // All that it can write at all.
        for (first, length) in reach(&device) {
            device.write(first, &vec![0x77; length as usize]).expect("mapped");
        }
        device.write(mapping.iova().as_u64(), &content(bytes)).expect("mapped");
        let part = mapping.unmap().expect("a unit that works");
        assert_eq!(part.bytes(), content(bytes), "{what}");
        assert!(part.is_intact(), "{what}: bytes beside the buffer were written");
    }
    driven.assert_content("after writes");
}

#[test]
fn what_a_device_does_not_write_stays_as_it_was() {
    let (_driven, handle, device) = start();
    // Slots that have held something else.
    let before = map(&handle, Part::holding(100, &[0x99; 3 * PAGE]), Bidirectional);
    drop(before.unmap().expect("a unit that works"));
    for (offset, bytes) in shapes().filter(|&(_, bytes)| bytes > 2) {
        let mapping = map(&handle, Part::holding(offset, &content(bytes)), FromDevice);
        device.write(mapping.iova().as_u64() + 1, b"!").expect("mapped");
        let part = mapping.unmap().expect("a unit that works");
        let mut expected = content(bytes);
        expected[1] = b'!';
        assert_eq!(part.bytes(), expected, "{bytes} at {offset}");
    }
}

/// What the device reads at the buffer, and that all else on its pages is zeros.
fn assert_alone(device: &Device, mapping: &Mapping<Part, ToDevice>, what: &str) {
    let (first, offset) = (mapping.iova().as_u64(), mapping.iova().as_u64() as usize % PAGE);
    let mut all = vec![0; (offset + mapping.len()).next_multiple_of(PAGE)];
    device.read(first - offset as u64, &mut all).expect("mapped");
    let (before, rest) = all.split_at(offset);
    let (own, behind) = rest.split_at(mapping.len());
    assert_eq!(own, [1; 8], "{what}");
    assert!(
        before.iter().chain(behind).all(|&byte| byte == 0),
        "{what}: what an earlier buffer had is there"
    );
}

#[test]
fn nothing_of_a_buffer_stays_where_the_next_one_lies() {
    let (driven, handle, device) = start();
    let alone = |what: &str| {
        let mapping = map(&handle, Part::holding(64, &[1; 8]), ToDevice);
        assert_alone(&device, &mapping, what);
        drop(mapping.unmap().expect("a unit that works"));
    };
    for (offset, bytes) in [(0, 2000), (200, PAGE), (PAGE - 100, 300)] {
        let secret = || Part::holding(offset, &vec![0x99; bytes]);
        drop(map(&handle, secret(), FromDevice).unmap().expect("a unit that works"));
        alone("a device that wrote nothing");
        drop(map(&handle, secret(), ToDevice));
        driven.pump();
        alone("a mapping that was dropped");
        let retired = map(&handle, secret(), FromDevice).retire();
        assert_eq!(retired.wait().expect("a unit that works").bytes(), vec![0x99; bytes]);
        alone("one that was given up");
    }
}

#[test]
fn nothing_of_a_buffer_stays_where_it_could_not_be_mapped() {
    let (_driven, handle, device) = start();
    let taken = map(&handle, Part::new(0, PAGE), FromDevice);
    let iova = Iova::new(taken.iova().as_u64() + 100);
    let refused = handle.dma_map_at(Part::holding(100, &[0x99; 900]), FromDevice, iova);
    let rejected = refused.map(drop).expect_err("the page is taken");
    assert_eq!(rejected.buffer.expect("the buffer").bytes(), [0x99; 900]);
    let mapping = map(&handle, Part::holding(64, &[1; 8]), ToDevice);
    assert_alone(&device, &mapping, "a map that failed");
}

#[test]
fn neighbours_on_one_page_do_not_see_each_other() {
    let (_driven, handle, device) = start();
    let vectors: Vec<Vec<u8>> = (1..=40).map(|byte| vec![byte; 100]).collect();
    let mappings: Vec<_> = vectors
        .into_iter()
        .map(|vector| handle.dma_map(vector, Bidirectional).map_err(|rejected| rejected.error).expect("room"))
        .collect();
    for (mapping, own) in mappings.iter().zip(1_u8..) {
        let page = mapping.iova().as_u64() & !(PAGE as u64 - 1);
        // Where the heap has it on the end of one page and the start of the next, it has two.
        let end = (mapping.iova().as_u64() + mapping.len() as u64).next_multiple_of(PAGE as u64);
        let mut all = vec![0; (end - page) as usize];
        device.read(page, &mut all).expect("mapped");
        assert!(all.iter().all(|&byte| byte == 0 || byte == own), "{own}");
        all.fill(own + 100);
        device.write(page, &all).expect("mapped");
    }
    for (mapping, own) in mappings.into_iter().zip(1_u8..) {
        assert_eq!(mapping.unmap().expect("a unit that works"), vec![own + 100; 100]);
    }
}

#[test]
fn slots_are_bounded_and_come_back() {
    let (driven, handle, _) = start();
    for _ in 0..3 {
        let mut mappings = Vec::new();
        let rejected = loop {
            match handle.dma_map(Part::holding(24, &[7; 100]), Bidirectional) {
                Ok(mapping) => mappings.push(mapping),
                Err(rejected) => break rejected,
            }
        };
        assert_eq!((rejected.error, mappings.len()), (DmaError::NoBounceSlot, SLOTS));
        assert_eq!(rejected.buffer.expect("the buffer").bytes(), [7; 100]);
        // Whole pages need none. Of two slots, one left is not enough, and is not lost.
        assert!(handle.dma_map(Part::new(0, PAGE), Bidirectional).is_ok());
        drop(mappings.pop());
        driven.pump();
        let two = handle.dma_map(Part::new(100, PAGE), Bidirectional).map(drop);
        assert_eq!(two.map_err(|rejected| rejected.error), Err(DmaError::NoBounceSlot));
        assert!(handle.dma_map(Part::new(24, 100), Bidirectional).is_ok());
        driven.pump();
        for mapping in mappings {
            assert_eq!(mapping.unmap().expect("a unit that works").bytes(), [7; 100]);
        }
        driven.pump();
        assert_eq!(driven.iommu.live_mappings(), 0);
    }
    driven.assert_content("after all slots");
}

#[test]
fn an_address_of_ones_choice_has_the_offset_of_the_buffer() {
    let (_driven, handle, device) = start();
    let mapping = handle.dma_map_at(Part::holding(24, &[9; 10]), ToDevice, Iova::new(0x7000_0018));
    let mapping = mapping.map_err(|rejected| rejected.error).expect("free");
    let mut read = [0; 10];
    device.read(0x7000_0018, &mut read).expect("mapped");
    assert_eq!((mapping.iova().as_u64(), read), (0x7000_0018, [9; 10]));
    for iova in [0x8000_0000, 0x8000_0010, 0x10].map(Iova::new) {
        let refused = handle.dma_map_at(Part::new(24, 10), ToDevice, iova).map(drop);
        assert_eq!(refused.map_err(|rejected| rejected.error), Err(DmaError::IovaUnaligned { iova }));
    }
}

#[test]
fn a_shortage_leaves_the_buffer_as_it_was() {
    let (driven, handle, device) = start();
    for remaining in 0..64 {
        driven.machine.set_shortage(Some(remaining));
        let mapped = handle.dma_map(Part::holding(5, &content(2 * PAGE)), Bidirectional);
        driven.machine.set_shortage(None);
        match mapped {
            Ok(mapping) => {
                assert!(remaining > 0, "no memory was needed");
                let part = mapping.unmap().expect("a unit that works");
                return assert_eq!(part.bytes(), content(2 * PAGE));
            }
            Err(rejected) => {
                assert_eq!(rejected.error, DmaError::OutOfMemory);
                let part = rejected.buffer.expect("the buffer");
                assert!(part.bytes() == content(2 * PAGE) && part.is_intact());
                assert_eq!((driven.iommu.live_mappings(), reach(&device)), (0, vec![]));
            }
        }
    }
    panic!("it always fails");
}

#[test]
fn a_revoked_buffer_comes_back_when_the_device_is_quiet() {
    let (driven, handle, device) = start();
    let (kept, dropped) =
        (map(&handle, Part::new(9, 100), FromDevice), map(&handle, Part::new(9, 100), FromDevice));
    let function = handle.function();
    driven.iommu.quarantine(function).expect("a unit that works");
    driven.enable(function);
    assert!(device.probe(kept.iova().as_u64(), Access::Write).is_err());
    drop(dropped);
    driven.pump();
    assert_eq!(driven.iommu.live_mappings(), 2);
    driven.iommu.release(function, |_| true).expect("a quiet device");
    driven.pump();
    assert!(kept.unmap().expect("the device is quiet").is_intact());
    assert_eq!(driven.iommu.live_mappings(), 0);
    driven.assert_content("after a revocation");
}

#[test]
fn without_isolation_nothing_is_copied() {
    let options = Options { mode: Mode::Off, ..Options::default() };
    let driven = Driven::start_with(MachineConfig::plain(1), options).expect("nothing to start");
    let (handle, device) = claim(&driven);
    for (offset, bytes) in shapes() {
        let mapping = map(&handle, Part::holding(offset, &content(bytes)), Bidirectional);
        let mut read = vec![0; bytes];
        device.read(mapping.iova().as_u64(), &mut read).expect("all of memory");
        assert_eq!(read, content(bytes));
        device.write(mapping.iova().as_u64(), &vec![0x55; bytes]).expect("all of memory");
        let part = mapping.unmap().expect("nothing to flush");
        assert!(part.is_intact() && part.bytes().iter().all(|&byte| byte == 0x55), "{bytes} at {offset}");
    }
}
