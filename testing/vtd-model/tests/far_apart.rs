//! Mappings far apart that go together: what lies between them stays in the caches, and nothing of them does.

use driven::Driven;
use iommu::{
    Bidirectional, DmaDevice, Iova, Mapping, Options,
    dma::{Late, Retired},
    options::Flush,
};
use vtd_model::{Access, Device, MachineConfig, ModelBuffer, Random};

const PAGE: u64 = 4096;
/// What retired mappings wait for a flush at most, in nanoseconds.
const MAX_DELAY_NS: u64 = 5_000_000;
/// No invalidation of pages reaches from one of them to the next but one of the whole domain.
const APART: u64 = 1 << 31;

type Mapped = Mapping<ModelBuffer, Bidirectional>;

fn start(config: MachineConfig) -> (Driven, DmaDevice, Device) {
    let driven =
        Driven::start_with(config, Options { flush: Flush::Deferred, ..Options::default() }).expect("works");
    let function = driven.function(0);
    let handle = driven.iommu.claim_trusted(function).expect("a free function");
    driven.enable(function);
    let device = driven.device(function);
    (driven, handle, device)
}

/// A page mapped at `iova`, whose translation is cached.
fn map_at(driven: &Driven, handle: &DmaDevice, iova: u64) -> Mapped {
    let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
    let mapping = handle.dma_map_at(buffer, Bidirectional, Iova::new(iova)).map_err(|r| r.error);
    assert!(driven.device(handle.function()).probe(iova, Access::Write).is_ok());
    mapping.expect("nobody has the address")
}

/// Pages far apart whose translations are cached. Beside each is another that stays, so that no table becomes empty:
/// that one would have to be flushed with all that it was for.
fn map_all<const N: usize>(driven: &Driven, handle: &DmaDevice) -> ([Mapped; N], Vec<Mapped>) {
    let places = (1..=N as u64).map(|number| number * APART);
    let beside = places.map(|first| {
        let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
        let mapping = handle.dma_map_at(buffer, Bidirectional, Iova::new(first + PAGE));
        mapping.map_err(|rejected| rejected.error).expect("nobody has the address")
    });
    let beside = beside.collect();
    (std::array::from_fn(|index| map_at(driven, handle, (1 + index as u64) * APART)), beside)
}

fn cached(device: &Device) -> Vec<u64> {
    let mut all: Vec<_> = device.cached_translations().into_iter().map(|(address, _)| address).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// What the unit was told: doorbells and descriptors.
fn told(driven: &Driven) -> (u64, u64) {
    (driven.units()[0].doorbells, driven.units()[0].descriptors)
}

/// A machine whose caches hold what devices asked for, and nothing that hardware thought of by itself.
fn machine(ats: bool) -> MachineConfig {
    let mut config = MachineConfig::plain(1);
    config.prefetch_once_in = 0;
    config.functions[0].ats = ats;
    config
}

#[test]
fn a_batch_leaves_what_lies_between_in_the_caches() {
    for ats in [false, true] {
        let (driven, handle, device) = start(machine(ats));
        let ([low, between, high], _beside) = map_all(&driven, &handle);
        assert_eq!((device.uses_ats(), cached(&device)), (ats, vec![APART, 2 * APART, 3 * APART]));
        let before = told(&driven);
        drop(handle.unmap_batch(vec![high, low]).expect("a unit that works"));
        let after = told(&driven);
        assert_eq!(after.0 - before.0, 1, "one doorbell");
        // Two ranges and a wait for each cache.
        assert_eq!(after.1 - before.1, if ats { 6 } else { 3 });
        assert_eq!(cached(&device), [2 * APART]);
        drop(between.unmap().expect("a unit that works"));
        assert_eq!(cached(&device), []);
        driven.assert_content("after a batch");
    }
}

#[test]
fn what_was_retired_leaves_what_lies_between_in_the_caches() {
    for ats in [false, true] {
        let (driven, handle, device) = start(machine(ats));
        let ([low, between, high], _beside) = map_all(&driven, &handle);
        let before = told(&driven).0;
        let retired: [Retired<_, _>; 2] = [low, high].map(Mapping::retire);
        let mut buffers = Vec::new();
        for retired in retired {
            buffers.push(retired.wait().expect("a unit that works"));
            assert_eq!((told(&driven).0 - before, cached(&device)), (1, vec![2 * APART]));
        }
        drop(between.unmap().expect("a unit that works"));
        driven.assert_content("after retirements");
    }
}

#[test]
fn neighbours_are_one_range_in_whatever_order_they_go() {
    const PAGES: usize = 64;
    let every_other =
        || (0..PAGES / 2).rev().map(|index| 2 * index).chain((0..PAGES / 2).map(|index| 2 * index + 1));
    let outwards = || (0..PAGES / 2).flat_map(|distance| [PAGES / 2 + distance, PAGES / 2 - 1 - distance]);
    let orders: [Vec<usize>; 4] =
        [(0..PAGES).collect(), (0..PAGES).rev().collect(), every_other().collect(), outwards().collect()];
    for order in orders {
        let (driven, handle, device) = start(machine(false));
        let kept = [APART - PAGE, APART + PAGES as u64 * PAGE];
        let beside = kept.map(|iova| map_at(&driven, &handle, iova));
        let place = |page| APART + page as u64 * PAGE;
        let mut pages: Vec<_> = (0..PAGES).map(|page| Some(map_at(&driven, &handle, place(page)))).collect();
        let batch = order.iter().map(|&index| pages[index].take().expect("once")).collect();
        let before = told(&driven);
        drop(handle.unmap_batch(batch).expect("a unit that works"));
        let after = told(&driven);
        assert_eq!(
            (after.0 - before.0, after.1 - before.1),
            (1, 2),
            "one invalidation and its wait, {order:?}"
        );
        assert_eq!(cached(&device), kept, "{order:?}");
        for page in 0..PAGES {
            assert!(device.probe(place(page), Access::Read).is_err(), "page {page} of {order:?}");
        }
        beside.into_iter().for_each(|mapping| drop(mapping.unmap().expect("a unit that works")));
        driven.assert_content("after neighbours");
    }
}

#[test]
fn neighbours_from_page_0_on_go_together_whatever_their_lengths() {
    // The fourth is a superpage.
    const PAGES: [u32; 5] = [1, 2, 509, 512, 1];
    let orders = [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 3, 1, 4, 0]];
    for order in orders {
        let (driven, handle, device) = start(machine(false));
        let mut places = Vec::new();
        let mut mappings: Vec<_> = PAGES
            .iter()
            .scan(0, |first, &pages| {
                let iova = *first;
                *first += u64::from(pages) * PAGE;
                Some((iova, pages))
            })
            .map(|(iova, pages)| {
                let buffer =
                    driven.machine.allocate_buffer(pages, pages.next_power_of_two()).expect("memory");
                let mapping = handle.dma_map_at(buffer, Bidirectional, Iova::new(iova));
                places.extend([iova, iova + u64::from(pages - 1) * PAGE]);
                Some(mapping.map_err(|rejected| rejected.error).expect("nobody has the address"))
            })
            .collect();
        for &place in &places {
            device.probe(place, Access::Write).expect("mapped");
        }
        let beside = map_at(&driven, &handle, 1025 * PAGE);
        let batch = order.iter().map(|&index| mappings[index].take().expect("once")).collect();
        drop(handle.unmap_batch(batch).expect("a unit that works"));
        assert_eq!(cached(&device).iter().filter(|&&iova| iova < 1025 * PAGE).count(), 0, "{order:?}");
        for &place in &places {
            assert!(device.probe(place, Access::Read).is_err(), "{place:#x} of {order:?}");
        }
        drop(beside.unmap().expect("a unit that works"));
        driven.assert_content("after neighbours");
    }
}

#[test]
fn of_more_ranges_than_are_kept_those_that_are_close_become_one() {
    let (driven, handle, device) = start(machine(false));
    // Eight places far apart, and in each of them every other of eight pages.
    let places = || (1..=8_u64).map(|place| place * APART);
    let beside: Vec<_> = places().map(|first| map_at(&driven, &handle, first + 8 * PAGE)).collect();
    let pages = (0..4).flat_map(|page| places().map(move |first| first + 2 * page * PAGE));
    let batch = pages.map(|iova| map_at(&driven, &handle, iova)).collect();
    let before = told(&driven);
    drop(handle.unmap_batch(batch).expect("a unit that works"));
    assert_eq!(told(&driven).1 - before.1, 9, "an invalidation for each place, and a wait");
    assert_eq!(cached(&device), places().map(|first| first + 8 * PAGE).collect::<Vec<_>>());
    drop(handle.unmap_batch(beside).expect("a unit that works"));
    driven.assert_content("after many ranges");
}

/// Unmaps ranges of so many pages each, far apart and each behind an odd page, on a unit with CAP.MAMV `mask`. Returns
/// the descriptors that it takes, waits included, and whether a translation beside them is still cached.
fn unmap_ranges(mask: u8, lengths: &[u32]) -> (u64, bool) {
    let mut config = machine(false);
    config.units[0].page_selective = Some(mask);
    let (driven, handle, device) = start(config);
    let beside = map_at(&driven, &handle, PAGE);
    let mut batch = Vec::new();
    let mut kept = Vec::new();
    for (place, &pages) in (1..).zip(lengths) {
        let first = place * APART + PAGE;
        kept.push(map_at(&driven, &handle, place * APART));
        let buffer = driven.machine.allocate_buffer(pages, 1).expect("memory");
        let mapping = handle.dma_map_at(buffer, Bidirectional, Iova::new(first));
        batch.push(mapping.map_err(|rejected| rejected.error).expect("nobody has the address"));
        (0..u64::from(pages)).for_each(|page| {
            device.probe(first + page * PAGE, Access::Write).expect("mapped");
        });
    }
    let before = told(&driven).1;
    drop(handle.unmap_batch(batch).expect("a unit that works"));
    let descriptors = told(&driven).1 - before;
    let is_cached = cached(&device).contains(&PAGE);
    kept.into_iter().chain([beside]).for_each(|mapping| drop(mapping.unmap().expect("a unit that works")));
    driven.assert_content("after ranges");
    (descriptors, is_cached)
}

#[test]
fn eight_descriptors_spare_the_rest_of_the_domain_and_nine_would_cost_more_than_it() {
    const DOMAIN_AND_WAIT: (u64, bool) = (2, false);
    // Two pages that no aligned pair holds take two.
    for (lengths, wanted) in [
        (&[2, 2, 2, 2][..], (9, true)),
        (&[2, 2, 2, 2, 1], DOMAIN_AND_WAIT),
        (&[1; 8], (9, true)),
        (&[2, 1, 1, 1, 1, 1, 1, 1], DOMAIN_AND_WAIT),
    ] {
        assert_eq!(unmap_ranges(18, lengths), wanted, "{lengths:?}");
    }
    // One range, on a unit that names so many pages at a time.
    for (mask, pages, wanted) in
        [(0, 8, (9, true)), (0, 9, DOMAIN_AND_WAIT), (1, 15, (9, true)), (1, 17, DOMAIN_AND_WAIT)]
    {
        assert_eq!(unmap_ranges(mask, &[pages]), wanted, "MAMV {mask}, {pages} pages");
    }
}

#[test]
fn nothing_stale_is_left_of_any_selection() {
    const MAPPED: u64 = 40;
    let rounds = if cfg!(miri) { 4 } else { 200 };
    let mut random = Random::new(7);
    for ats in [false, true] {
        let config = MachineConfig { prefetch_once_in: 8, ..machine(ats) };
        let (driven, handle, device) = start(config);
        for round in 0..rounds {
            let (mut goes, mut stays) = (Vec::new(), Vec::new());
            let spread = random.between(0, 24);
            for number in 0..MAPPED {
                let iova = (1 << 33) + (number << (12 + spread)) + (random.below(1 << spread) << 12);
                let part = if random.once_in(2) { &mut goes } else { &mut stays };
                part.push((iova, map_at(&driven, &handle, iova)));
            }
            let iovas: Vec<u64> = goes.iter().map(|(iova, _)| *iova).collect();
            let batch: Vec<_> = goes.into_iter().map(|(_, mapping)| mapping).collect();
            if random.once_in(2) {
                drop(handle.unmap_batch(batch).expect("a unit that works"));
            } else {
                let retired: Vec<_> = batch.into_iter().map(Mapping::retire).collect();
                driven.machine.clock().advance(MAX_DELAY_NS);
                driven.iommu.reap();
                let ready = |retired: Retired<_, _>| matches!(retired.poll(), Ok(Late::Ready(_)));
                assert!(retired.into_iter().all(ready), "round {round}");
            }
            for iova in iovas {
                assert!(device.probe(iova, Access::Read).is_err(), "round {round}: {iova:#x}");
            }
            for (iova, mapping) in stays {
                assert!(device.probe(iova, Access::Read).is_ok(), "round {round}: {iova:#x}");
                drop(mapping.unmap().expect("a unit that works"));
            }
            driven.assert_content("after a round");
        }
    }
}
