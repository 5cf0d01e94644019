//! Map, in the simple way: pages into one lowest table that is there.

use super::format::{Format, level_bytes};
use super::leaves;
use super::link;
use super::memory::{TABLE_ENTRIES, TableMemory};
use super::tree::{PageTable, index};
use crate::machine::AtomicU64;
use crate::{PAGE_BYTES, PAGE_SHIFT, PhysAddr, PhysRange};

/// What was mapped in the simple way: whole segments, and in all so many pages.
#[derive(Clone, Copy)]
pub(super) struct Filled {
    pub(super) pages: usize,
    pub(super) segments: usize,
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// Maps `segment`, or its start up to an entry that is in use, if it fits into one lowest table that is there.
    #[inline(always)]
    pub(super) fn fill_one(&self, input: u64, segment: &PhysRange, access: F::Access) -> Filled {
        // A superpage might map what fills the table.
        let pinned = if segment.bytes < level_bytes(2) { self.pin_lowest(input) } else { None };
        let Some(pinned) = pinned else { return Filled { pages: 0, segments: 0 } };
        let entries = &pinned.table[index(input, 1)..];
        let Some(run) = self.simple_run(segment, entries) else {
            self.retreat(pinned.link, input);
            return Filled { pages: 0, segments: 0 };
        };
        let raw = self.format.encode_leaf(1, segment.start, access);
        let pages = leaves::fill_run(run, raw, PAGE_BYTES, pinned.was_empty);
        self.settle_lowest(pinned.link, &run[..pages], input);
        Filled { pages, segments: usize::from(pages == run.len()) }
    }

    /// Maps as much from the start of `segments` as simply fits into one lowest table that is there.
    #[inline(always)]
    pub(super) fn fill_list(&self, input: u64, segments: &[PhysRange], access: F::Access) -> Filled {
        let Some(pinned) = self.pin_lowest(input) else { return Filled { pages: 0, segments: 0 } };
        let entries = &pinned.table[index(input, 1)..];
        let leaf = self.format.encode_leaf(1, PhysAddr::new(0), access);
        let pages = if pinned.was_empty {
            leaves::fill_scattered::<true>(entries, segments, leaf, self.no_output)
        } else {
            leaves::fill_scattered::<false>(entries, segments, leaf, self.no_output)
        };
        let mut filled = Filled { pages, segments: pages };
        if pages != segments.len() {
            filled = self.fill_mixed(entries, segments, leaf, filled);
        }
        self.settle_lowest(pinned.link, &entries[..filled.pages], input);
        filled
    }

    /// Goes on after `filled` with `segments`, of which the next one is not just a page, in `entries`.
    #[inline(never)]
    fn fill_mixed(
        &self,
        entries: &[AtomicU64],
        segments: &[PhysRange],
        leaf: u64,
        mut filled: Filled,
    ) -> Filled {
        while let Some((segment, rest)) = segments[filled.segments..].split_first()
            && let Some(run) = self.simple_run(segment, &entries[filled.pages..])
        {
            let written = leaves::fill_run(run, leaf + segment.start.as_u64(), PAGE_BYTES, false);
            filled.pages += written;
            if written != run.len() {
                break;
            }
            let pages = leaves::fill_scattered::<false>(&entries[filled.pages..], rest, leaf, self.no_output);
            filled.pages += pages;
            filled.segments += 1 + pages;
        }
        filled
    }

    /// The entries at the start of `entries` that `segment` takes, unless it is anything but pages that fit.
    #[inline(always)]
    fn simple_run<'e>(&self, segment: &PhysRange, entries: &'e [AtomicU64]) -> Option<&'e [AtomicU64]> {
        let start = segment.start.as_u64();
        let last_page = start.wrapping_add(segment.bytes).wrapping_sub(PAGE_BYTES);
        let pages = (segment.bytes >> PAGE_SHIFT) as usize;
        if (start | last_page | segment.bytes) & self.no_output != 0 || pages == 0 || pages == TABLE_ENTRIES {
            return None;
        }
        entries.get(..pages)
    }

    #[inline(always)]
    fn settle_lowest(&self, link: &AtomicU64, written: &[AtomicU64], input: u64) {
        if written.is_empty() {
            self.retreat(link, input);
            return;
        }
        self.write_back(written);
        link::settle(link, written.len() as u64);
    }
}
