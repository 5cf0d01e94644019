//! Every range in a small space against what it must cover.

use std::{vec, vec::Vec};

use super::*;
use crate::vtd::spec::{Capabilities, ExtendedCapabilities, Version};

const SPACE_PAGES: u64 = if cfg!(miri) { 12 } else { 64 };
const DOMAIN: DomainId = DomainId::new(7);

fn page(number: u64) -> Iova {
    Iova::new(number << mm::PAGE_SHIFT)
}

/// Last byte of page `number`.
fn end(number: u64) -> Iova {
    Iova::new((number << mm::PAGE_SHIFT) + 0xfff)
}

fn capability(page_selective: bool, maximum_mask: u8) -> Capability {
    let cap = Capabilities::new()
        .with_fault_offset(0x20)
        .with_page_selective(page_selective)
        .with_maximum_mask(maximum_mask);
    let ecap = ExtendedCapabilities::new().with_invalidate_offset(0x10);
    Capability::decode(Version::new().with_major(1), cap, ecap).unwrap()
}

fn every_range() -> impl Iterator<Item = (u64, u64)> {
    (0..SPACE_PAGES).flat_map(|first| (first..SPACE_PAGES).map(move |last| (first, last)))
}

fn blocks(first: u64, last: u64, max_order: u8) -> Vec<(u64, u8)> {
    Blocks::covering(page(first), end(last), max_order)
        .map(|block| (block.first.as_u64() >> mm::PAGE_SHIFT, block.order))
        .collect()
}

#[test]
fn every_range_is_covered_at_both_ends_by_aligned_blocks() {
    for max_order in 0..=7 {
        for (first, last) in every_range() {
            let mut covered = vec![0; 2 * SPACE_PAGES as usize];
            for (start, order) in blocks(first, last, max_order) {
                assert!(order <= max_order && start % (1 << order) == 0, "{first}..={last}: {start} {order}");
                (start..start + (1 << order)).for_each(|page| covered[page as usize] += 1);
            }
            assert!(
                (first..=last).all(|page| covered[page as usize] == 1),
                "{first}..={last} order {max_order}"
            );
            let total: u64 = covered.iter().sum();
            assert!(total < 2 * (last - first + 1), "{first}..={last}: {total} pages");
        }
    }
}

#[test]
fn no_fewer_blocks_would_do() {
    for (first, last) in every_range() {
        let count = blocks(first, last, 7).len();
        let pages = last - first + 1;
        // One block suffices exactly if some aligned one holds both ends and is less than twice the range.
        let one = (0..7).any(|order| first >> order == last >> order && 1 << order < 2 * pages);
        assert_eq!(count, if one { 1 } else { 2 }, "{first}..={last}");
    }
}

#[test]
fn large_addresses_and_lengths_do_not_overflow() {
    let top = (1 << 52) - 1;
    assert_eq!(blocks(top, top, 51), [(top, 0)]);
    assert_eq!(blocks(0, top, 51), [(0, 51), (1 << 51, 51)]);
    assert_eq!(blocks(1, top - 1, 51), [(0, 51), (1 << 51, 51)]);
}

#[test]
fn a_range_is_invalidated_by_pages_while_the_mask_reaches() {
    for mask in 0..=6 {
        for (first, last) in every_range() {
            let mut plan = Plan::new(DOMAIN, true, &capability(true, mask), TableStage::Second);
            plan.add(page(first), end(last));
            let blocks = blocks(first, last, mask);
            if blocks.len() > MAX_PAGE_DESCRIPTORS {
                assert_eq!(plan.invalidations().to_vec(), [Invalidation::Iotlb(IotlbScope::Domain(DOMAIN))]);
                continue;
            }
            let pages = |&(start, order): &(u64, u8)| {
                let scope = IotlbScope::Pages { domain: DOMAIN, first: page(start), order, leaf_only: true };
                Invalidation::Iotlb(scope)
            };
            assert_eq!(plan.invalidations().to_vec(), blocks.iter().map(pages).collect::<Vec<_>>());
        }
    }
}

#[test]
fn without_page_selective_invalidation_the_domain_goes() {
    let mut plan = Plan::new(DOMAIN, true, &capability(false, 0), TableStage::Second);
    assert!(plan.invalidations().is_empty());
    plan.add(page(5), end(5));
    assert_eq!(plan.invalidations().to_vec(), [Invalidation::Iotlb(IotlbScope::Domain(DOMAIN))]);
}

#[test]
fn too_many_ranges_become_the_domain_and_stay_it() {
    let mut plan = Plan::new(DOMAIN, false, &capability(true, 9), TableStage::Second);
    for range in 0..MAX_PAGE_DESCRIPTORS as u64 {
        plan.add(page(4 * range), end(4 * range));
    }
    assert_eq!(plan.invalidations().len(), MAX_PAGE_DESCRIPTORS);
    for range in 0..3 {
        plan.add(page(1000 + range), end(1000 + range));
        assert_eq!(plan.invalidations().to_vec(), [Invalidation::Iotlb(IotlbScope::Domain(DOMAIN))]);
    }
}

#[test]
fn a_superpage_takes_a_mask_of_its_size_or_the_domain() {
    let domain = [Invalidation::Iotlb(IotlbScope::Domain(DOMAIN))];
    for (superpage, mask) in
        SUPERPAGE_ORDERS.into_iter().flat_map(|order| (0..=20).map(move |mask| (order, mask)))
    {
        for pages in [1 << superpage, (1 << superpage) + 7, 3 << superpage] {
            let mut plan = Plan::new(DOMAIN, false, &capability(true, mask), TableStage::Second);
            let first = 5 << superpage;
            plan.add(page(first), end(first + pages - 1));
            let reaches = |invalidation: &Invalidation| {
                matches!(*invalidation, Invalidation::Iotlb(IotlbScope::Pages { first: start, order, .. })
                    if start.as_u64() >> mm::PAGE_SHIFT >> order == first >> order && order >= superpage)
            };
            let is_reached = plan.invalidations().iter().any(reaches);
            assert!(*plan.invalidations() == domain || is_reached, "{pages} pages, mask {mask}: {plan:?}");
        }
    }
}

#[test]
fn the_tlb_of_a_device_is_in_the_plan_until_it_is_emptied() {
    let source = crate::SourceId { segment: 2, requester: 0x0310 };
    let queue_depth = core::num::NonZeroU8::new(7).unwrap();
    let device = CachingDevice { source, physical_function: 0x0300, queue_depth };
    let all = device.invalidation(DeviceTlbScope::All);
    for (unit, most) in [(capability(true, 9), MAX_PAGE_DESCRIPTORS), (capability(false, 0), 1)] {
        let mut plan = Plan::new(DOMAIN, false, &unit, TableStage::Second).with_device(Some(device));
        for count in 1..=MAX_DEVICE_DESCRIPTORS as u64 {
            plan.add(page(4 * count), end(4 * count));
            let scope = DeviceTlbScope::Pages { first: page(4 * count), order: 0 };
            assert!(plan.invalidations().contains(&device.invalidation(scope)));
            assert_eq!(plan.invalidations().len(), count as usize + most.min(count as usize));
        }
        for range in 0..3 {
            plan.add(page(1000 + range), end(1000 + range));
            let whole = Invalidation::Iotlb(IotlbScope::Domain(DOMAIN));
            assert_eq!(plan.invalidations().to_vec(), [all, whole]);
        }
    }
}

#[test]
fn device_tlbs_are_covered_by_at_most_two_scopes() {
    for (first, last) in every_range() {
        let scopes: Vec<_> = DeviceTlbScope::covering(page(first), end(last)).collect();
        assert!(scopes.len() <= 2);
        let holds = |number: u64| {
            scopes.iter().any(|scope| match *scope {
                DeviceTlbScope::All => false,
                DeviceTlbScope::Pages { first, order } => {
                    first.as_u64() >> mm::PAGE_SHIFT >> order == number >> order
                }
            })
        };
        assert!((first..=last).all(holds));
    }
}

#[test]
fn one_scope_covers_what_one_block_does() {
    for max_mask in [0, 3, 5] {
        let capability = capability(true, max_mask);
        for (first, last) in every_range() {
            let scope =
                IotlbScope::covering(DOMAIN, true, &capability, TableStage::Second, (page(first), end(last)));
            let expected = match blocks(first, last, max_mask)[..] {
                [(start, order)] => {
                    Some(IotlbScope::Pages { domain: DOMAIN, first: page(start), order, leaf_only: true })
                }
                _ => None,
            };
            assert_eq!(scope, expected, "{first}..={last}, {max_mask}");
        }
    }
    let pages = (page(1), end(1));
    let unable = capability(false, 0);
    assert_eq!(IotlbScope::covering(DOMAIN, false, &unable, TableStage::Second, pages), None);
}

/// Whatever the unit reports of the second.
#[test]
fn pages_of_the_first_stage_are_named_up_to_the_largest_leaf() {
    for unit in [capability(false, 0), capability(true, 0), capability(true, 51)] {
        for (order, most) in [(0, 0), (9, 9), (18, 18), (19, 18)] {
            let (first, last) = (page(0), end((1 << order) - 1));
            let mut plan = Plan::new(DOMAIN, true, &unit, TableStage::First);
            plan.add(first, last);
            let named = |&invalidation: &Invalidation| match invalidation {
                Invalidation::Iotlb(IotlbScope::Pages { order, .. }) => order,
                other => panic!("{other:?} for pages"),
            };
            let orders: Vec<_> = plan.invalidations().iter().map(named).collect();
            assert_eq!(orders, vec![most; 1 << (order - most)]);
            let one = IotlbScope::covering(DOMAIN, true, &unit, TableStage::First, (first, last));
            assert_eq!(one.is_some(), order == most);
        }
    }
}
