//! `iommu=debug`: what drivers do wrong is found, with who, what and where, and what they do right is not.

use std::{panic::Location, ptr::NonNull};

use driven::Driven;
use iommu::{
    Bidirectional, DmaDevice, DmaError, FromDevice, Iova, Mapping, Options, PageBuffer, Platform, ToDevice,
    checks::{Lent, Misuse},
    dma::{Direction, DmaBuffer, RawBuffer, ScatterList},
    dump::Visitor,
    options::{Flush, Mode},
    platform::Unshareable,
};
use mm::table::TableMemory;
use vtd_model::{Device, MachineConfig};

const PAGE: usize = 4096;
/// A driver that has let its device go has so much time to drop what it mapped.
const GRACE_NS: u64 = 1_000_000_000;
/// Records of pieces of 64 KiB, at most.
const MAX_RECORDS: usize = 1 << 15;

fn start() -> Driven {
    start_with(Options::default())
}

fn start_with(options: Options) -> Driven {
    let mut config = MachineConfig::plain(2);
    // Room for all records that there may be, and for what is mapped beside.
    config.memory.table_pages = 8192;
    Driven::start_with(config, Options { debug: true, ..options }).expect("units that work")
}

fn claim(driven: &Driven, index: usize) -> (DmaDevice, Device) {
    let function = driven.function(index);
    let handle = driven.iommu.claim(function).expect("a free function");
    driven.enable(function);
    (handle, driven.device(function))
}

/// What was found: the last findings, how many there were, and what was not checked.
#[derive(Default)]
struct Findings {
    kept: Vec<Misuse>,
    found: u64,
    unchecked: u64,
    are_there_checks: bool,
}

impl Visitor for Findings {
    fn misuse(&mut self, misuse: &Misuse) {
        self.kept.push(*misuse);
    }

    fn checks(&mut self, found: u64, unchecked: u64) {
        (self.found, self.unchecked, self.are_there_checks) = (found, unchecked, true);
    }
}

fn findings(driven: &Driven) -> Findings {
    let mut findings = Findings::default();
    driven.iommu.visit(&mut findings);
    findings
}

fn assert_none(driven: &Driven, when: &str) {
    let Findings { kept, found, unchecked, .. } = findings(driven);
    assert_eq!((kept, found, unchecked), (Vec::new(), 0, 0), "{when}");
}

/// Lets the time go by that a driver has to drop what it mapped.
fn wait(driven: &Driven) {
    driven.pump();
    driven.machine.clock().advance(GRACE_NS);
    driven.iommu.reap();
}

/// Memory that several buffers may be of: what no safe code has.
#[derive(Clone, Copy)]
struct Memory(NonNull<u8>);

impl Memory {
    fn new(driven: &Driven, pages: usize) -> Self {
        let bytes = (pages + 1) * PAGE;
        let all = NonNull::from(Vec::leak(vec![0_u8; bytes])).cast::<u8>();
        // SAFETY: a page is left over.
        let first = unsafe { all.add(all.as_ptr().addr().next_multiple_of(PAGE) - all.as_ptr().addr()) };
        // All of it lies in one piece, from now on.
        driven.platform.physical(first, pages * PAGE).expect("memory");
        Self(first)
    }

    fn part(self, offset: usize, bytes: usize) -> Alias {
        // SAFETY: tests ask for parts of the memory.
        Alias(unsafe { self.0.add(offset) }, bytes)
    }
}

/// A buffer that does not own what it says.
struct Alias(NonNull<u8>, usize);

// SAFETY: the memory is leaked, and plain bytes. That others have it is what the tests are about.
unsafe impl Send for Alias {}

// SAFETY: as above.
unsafe impl DmaBuffer for Alias {
    fn into_raw(self) -> RawBuffer {
        RawBuffer { first: self.0, bytes: self.1, cookie: 0 }
    }

    unsafe fn from_raw(raw: RawBuffer) -> Self {
        Self(raw.first, raw.bytes)
    }
}

#[track_caller]
fn map<B: DmaBuffer, D: Direction>(handle: &DmaDevice, buffer: B, direction: D) -> (Mapping<B, D>, Lent) {
    let raw = buffer.into_raw();
    let bytes = raw.bytes as u64;
    // SAFETY: taken apart just now.
    let buffer = unsafe { B::from_raw(raw) };
    let mapping = handle.dma_map(buffer, direction).map_err(|rejected| rejected.error).expect("room");
    let (function, iova, origin) = (handle.function(), mapping.iova(), Location::caller());
    // What lies there in memory is compared where it matters.
    let memory = mm::PhysAddr::new(0);
    (mapping, Lent { function, iova, memory, bytes, access: D::ACCESS, origin })
}

/// Without what the tests do not know.
fn known(lent: Lent) -> Lent {
    Lent { memory: mm::PhysAddr::new(0), ..lent }
}

fn page() -> PageBuffer {
    PageBuffer::zeroed(1).expect("memory")
}

/// Without isolation the same memory, lent twice by one driver, is at one address.
#[test]
fn what_is_lent_twice_and_comes_back_once_is_lent_still() {
    let driven = start_with(Options { mode: Mode::Off, ..Options::default() });
    let (handle, _) = claim(&driven, 0);
    let memory = Memory::new(&driven, 600);
    let whole = || memory.part(0, 600 * PAGE);
    let (unmapped, _) = map(&handle, whole(), ToDevice);
    let (same, same_lent) = map(&handle, whole(), ToDevice);
    let (part, part_lent) = map(&handle, memory.part(8 * PAGE, PAGE), ToDevice);
    unmapped.unmap().expect("no unit");
    std::mem::forget((same, part));
    assert_none(&driven, "reading the same memory is no misuse");
    drop(handle);
    wait(&driven);
    let leaks: Vec<_> = [same_lent, part_lent].map(Misuse::Leaked).into();
    let Findings { kept, found, .. } = findings(&driven);
    let known = |misuse: &Misuse| match *misuse {
        Misuse::Leaked(lent) => Misuse::Leaked(known(lent)),
        other => other,
    };
    assert_eq!((kept.iter().map(known).collect::<Vec<_>>(), found), (leaks, 2));
}

#[test]
fn what_a_driver_leaves_mapped_is_named_and_nothing_else() {
    for options in [Options::default(), Options { mode: Mode::Off, ..Options::default() }] {
        let driven = start_with(options);
        let (handle, _) = claim(&driven, 0);
        let (forgotten, leak) = map(&handle, driven.machine.allocate_buffer(40, 1).unwrap(), FromDevice);
        let physical = driven.machine.allocate_buffer(1, 1).unwrap();
        let (unmapped, _) = map(&handle, physical, ToDevice);
        let (dropped, _) = map(&handle, page(), Bidirectional);
        std::mem::forget(forgotten);
        drop(unmapped.unmap().expect("a unit that works"));
        drop(handle);
        drop(dropped);
        driven.machine.clock().advance(GRACE_NS / 2);
        driven.iommu.reap();
        assert_none(&driven, "it has time");
        wait(&driven);
        let Findings { kept, found, .. } = findings(&driven);
        assert_eq!((kept.len(), found), (1, 1), "{kept:?}");
        let Misuse::Leaked(lent) = kept[0] else { panic!("{kept:?}") };
        assert_eq!(known(lent), leak);
        let text = kept[0].to_string();
        let place = format!("mapped at {}", leak.origin);
        assert!(text.contains(&place) && text.contains(&leak.function.to_string()), "{text}");
        assert!(text.contains(&leak.iova.to_string()) && text.contains(&lent.memory.to_string()), "{text}");
        // Once.
        wait(&driven);
        assert_eq!(findings(&driven).found, 1);
    }
}

#[test]
fn where_it_was_mapped_is_where_the_driver_says_so() {
    let driven = start();
    let (handle, _) = claim(&driven, 0);
    let mut lines = vec![line!() + 1];
    std::mem::forget(handle.dma_map(page(), ToDevice).expect("room"));
    lines.push(line!() + 1);
    std::mem::forget(handle.dma_map_at(page(), ToDevice, Iova::new(0x7000_0000)).expect("room"));
    lines.push(line!() + 1);
    std::mem::forget(handle.alloc_coherent::<u64>(8).expect("room"));
    lines.push(line!() + 1);
    std::mem::forget(handle.dma_pool(2048, 2, FromDevice).expect("room"));
    let mut list = ScatterList::with_capacity(1).expect("memory");
    list.push(page()).expect("room");
    lines.push(line!() + 1);
    std::mem::forget(handle.dma_map_sg(list, FromDevice).expect("room"));
    let mut reservation = handle.dma_reserve(1, PAGE, ToDevice).expect("room");
    lines.push(line!() + 1);
    reservation.link(page()).expect("room");
    std::mem::forget(reservation.sync());
    drop(handle);
    wait(&driven);
    let places = findings(&driven).kept.into_iter().map(|misuse| match misuse {
        Misuse::Leaked(lent) => (lent.origin.file(), lent.origin.line()),
        other => panic!("{other}"),
    });
    let mut found: Vec<_> = places.collect();
    found.sort_unstable();
    assert_eq!(found, lines.into_iter().map(|line| (file!(), line)).collect::<Vec<_>>());
}

#[test]
fn whatever_gives_its_memory_back_leaves_nothing_to_report() {
    for flush in [Flush::Strict, Flush::Deferred] {
        let driven = start_with(Options { flush, ..Options::default() });
        let (handle, _) = claim(&driven, 0);
        let pages = |count: usize| (0..count).map(|_| page());
        let mapped: Vec<_> = pages(5).map(|page| handle.dma_map(page, ToDevice).unwrap()).collect();
        handle.unmap_batch(mapped).expect("a unit that works").for_each(drop);
        let late = handle.dma_map(page(), FromDevice).unwrap().retire();
        drop(late.wait().expect("a unit that works"));
        drop(handle.dma_map(vec![1_u8; 100], FromDevice).unwrap().retire());
        let mut list = ScatterList::with_capacity(3).unwrap();
        pages(3).for_each(|page| list.push(page).unwrap());
        let list = handle.dma_map_sg(list, ToDevice).unwrap().unmap().expect("a unit that works");
        drop(handle.dma_map_sg(list, FromDevice).unwrap());
        let mut linked = handle.dma_reserve(2, 2 * PAGE, ToDevice).unwrap();
        linked.link(page()).unwrap();
        drop(linked.unlink().expect("a unit that works"));
        let mut dropped = handle.dma_reserve(2, 2 * PAGE, ToDevice).unwrap();
        dropped.link(vec![7_u8; 10]).unwrap();
        drop(dropped);
        let (pool, ring) =
            (handle.dma_pool(2048, 9, FromDevice).unwrap(), handle.alloc_coherent::<u8>(9).unwrap());
        drop(handle);
        drop((pool, ring));
        wait(&driven);
        assert_none(&driven, "all came back");
    }
}

#[test]
fn what_waits_for_a_device_in_quarantine_is_no_leak() {
    let driven = start();
    let (handle, _) = claim(&driven, 0);
    let (dropped, _) = map(&handle, page(), FromDevice);
    let (unmapped, _) = map(&handle, page(), FromDevice);
    driven.iommu.quarantine(driven.function(0)).expect("a unit that works");
    assert_eq!(unmapped.unmap().expect_err("in quarantine"), DmaError::Revoked);
    drop((dropped, handle));
    // The thread that unmaps is late, and is the one that looks.
    driven.machine.clock().advance(GRACE_NS);
    driven.iommu.reap();
    assert_eq!(driven.iommu.live_mappings(), 2);
    assert_none(&driven, "the driver has done what it can");
}

#[test]
fn memory_that_a_device_may_write_is_lent_once() {
    let driven = start();
    let ((one, _), (other, _)) = (claim(&driven, 0), claim(&driven, 1));
    let memory = Memory::new(&driven, 64);
    // What both only read, both may have. So may neighbours have what lies on one page, and in one stretch.
    let (shared, _) = map(&one, memory.part(0, 3 * PAGE), ToDevice);
    let (also, _) = map(&other, memory.part(PAGE, PAGE), ToDevice);
    let (beside, _) = map(&one, memory.part(3 * PAGE, 100), FromDevice);
    let (behind, _) = map(&other, memory.part(3 * PAGE + 100, 100), FromDevice);
    assert_none(&driven, "nothing overlaps that may not");
    for given_back in [also.unmap(), beside.unmap(), behind.unmap()] {
        given_back.expect("a unit that works");
    }
    // What is unmapped is anybody's.
    let (again, _) = map(&other, memory.part(3 * PAGE, PAGE), Bidirectional);
    assert_none(&driven, "it came back before");
    for given_back in [shared.unmap(), again.unmap()] {
        given_back.expect("a unit that works");
    }

    let cases: [(usize, usize, usize, usize); 5] = [
        // The last byte of one is the first of the other; one within the other; across a stretch of 64 KiB; the same.
        (0, 2 * PAGE, 2 * PAGE - 1, 10),
        (0, 40 * PAGE, 33 * PAGE, PAGE),
        (33 * PAGE, PAGE, 0, 40 * PAGE),
        (15 * PAGE, 2 * PAGE, 16 * PAGE, 2 * PAGE),
        (5 * PAGE, 100, 5 * PAGE, 100),
    ];
    for (round, (first, bytes, other_first, other_bytes)) in cases.into_iter().enumerate() {
        let (held, old) = map(&one, memory.part(first, bytes), FromDevice);
        let (twice, new) = map(&other, memory.part(other_first, other_bytes), ToDevice);
        let Findings { kept, found, .. } = findings(&driven);
        assert_eq!(found as usize, round + 1, "{kept:?}");
        let Some(Misuse::Overlap { new: found_new, old: found_old }) = kept.last() else {
            panic!("{kept:?}")
        };
        assert_eq!((known(*found_new), known(*found_old)), (new, old));
        for given_back in [held.unmap(), twice.unmap()] {
            given_back.expect("a unit that works");
        }
    }
}

#[test]
fn memory_that_no_device_may_have_is_named_when_it_is_refused() {
    let driven = start();
    let (handle, _) = claim(&driven, 1);
    let tables = driven.platform.tables();
    let frame = tables.allocate().expect("a page");
    // SAFETY: allocated just now.
    let first = NonNull::from(unsafe { tables.table(frame) }).cast::<u8>();
    let refused = handle.dma_map(Alias(first, PAGE), FromDevice).map(drop);
    let refused = refused.map_err(|rejected| rejected.error);
    let address = first.as_ptr().addr();
    assert_eq!(refused, Err(DmaError::NotMappable { address, bytes: PAGE }));
    let mut list = ScatterList::with_capacity(2).expect("memory");
    list.push(Alias(first, 24)).map_err(drop).expect("room");
    assert!(handle.dma_map_sg(list, FromDevice).is_err());
    let (function, kind) = (handle.function(), Unshareable::Other);
    let kept = findings(&driven).kept;
    let seen = kept.iter().map(|misuse| match *misuse {
        Misuse::NotForDevices { function, kind, address, bytes, origin } => {
            assert_eq!(origin.file(), file!());
            (function, kind, address, bytes)
        }
        other => panic!("{other}"),
    });
    let expected = [(function, kind, address, PAGE), (function, kind, address, 24)];
    assert_eq!(seen.collect::<Vec<_>>(), expected);
    // SAFETY: it came from there, and no table was made of it.
    unsafe { tables.free(frame) };
}

#[test]
fn a_device_that_writes_what_the_cpu_has_is_noticed() {
    let driven = start();
    let (handle, device) = claim(&driven, 0);
    let (mapping, lent) = map(&handle, PageBuffer::zeroed(3).expect("memory"), FromDevice);
    let iova = mapping.iova().as_u64();
    let write = |offset: usize| device.write(iova + offset as u64, b"!").expect("mapped");
    write(0);
    let synced = mapping.sync_for_cpu();
    let mapping = synced.sync_for_device();
    write(5);
    assert_none(&driven, "the device had it");
    let line = line!() + 1;
    let synced = mapping.sync_for_cpu();
    write(3 * PAGE - 1);
    let mapping = synced.sync_for_device();
    let kept = findings(&driven).kept;
    let [Misuse::WrittenWhileSynced { lent: found, synced }] = kept[..] else { panic!("{kept:?}") };
    assert_eq!((known(found), synced.file(), synced.line()), (lent, file!(), line));
    drop(mapping.sync_for_cpu().sync_for_device().unmap().expect("a unit that works"));
    // Where the CPU writes as well nobody can tell who it was.
    let (both, _) = map(&handle, page(), Bidirectional);
    let mut synced = both.sync_for_cpu();
    synced.copy_from(0, b"the CPU's own");
    drop(synced.sync_for_device().unmap().expect("a unit that works"));
    assert_eq!(findings(&driven).found, 1);
}

#[test]
fn what_is_kept_and_what_is_recorded_is_bounded() {
    let driven = start();
    let (handle, _) = claim(&driven, 0);
    let memory = Memory::new(&driven, 1);
    let (_held, _) = map(&handle, memory.part(0, PAGE), FromDevice);
    for count in 1..=100 {
        map(&handle, memory.part(0, PAGE), ToDevice).0.unmap().expect("a unit that works");
        let Findings { kept, found, .. } = findings(&driven);
        assert_eq!((kept.len(), found), (count.min(16), count as u64));
    }
    let many: Vec<_> = (0..MAX_RECORDS).map(|_| map(&handle, page(), ToDevice).0).collect();
    assert_eq!(findings(&driven).unchecked, 1, "one record was taken before");
    handle.unmap_batch(many).expect("a unit that works").for_each(drop);
    let (held, _) = map(&handle, memory.part(0, PAGE), ToDevice);
    assert_eq!((findings(&driven).found, findings(&driven).unchecked), (101, 1));
    drop(held);
}

#[test]
fn without_memory_for_a_record_the_mapping_is_made_all_the_same() {
    let driven = start();
    let (handle, _) = claim(&driven, 0);
    // Tables, IOVAs and the reaper's room are there.
    drop(map(&handle, page(), FromDevice).0.unmap().unwrap());
    let held: Vec<_> = (0..200).map(|_| map(&handle, page(), FromDevice).0).collect();
    drop(handle.unmap_batch(held).expect("a unit that works"));
    let enough: Vec<_> = (0..2).map(|_| map(&handle, page(), FromDevice).0).collect();
    assert_none(&driven, "there was memory");
    driven.machine.set_shortage(Some(0));
    let mut mapped = Vec::new();
    while findings(&driven).unchecked == 0 && mapped.len() < 500 {
        match handle.dma_map(page(), FromDevice) {
            Ok(mapping) => mapped.push(mapping),
            Err(rejected) => {
                assert_eq!(rejected.error, DmaError::OutOfMemory);
                break;
            }
        }
    }
    driven.machine.set_shortage(None);
    drop((mapped, enough));
    drop(handle);
    wait(&driven);
    assert_eq!(findings(&driven).found, 0, "what was not recorded is no leak");
}

#[test]
fn drivers_that_go_all_at_once_are_looked_at_all() {
    let driven = start();
    for _ in 0..40 {
        let (handle, _) = claim(&driven, 0);
        std::mem::forget(handle.dma_map(page(), ToDevice).expect("room"));
        drop(handle);
        driven.iommu.release(driven.function(0), |_| true).expect("a function that is quiet");
    }
    wait(&driven);
    assert_eq!(findings(&driven).found, 40);
}

#[test]
fn without_the_word_nothing_is_checked() {
    let driven = Driven::start(MachineConfig::plain(1)).expect("units that work");
    let (handle, _) = claim(&driven, 0);
    std::mem::forget(handle.dma_map(page(), FromDevice).expect("room"));
    drop(handle);
    wait(&driven);
    let Findings { found, are_there_checks, .. } = findings(&driven);
    assert_eq!((found, are_there_checks), (0, false));
}
