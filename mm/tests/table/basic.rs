//! What each operation does, once.

use mm::table::x86::{X86Access, X86Format};
use mm::table::{EditError, Entry, LeafSizes, MapError, OutOfTables, PageTable, Run};

use super::arena::Arena;
use super::format::{BOTH, DIRTY, READ, Remap, WRITE};
use super::walker::Walker;
use super::{G1, K4, M2, Tree, finish, flush, range, remap, tree};

pub fn runs<F: mm::table::Format>(tree: &Tree<'_, F>) -> Vec<(u64, u64, u64)> {
    tree.runs(0, (1 << 39) - 1)
        .map(|Run { input, output, bytes, .. }| (input, output.as_u64(), bytes))
        .collect()
}

#[test]
fn maps_looks_up_and_unmaps() {
    let memory = Arena::new(16);
    let tree = tree(remap(), &memory);
    // SAFETY: no other thread changes the tree.
    unsafe {
        assert!(tree.map(0x5000, &[range(0x8000_0000, 2 * K4)], BOTH).unwrap().is_none());
        let found = tree.lookup(0x6123).unwrap();
        assert_eq!((found.output.as_u64(), found.access, found.leaf_bytes), (0x8000_1123, BOTH, K4));
        assert_eq!(runs(&tree), [(0x5000, 0x8000_0000, 2 * K4)]);
        let stale = tree.unmap(0x5000, 2 * K4).unwrap();
        assert!(stale.only_leaves() && !stale.holds_tables());
        assert_eq!((stale.first(), stale.last(), stale.changed_bytes()), (0x5000, 0x6fff, 2 * K4));
        tree.redeem(flush(stale));
    }
    assert_eq!(runs(&tree), []);
    assert_eq!(tree.lookup(0x5000), None);
    finish(tree);
}

#[test]
fn a_run_out_of_a_table_that_stays_is_stale_and_nothing_beside_it() {
    let memory = Arena::new(16);
    let tree = tree(remap(), &memory);
    // SAFETY: no other thread changes the tree.
    unsafe {
        assert!(tree.map(0x5000, &[range(0x8000_0000, 5 * K4)], BOTH).unwrap().is_none());
        let stale = tree.unmap(0x6000, 3 * K4).unwrap();
        assert_eq!((stale.first(), stale.last(), stale.changed_bytes()), (0x6000, 0x8fff, 3 * K4));
        tree.redeem(flush(stale));
    }
    assert_eq!(runs(&tree), [(0x5000, 0x8000_0000, K4), (0x9000, 0x8000_4000, K4)]);
    finish(tree);
}

#[test]
fn maps_segments_one_after_the_other() {
    let memory = Arena::new(16);
    let tree = tree(remap(), &memory);
    let segments = [range(7 * K4, K4), range(3 * K4, 2 * K4), range(5 * K4, K4), range(M2, M2)];
    // SAFETY: no other thread changes the tree.
    unsafe {
        assert!(tree.map(M2 - 4 * K4, &segments, READ).unwrap().is_none());
        assert_eq!(
            runs(&tree),
            [(M2 - 4 * K4, 7 * K4, K4), (M2 - 3 * K4, 3 * K4, 3 * K4), (M2, M2, M2)],
            "segments that continue each other are one run"
        );
        assert_eq!(tree.lookup(M2).unwrap().leaf_bytes, M2);
    }
    finish(tree);
}

#[test]
fn an_occupied_page_stops_a_map_and_undoes_it() {
    let memory = Arena::new(16);
    let tree = tree(remap(), &memory);
    // SAFETY: no other thread changes the tree.
    unsafe {
        assert!(tree.map(0x5000, &[range(0x8000_0000, K4)], BOTH).unwrap().is_none());
        let error = tree.map(0x4000, &[range(0, 3 * K4)], BOTH).unwrap_err();
        assert!(matches!(error, MapError::AlreadyMapped { input: 0x5000, undone: Some(_) }));
        let undone = error.into_undone().unwrap();
        assert_eq!((undone.first(), undone.last(), undone.changed_bytes()), (0x4000, 0x4fff, K4));
        tree.redeem(flush(undone));
        let error = tree.map(0x5000, &[range(0, 3 * K4)], BOTH).unwrap_err();
        assert!(matches!(error, MapError::AlreadyMapped { input: 0x5000, undone: None }));
        let error = tree.map(0, &[range(0, M2)], BOTH).unwrap_err();
        assert!(matches!(error, MapError::AlreadyMapped { input: 0x5000, .. }), "{error:?}");
        tree.redeem(flush(error.into_undone().unwrap()));
    }
    assert_eq!(runs(&tree), [(0x5000, 0x8000_0000, K4)]);
    finish(tree);
}

/// The short ways, for what lies in one lowest table that is there, take no more than the long one.
#[test]
fn a_table_that_is_there_takes_nothing_that_is_malformed() {
    const BEYOND: u64 = 1 << 46;
    let memory = Arena::new(16);
    let tree = tree(remap(), &memory);
    let page = range(0x8000_0000, K4);
    let check = |error: MapError, is_expected: &dyn Fn(&MapError) -> bool| {
        assert!(is_expected(&error), "{error:?}");
        // SAFETY: the walkers start from the root each time.
        error.into_undone().into_iter().for_each(|undone| tree.redeem(flush(undone)));
        assert_eq!(runs(&tree), [(0x5000, 0x8000_0000, K4)]);
    };
    // SAFETY: no other thread changes the tree.
    unsafe {
        assert!(tree.map(0x5000, &[page], BOTH).unwrap().is_none());
        for bad in [range(0x800, K4), range(0x1000, K4 + 0x800), range(0x1000, 0x800), range(0x1800, 0x1800)]
        {
            for segments in [&[bad][..], &[page, bad], &[page, page, page, bad], &[bad, page]] {
                let error = tree.map(0x1_0000, segments, BOTH).unwrap_err();
                check(error, &|error| matches!(error, MapError::Unaligned { input: 0x1_0000, .. }));
            }
        }
        for bad in [range(BEYOND, K4), range(BEYOND, 2 * K4), range(BEYOND - K4, 2 * K4)] {
            for segments in [&[bad][..], &[page, bad], &[page, page, page, bad], &[bad, page]] {
                let error = tree.map(0x1_0000, segments, BOTH).unwrap_err();
                check(
                    error,
                    &|error| matches!(error, MapError::OutputBeyondWidth { range, .. } if *range == bad),
                );
            }
        }
        for segments in [&[][..], &[range(0x1000, 0)], &[range(0x1000, 0); 2]] {
            let error = tree.map(0x1_0000, segments, BOTH).unwrap_err();
            check(error, &|error| matches!(error, MapError::Unaligned { .. }));
        }
        let error = tree.map(0x1_0800, &[range(0x8000_0000, 2 * K4)], BOTH).unwrap_err();
        check(error, &|error| matches!(error, MapError::Unaligned { .. }));
        for bytes in [0, 0x800, K4 + 0x800, 2 * K4 - 1] {
            assert!(matches!(tree.unmap(0x5000, bytes), Err(EditError::Unaligned { .. })), "{bytes:#x}");
            assert!(matches!(tree.protect(0x5000, bytes, READ), Err(EditError::Unaligned { .. })));
        }
        for input in [0x5800, 0x5001] {
            assert!(matches!(tree.unmap(input, K4), Err(EditError::Unaligned { .. })), "{input:#x}");
            assert!(matches!(tree.unmap(input, 2 * K4), Err(EditError::Unaligned { .. })), "{input:#x}");
        }
    }
    assert_eq!(runs(&tree), [(0x5000, 0x8000_0000, K4)]);
    finish(tree);
}

#[test]
fn superpages_are_used_and_split() {
    let memory = Arena::new(32);
    let tree = tree(remap(), &memory);
    // SAFETY: no other thread changes the tree.
    unsafe {
        assert!(tree.map(0, &[range(G1, 2 * G1), range(8 * G1, M2)], BOTH).unwrap().is_none());
        assert_eq!(tree.lookup(G1 + 5).unwrap().leaf_bytes, G1);
        assert_eq!(tree.lookup(2 * G1 + 5).unwrap().leaf_bytes, M2);
        assert_eq!(tree.pages(), 3);
        let stale = tree.unmap(G1 + M2 + K4, K4).unwrap();
        assert!(!stale.only_leaves() && stale.changed_bytes() == K4);
        tree.redeem(flush(stale));
        assert_eq!(tree.pages(), 5);
        assert_eq!(tree.lookup(G1).unwrap().leaf_bytes, M2);
        let hole = G1 + M2 + K4;
        let rest = 2 * G1 - hole - K4;
        assert_eq!(runs(&tree), [(0, G1, hole), (hole + K4, G1 + hole + K4, rest), (2 * G1, 8 * G1, M2)]);
        let stale = tree.unmap(0, 4 * G1).unwrap();
        assert_eq!(stale.changed_bytes(), 2 * G1 + M2 - K4);
        tree.redeem(flush(stale));
    }
    assert_eq!(runs(&tree), []);
    finish(tree);
}

#[test]
fn protect_changes_permissions_and_nothing_else() {
    let memory = Arena::new(32);
    let tree = tree(remap(), &memory);
    let walker = Walker { root: tree.root(), levels: 4, snoops: false, present: 3 };
    // SAFETY: no other thread changes the tree.
    unsafe {
        assert!(tree.map(0, &[range(G1, 2 * M2), range(0, 2 * K4)], BOTH).unwrap().is_none());
        for input in [M2, 2 * M2 + K4] {
            let (page, index) = walker.walk(&memory, input).unwrap().at;
            memory.set_bits(page, index, DIRTY);
        }
        let stale = tree.protect(M2 - K4, M2 + 2 * K4, READ).unwrap();
        assert_eq!(stale.changed_bytes(), M2 + 2 * K4);
        assert!(!stale.only_leaves(), "a superpage was split");
        tree.redeem(flush(stale));
        let stale = tree.protect(2 * M2, 2 * K4, WRITE).unwrap();
        assert!(stale.only_leaves());
        tree.redeem(flush(stale));
        let stale = tree.protect(2 * M2, K4, WRITE).unwrap();
        assert_eq!(stale.changed_bytes(), 0, "it was so before");
        tree.redeem(flush(stale));
    }
    let rights = |input| tree.lookup(input).unwrap().access;
    assert_eq!((rights(M2 - K4 - 1), rights(M2 - K4), rights(2 * M2 - 1)), (BOTH, READ, READ));
    assert_eq!((rights(2 * M2), rights(2 * M2 + K4)), (WRITE, WRITE));
    let dirty = |input| walker.walk(&memory, input).unwrap().bits & DIRTY != 0;
    assert!(!dirty(0) && !dirty(2 * M2));
    assert!(dirty(2 * M2 + K4), "what hardware has set survives");
    assert!(dirty(M2) && tree.lookup(M2).unwrap().leaf_bytes == M2);
    // SAFETY: no other thread changes the tree.
    let stale = unsafe { tree.unmap(M2, K4) }.unwrap();
    tree.redeem(flush(stale));
    let (page, index) = walker.walk(&memory, 2 * M2 - 1).unwrap().at;
    assert_ne!(memory.read(page, index, true) & DIRTY, 0, "and the split of a superpage");
    finish(tree);
}

#[test]
fn a_trace_shows_the_way() {
    let memory = Arena::new(32);
    let tree = tree(remap(), &memory);
    // SAFETY: no other thread changes the tree.
    unsafe { assert!(tree.map(M2 + K4, &[range(5 * K4, K4)], READ).unwrap().is_none()) };
    let steps: Vec<_> = tree.trace(M2 + K4 + 9).steps().collect();
    let way: Vec<_> = steps.iter().map(|step| (step.level, step.index)).collect();
    assert_eq!(way, [(4, 0), (3, 0), (2, 1), (1, 1)]);
    assert!(matches!(steps[3].entry, Entry::Leaf(output, READ) if output.as_u64() == 5 * K4));
    assert_eq!(steps[3].raw, 5 * K4 + 1);
    let steps: Vec<_> = tree.trace(5 * G1).steps().collect();
    assert_eq!((steps.len(), steps[1].level, steps[1].entry), (2, 3, Entry::Empty));
    assert_eq!(tree.trace(1 << 48).steps().count(), 0);
    finish(tree);
}

#[test]
fn what_does_not_fit_is_refused() {
    let memory = Arena::new(32);
    let tree = tree(remap(), &memory);
    let top = 1 << 48;
    // SAFETY: no other thread changes the tree.
    unsafe {
        let map = |input, segments: &[_]| tree.map(input, segments, BOTH).unwrap_err();
        assert!(matches!(map(1, &[range(0, K4)]), MapError::Unaligned { input: 1, .. }));
        assert!(matches!(map(0, &[range(1, K4)]), MapError::Unaligned { .. }));
        assert!(matches!(map(0, &[range(0, K4), range(0, K4 + 8)]), MapError::Unaligned { .. }));
        assert!(matches!(map(0, &[]), MapError::Unaligned { .. }));
        assert!(matches!(map(0, &[range(0, 0)]), MapError::Unaligned { .. }));
        assert!(matches!(map(top, &[range(0, K4)]), MapError::InputBeyondWidth { .. }));
        assert!(matches!(map(top - K4, &[range(0, 2 * K4)]), MapError::InputBeyondWidth { .. }));
        assert!(matches!(map(0u64.wrapping_sub(K4), &[range(0, 2 * K4)]), MapError::InputBeyondWidth { .. }));
        let high = range((1 << 46) - K4, 2 * K4);
        assert!(matches!(map(0, &[high]), MapError::OutputBeyondWidth { range, .. } if range == high));
        let huge = range(K4, u64::MAX - K4 + 1);
        assert!(matches!(map(0, &[huge]), MapError::OutputBeyondWidth { range, .. } if range == huge));
        for (input, bytes) in [(1, K4), (0, 1), (0, 0), (0x800, 0x800)] {
            assert!(matches!(tree.unmap(input, bytes), Err(EditError::Unaligned { .. })));
            assert!(matches!(tree.protect(input, bytes, READ), Err(EditError::Unaligned { .. })));
        }
        for (input, bytes) in [(top, K4), (top - K4, 2 * K4), (0u64.wrapping_sub(K4), 2 * K4)] {
            assert!(matches!(tree.unmap(input, bytes), Err(EditError::InputBeyondWidth { .. })));
            assert!(matches!(tree.protect(input, bytes, READ), Err(EditError::InputBeyondWidth { .. })));
        }
        // The last page of all, and an empty segment among others, are fine.
        let segments = [range(0, 0), range((1 << 46) - K4, K4), range(0, 0)];
        assert!(tree.map(top - K4, &segments, BOTH).unwrap().is_none());
        assert_eq!(tree.lookup(top - 1).unwrap().output.as_u64(), (1 << 46) - 1);
    }
    assert_eq!(memory.used(), 4);
    finish(tree);
}

#[test]
fn both_halves_of_the_canonical_space() {
    let memory = Arena::new(32);
    for levels in [4, 5] {
        let format = X86Format::new(levels, LeafSizes::all(), 46).unwrap();
        let tree = PageTable::new(format, &memory).unwrap();
        let (top, half) = (0xffff_ffff_ffff_f000, 1 << (11 + 9 * levels));
        // SAFETY: no other thread changes the tree.
        unsafe {
            assert!(tree.map(top, &[range(0x7000, K4)], X86Access::WRITE).unwrap().is_none());
            assert!(tree.map(half - K4, &[range(0x8000, K4)], X86Access::empty()).unwrap().is_none());
            assert_eq!(tree.lookup(top + 5).unwrap().output.as_u64(), 0x7005);
            assert_eq!(tree.runs(0u64.wrapping_sub(half), u64::MAX).count(), 1);
            assert_eq!(tree.runs(0, half - 1).count(), 1);
            assert_eq!(tree.runs(0, half).count(), 0, "not one range of addresses");
            assert!(matches!(tree.unmap(half, K4), Err(EditError::InputBeyondWidth { .. })));
            assert!(matches!(tree.unmap(half - K4, 2 * K4), Err(EditError::InputBeyondWidth { .. })));
            assert!(matches!(tree.unmap(top, 2 * K4), Err(EditError::InputBeyondWidth { .. })));
            assert_eq!(tree.unmap(top, K4).map(|stale| tree.redeem(flush(stale))).ok(), Some(()));
            assert!(tree.lookup(top).is_none() && tree.lookup(half - 1).is_some());
        }
        finish(tree);
    }
}

/// What is to be flushed for a table that was trimmed is where it was, in the upper half too.
#[test]
fn trimmed_tables_are_stale_where_they_were() {
    let memory = Arena::new(32);
    for levels in [4, 5] {
        let half = 1_u64 << (11 + 9 * levels);
        for page in [0x5000, half - K4, 0u64.wrapping_sub(half), 0u64.wrapping_sub(M2), 0u64.wrapping_sub(K4)]
        {
            let format = X86Format::new(levels, LeafSizes::all(), 46).unwrap();
            let tree = PageTable::new(format, &memory).unwrap();
            // SAFETY: no other thread changes the tree.
            unsafe {
                assert!(tree.map(page, &[range(0x7000, K4)], X86Access::WRITE).unwrap().is_none());
                tree.redeem(flush(tree.unmap(page, K4).unwrap()));
                let stale = tree.trim().unwrap();
                assert!((stale.first()..=stale.last()).contains(&page), "{page:#x}: {stale:?}");
                assert_eq!(stale.first() >= half, page >= half, "{page:#x}: {stale:?}");
                assert!(stale.last() - stale.first() < half, "{page:#x}: {stale:?}");
                tree.redeem(flush(stale));
            }
            finish(tree);
        }
    }
}

#[test]
fn x86_entries() {
    let format = X86Format::new(4, LeafSizes::all(), 52).unwrap();
    use mm::table::Format;
    let page = mm::PhysAddr::new(0x000f_ffff_c000_0000);
    assert_eq!(format.hardware_bits(), 0x60, "A and D");
    // A is set in all, D in what can be written: no walker has anything to set.
    assert_eq!(format.encode_table(page), 0x000f_ffff_c000_0027);
    assert_eq!(format.encode_leaf(1, page, X86Access::empty()), 0x000f_ffff_c000_0021);
    assert_eq!(format.encode_leaf(1, page, X86Access::WRITE), 0x000f_ffff_c000_0063);
    let access = X86Access::WRITE | X86Access::NO_EXECUTE | X86Access::GLOBAL;
    assert_eq!(format.encode_leaf(2, page, access), 0x800f_ffff_c000_01e3);
    for level in 1..=3 {
        for access in [X86Access::empty(), access, X86Access::all()] {
            let raw = format.encode_leaf(level, page, access) | 0x60;
            assert_eq!(format.decode(level, raw), Entry::Leaf(page, access));
        }
    }
    for level in 2..=5 {
        let raw = format.encode_table(page) | 0x20 | 0x3ff << 52;
        assert_eq!(format.decode(level, raw), Entry::Table(page));
    }
    assert_eq!(format.decode(1, !1), Entry::Empty);
    for (levels, bits) in [(3, 46), (6, 46), (4, 31), (4, 53)] {
        assert_eq!(X86Format::new(levels, LeafSizes::all(), bits), None);
    }
}

#[test]
fn a_superpage_takes_the_place_of_an_empty_table() {
    let memory = Arena::new(32);
    let tree = tree(Remap { levels: 3, ..remap() }, &memory);
    // SAFETY: no other thread changes the tree.
    unsafe {
        assert!(tree.map(0, &[range(0, K4)], BOTH).unwrap().is_none());
        let stale = tree.unmap(0, K4).unwrap();
        assert!(!stale.holds_tables(), "the table is kept");
        tree.redeem(flush(stale));
        let pages = memory.used();
        let stale = tree.map(0, &[range(M2, M2)], BOTH).unwrap().expect("the table left the tree");
        assert!(stale.holds_tables() && !stale.only_leaves());
        assert_eq!((stale.first(), stale.last(), stale.changed_bytes()), (0, M2 - 1, 0));
        assert_eq!(tree.lookup(0).unwrap().leaf_bytes, M2);
        assert_eq!(memory.used(), pages, "not freed before it is flushed");
        tree.redeem(flush(stale));
        assert_eq!(memory.used(), pages - 1);
    }
    finish(tree);
}

#[test]
fn a_list_of_pages_stops_at_each_place() {
    const PAGES: u64 = 11;
    let pages: Vec<_> = (0..PAGES).map(|page| range(G1 + 2 * page * K4, K4)).collect();
    for place in 0..PAGES {
        let memory = Arena::new(16);
        let tree = tree(remap(), &memory);
        let occupied = M2 + place * K4;
        // SAFETY: no other thread changes the tree.
        unsafe {
            assert!(tree.map(occupied, &[range(0, K4)], BOTH).unwrap().is_none());
            let error = tree.map(M2, &pages, BOTH).unwrap_err();
            assert!(matches!(error, MapError::AlreadyMapped { input, .. } if input == occupied), "{error:?}");
            error.into_undone().into_iter().for_each(|undone| tree.redeem(flush(undone)));
            assert_eq!(runs(&tree), [(occupied, 0, K4)]);
            tree.redeem(flush(tree.unmap(occupied, K4).unwrap()));
            // Two pages in the place of one.
            let mut segments = pages.clone();
            segments[place as usize].bytes = 2 * K4;
            assert!(tree.map(M2, &segments, BOTH).unwrap().is_none());
        }
        for (index, page) in (0..).zip(&pages) {
            let input = M2 + (index + u64::from(index > place)) * K4;
            assert_eq!(tree.lookup(input).map(|found| found.output), Some(page.start));
        }
        finish(tree);
    }
}

#[test]
fn errors_read_well() {
    let range = range(0x5000, 2 * K4);
    let map = |error: MapError| error.to_string();
    assert_eq!(
        map(MapError::OutputBeyondWidth { range, undone: None }),
        "0x2000 bytes at 0x5000 exceed the table's output width"
    );
    assert_eq!(map(MapError::AlreadyMapped { input: 0x5000, undone: None }), "0x5000 is mapped already");
    let edit = EditError::Unaligned { input: 0x800, bytes: K4 };
    assert_eq!(edit.to_string(), "0x1000 bytes at 0x800 are not whole pages");
    assert_eq!(OutOfTables.to_string(), "no page for a page table");
}
