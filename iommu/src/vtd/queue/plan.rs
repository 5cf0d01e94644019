//! Which invalidations cover a range of addresses.

use core::ops::Deref;

use super::{
    invalidation::{CachingDevice, Invalidation, IotlbScope},
    job::MAX_ITEMS,
    ring::ENTRY_BYTES,
};
use crate::{
    Iova,
    vtd::{
        capability::Capability,
        mode::TableStage,
        spec::{DeviceTlbScope, DomainId},
    },
};

/// Most page-selective invalidations that a [`Plan`] holds. Whatever takes more is invalidated with its whole domain.
///
/// It is where page-selective ones are sure to cost no more memory reads than one of the domain. Each of them costs a
/// descriptor that the unit fetches: a quarter of a line. One of the domain costs a line of page table later for each
/// translation outside the range that the device uses again, while the upper levels are cached; and a device in use has
/// two at least, of where it reads its work and of where it says that it is done. So two lines of descriptors always
/// pay. Whether more do depends on what the device does, which nobody tells; and units that search their whole IOTLB
/// for each descriptor, as emulated ones do, make long lists dearer still.
///
/// How much memory that is, the unit says: with CAP.MAMV, a range takes one or two for as long as each of its parts is
/// no longer than 2^MAMV pages, and then one for each 2^MAMV pages, so that a range of more than `8 << MAMV` pages
/// always goes with its domain. Without CAP.PSI every range does. For the first stage it is as if MAMV were 18. The
/// room in the queue does not matter: the smallest has 128 entries.
pub const MAX_PAGE_DESCRIPTORS: usize = DESCRIPTORS_A_LINE * TRANSLATIONS_IN_USE;

/// What a unit fetches from memory at a time holds so many descriptors, or half as many of 256 bits.
const DESCRIPTORS_A_LINE: usize = 64 / ENTRY_BYTES;

/// Translations that a device in use has at least.
const TRANSLATIONS_IN_USE: usize = 2;

/// Most invalidations of a device's TLB that a [`Plan`] holds: those of four ranges. Whatever takes more empties the
/// TLB: each is a round trip over the link, which costs more than the translations that it spares.
pub const MAX_DEVICE_DESCRIPTORS: usize = 8;

/// The invalidations that cover one or more ranges of a domain: a few page-selective ones, or one of the whole domain;
/// and the same of the TLB of a device.
#[derive(Clone, Debug)]
pub struct Plan {
    domain: DomainId,
    leaf_only: bool,
    /// log2 of the most pages that one invalidation may name; `None` if the unit knows only whole domains.
    max_order: Option<u8>,
    /// The first `count` are there.
    scopes: [IotlbScope; MAX_PAGE_DESCRIPTORS],
    count: usize,
    device: Option<DevicePlan>,
}

/// What of the TLB of a device is to go.
#[derive(Clone, Debug)]
struct DevicePlan {
    device: CachingDevice,
    /// The first `count` are there.
    scopes: [DeviceTlbScope; MAX_DEVICE_DESCRIPTORS],
    count: usize,
}

/// The invalidations of a [`Plan`], as one batch.
struct List {
    items: [Invalidation; MAX_DEVICE_DESCRIPTORS + MAX_PAGE_DESCRIPTORS],
    count: usize,
}

/// A plan is one job.
const _: () = assert!(MAX_PAGE_DESCRIPTORS + MAX_DEVICE_DESCRIPTORS <= MAX_ITEMS);

/// log2 of the pages in superpages of 2 MiB and of 1 GiB.
const SUPERPAGE_ORDERS: [u8; 2] = [9, 18];

/// Page numbers have no more bits than this.
const PAGE_NUMBER_BITS: u8 = 52;

impl Plan {
    /// A plan for translations of `domain`, by tables of `stage`. With `leaf_only`, nothing but leaves changed, so that
    /// cached upper levels may stay.
    #[must_use]
    #[inline]
    pub fn new(domain: DomainId, leaf_only: bool, capability: &Capability, stage: TableStage) -> Self {
        let max_order = max_order(capability, stage);
        let scopes = [IotlbScope::Domain(domain); MAX_PAGE_DESCRIPTORS];
        Self { domain, leaf_only, max_order, scopes, count: 0, device: None }
    }

    /// The same plan, for the TLB of `device` as well. Nothing was added yet.
    #[must_use]
    pub fn with_device(mut self, device: Option<CachingDevice>) -> Self {
        debug_assert!(self.count == 0, "the ranges before would not be in the device's plan");
        self.device = device.map(DevicePlan::new);
        self
    }

    /// Adds `first..=last`.
    #[inline]
    pub fn add(&mut self, first: Iova, last: Iova) {
        if let Some(device) = &mut self.device {
            device.add(first, last);
        }
        let Some(max_order) = self.max_order else { return self.widen() };
        match Block::around(first, last, max_order) {
            Some(block) => self.push(block),
            None => self.add_in_parts(first, last, max_order),
        }
    }

    /// Adds a range that no single block covers.
    fn add_in_parts(&mut self, first: Iova, last: Iova, max_order: u8) {
        if may_hold_larger_leaf(first, last, max_order) {
            return self.widen();
        }
        for block in Blocks::covering(first, last, max_order) {
            if self.max_order.is_none() {
                return;
            }
            self.push(block);
        }
    }

    #[inline]
    fn push(&mut self, Block { first, order }: Block) {
        let Some(free) = self.scopes.get_mut(self.count) else { return self.widen() };
        *free = IotlbScope::Pages { domain: self.domain, first, order, leaf_only: self.leaf_only };
        self.count += 1;
    }

    /// From now on it covers the whole domain, whatever is added.
    #[cold]
    fn widen(&mut self) {
        self.max_order = None;
        self.scopes[0] = IotlbScope::Domain(self.domain);
        self.count = 1;
    }

    /// What the unit is to forget.
    #[must_use]
    #[inline]
    pub fn scopes(&self) -> &[IotlbScope] {
        &self.scopes[..self.count]
    }

    /// What to submit: that, and what the device is to forget. The order does not matter: see
    /// [`Unit::submit`](crate::vtd::Unit::submit).
    #[must_use]
    pub fn invalidations(&self) -> impl Deref<Target = [Invalidation]> + use<> {
        let whole = Invalidation::Iotlb(IotlbScope::Domain(self.domain));
        let mut list = List { items: [whole; MAX_DEVICE_DESCRIPTORS + MAX_PAGE_DESCRIPTORS], count: 0 };
        let of_device = self.device.iter().flat_map(DevicePlan::invalidations);
        for item in of_device.chain(self.scopes().iter().copied().map(Invalidation::Iotlb)) {
            list.items[list.count] = item;
            list.count += 1;
        }
        list
    }
}

impl DevicePlan {
    fn new(device: CachingDevice) -> Self {
        let scopes = [DeviceTlbScope::All; MAX_DEVICE_DESCRIPTORS];
        Self { device, scopes, count: 0 }
    }

    fn add(&mut self, first: Iova, last: Iova) {
        for scope in DeviceTlbScope::covering(first, last) {
            if let [DeviceTlbScope::All] = self.scopes[..self.count] {
                return;
            }
            match self.scopes.get_mut(self.count) {
                Some(free) => {
                    *free = scope;
                    self.count += 1;
                }
                None => {
                    self.scopes[0] = DeviceTlbScope::All;
                    self.count = 1;
                }
            }
        }
    }

    fn invalidations(&self) -> impl Iterator<Item = Invalidation> {
        self.scopes[..self.count].iter().map(|&scope| self.device.invalidation(scope))
    }
}

impl Deref for List {
    type Target = [Invalidation];

    fn deref(&self) -> &[Invalidation] {
        &self.items[..self.count]
    }
}

/// log2 of the most pages that one invalidation may name. What a unit reports of that is of the second stage: every one
/// that has a first names as many pages of it as its largest leaf has.
#[inline]
fn max_order(capability: &Capability, stage: TableStage) -> Option<u8> {
    match stage {
        TableStage::First => Some(SUPERPAGE_ORDERS[1]),
        TableStage::Second => capability.page_selective_order().map(|order| order.min(PAGE_NUMBER_BITS - 1)),
    }
}

/// Whether the range may hold a superpage of more than 2^`max_order` pages. Only an invalidation with a mask of at
/// least its size is sure to reach the one translation that a unit keeps of it (register IVA_REG, field AM). What a
/// part was taken of counts as a whole: the tokens of `mm` say so.
fn may_hold_larger_leaf(first: Iova, last: Iova, max_order: u8) -> bool {
    let pages = (last.as_u64() >> mm::PAGE_SHIFT) - (first.as_u64() >> mm::PAGE_SHIFT) + 1;
    SUPERPAGE_ORDERS.iter().any(|&order| max_order < order && pages >= 1 << order)
}

impl IotlbScope {
    /// The one scope that covers `first..=last` of `domain` as closely as a [`Plan`] does, if one does: most ranges are
    /// aligned to their size.
    #[must_use]
    #[inline]
    pub fn covering(
        domain: DomainId,
        leaf_only: bool,
        capability: &Capability,
        stage: TableStage,
        (first, last): (Iova, Iova),
    ) -> Option<Self> {
        let max_order = max_order(capability, stage)?;
        let Block { first, order } = Block::around(first, last, max_order)?;
        Some(Self::Pages { domain, first, order, leaf_only })
    }
}

impl DeviceTlbScope {
    /// The scopes, one or two, that cover `first..=last`.
    pub fn covering(first: Iova, last: Iova) -> impl Iterator<Item = Self> {
        Blocks::covering(first, last, Self::MAX_ORDER)
            .map(|Block { first, order }| Self::Pages { first, order })
    }
}

/// 2^`order` pages from `first`, which is a multiple of that size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Block {
    first: Iova,
    order: u8,
}

impl Block {
    /// The block that covers a range, both ends included, and less than as much again around it, if one does.
    #[inline]
    fn around(first: Iova, last: Iova, max_order: u8) -> Option<Self> {
        let (first, last) = (first.as_u64() >> mm::PAGE_SHIFT, last.as_u64() >> mm::PAGE_SHIFT);
        debug_assert!(first <= last);
        // The smallest aligned block that both ends lie in.
        let order = (u64::BITS - (first ^ last).leading_zeros()) as u8;
        let fits = order <= max_order && 1 << order < 2 * (last - first + 1);
        fits.then(|| Self { first: Iova::new(first >> order << order << mm::PAGE_SHIFT), order })
    }
}

/// Blocks that cover a range, both ends included, and less than as much again around it.
///
/// A range that has no large alignment boundary inside is covered by one block. Any other is cut at the largest
/// boundary in it: each part then touches that boundary with one end, so that the block which covers it is the smallest
/// power of two that holds it. Where that is larger than a block may be, several of the largest stand side by side.
struct Blocks {
    /// At most two runs of equal blocks.
    runs: [Run; 2],
}

/// `count` blocks of 2^`order` pages from page `page` on.
#[derive(Clone, Copy)]
struct Run {
    page: u64,
    order: u8,
    count: u64,
}

impl Blocks {
    fn covering(first: Iova, last: Iova, max_order: u8) -> Self {
        if let Some(Block { first, order }) = Block::around(first, last, max_order) {
            let one = Run { page: first.as_u64() >> mm::PAGE_SHIFT, order, count: 1 };
            return Self { runs: [one, Run { count: 0, ..one }] };
        }
        let (first, last) = (first.as_u64() >> mm::PAGE_SHIFT, last.as_u64() >> mm::PAGE_SHIFT);
        let order = u64::BITS - (first ^ last).leading_zeros();
        // The ends lie in different halves of that block.
        let middle = last >> (order - 1) << (order - 1);
        let below = Run::of_pages(middle - first, max_order);
        let above = Run::of_pages(last - middle + 1, max_order);
        Self {
            runs: [
                Run { page: middle - (below.count << below.order), ..below },
                Run { page: middle, ..above },
            ],
        }
    }
}

impl Run {
    /// As many blocks as hold `pages` pages that start or end at a boundary; where, is for the caller to say.
    fn of_pages(pages: u64, max_order: u8) -> Self {
        let order = (pages.next_power_of_two().trailing_zeros() as u8).min(max_order);
        Self { page: 0, order, count: pages.div_ceil(1 << order) }
    }
}

impl Iterator for Blocks {
    type Item = Block;

    fn next(&mut self) -> Option<Block> {
        let run = self.runs.iter_mut().find(|run| run.count > 0)?;
        let block = Block { first: Iova::new(run.page << mm::PAGE_SHIFT), order: run.order };
        run.page += 1 << run.order;
        run.count -= 1;
        Some(block)
    }
}

#[cfg(test)]
mod tests;
