//! What each operation does, once.

use std::vec::Vec;

use super::memory::Arena;
use crate::table::x86::{X86Access, X86Format};
use crate::table::{EditError, LeafSizes, MapError, PageTable, Run};
use crate::{PhysAddr, PhysRange};

const WRITE: X86Access = X86Access::WRITE;
const READ: X86Access = X86Access::empty();
const K4: u64 = 4096;
const M2: u64 = 2 << 20;
const G1: u64 = 1 << 30;

fn tree(memory: &Arena) -> PageTable<X86Format, &Arena> {
    PageTable::new(X86Format::new(4, LeafSizes::all(), 46).unwrap(), memory).unwrap()
}

fn range(start: u64, bytes: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(start), bytes)
}

fn runs(tree: &PageTable<X86Format, &Arena>) -> Vec<(u64, u64, u64)> {
    tree.runs(0, (1 << 47) - 1)
        .map(|Run { input, output, bytes, .. }| (input, output.as_u64(), bytes))
        .collect()
}

#[test]
fn maps_looks_up_and_unmaps() {
    let memory = Arena::new(16);
    let tree = tree(&memory);
    // SAFETY: no hardware walks the tree, and no other thread changes it.
    unsafe {
        assert!(tree.map(0x5000, &[range(0x8000_0000, 2 * K4)], WRITE).unwrap().is_none());
        let found = tree.lookup(0x6123).unwrap();
        assert_eq!((found.output.as_u64(), found.access, found.leaf_bytes), (0x8000_1123, WRITE, K4));
        assert_eq!(tree.trace(0x6123).steps().count(), 4);
        assert_eq!(runs(&tree), [(0x5000, 0x8000_0000, 2 * K4)]);
        assert!(matches!(
            tree.map(0x4000, &[range(0, 2 * K4)], WRITE),
            Err(MapError::AlreadyMapped { input: 0x5000, undone: Some(_) })
        ));
        assert_eq!(runs(&tree), [(0x5000, 0x8000_0000, 2 * K4)]);
        let stale = tree.unmap(0x5000, 2 * K4).unwrap();
        assert!(stale.only_leaves() && stale.changed_bytes() == 2 * K4);
        assert_eq!((stale.first(), stale.last()), (0x5000, 0x6fff));
        tree.redeem(stale.assume_flushed());
        assert_eq!(runs(&tree), []);
        let stale = tree.trim().unwrap();
        assert!(stale.holds_tables() && !stale.only_leaves());
        tree.redeem(stale.assume_flushed());
        tree.destroy();
    }
    assert_eq!(memory.used(), 0);
}

#[test]
fn superpages_are_used_and_split() {
    let memory = Arena::new(32);
    let tree = tree(&memory);
    // SAFETY: no hardware walks the tree, and no other thread changes it.
    unsafe {
        assert!(tree.map(0, &[range(G1, 2 * G1), range(8 * G1, M2)], WRITE).unwrap().is_none());
        assert_eq!(tree.lookup(G1 + 5).unwrap().leaf_bytes, G1);
        assert_eq!(tree.lookup(2 * G1 + 5).unwrap().leaf_bytes, M2);
        assert_eq!(tree.pages(), 3);
        let stale = tree.unmap(G1 + M2 + K4, K4).unwrap();
        assert!(!stale.only_leaves() && stale.changed_bytes() == K4);
        tree.redeem(stale.assume_flushed());
        assert_eq!(tree.pages(), 5);
        assert_eq!(tree.lookup(G1).unwrap().leaf_bytes, M2);
        let (low, high) = (G1 + M2 + K4, G1 - M2 - 2 * K4);
        assert_eq!(runs(&tree), [(0, G1, low), (low + K4, G1 + low + K4, high), (2 * G1, 8 * G1, M2)]);
        let stale = tree.protect(G1 - K4, 2 * K4, READ).unwrap();
        tree.redeem(stale.assume_flushed());
        assert_eq!(tree.lookup(G1).unwrap().access, READ);
        assert_eq!(tree.lookup(G1 - 1).unwrap().access, READ);
        assert_eq!(tree.lookup(G1 - K4 - 1).unwrap().access, WRITE);
        assert_eq!(tree.lookup(G1 + K4).unwrap().access, WRITE);
        let stale = tree.unmap(0, 4 * G1).unwrap();
        assert_eq!(stale.changed_bytes(), 2 * G1 + M2 - K4);
        tree.redeem(stale.assume_flushed());
        assert_eq!(runs(&tree), []);
        tree.destroy();
    }
    assert_eq!(memory.used(), 0);
}

#[test]
fn both_halves_of_the_canonical_space() {
    let memory = Arena::new(32);
    let tree = tree(&memory);
    let top = 0xffff_ffff_ffff_f000;
    // SAFETY: no hardware walks the tree, and no other thread changes it.
    unsafe {
        assert!(tree.map(top, &[range(0x7000, K4)], WRITE).unwrap().is_none());
        assert_eq!(tree.lookup(top + 5).unwrap().output.as_u64(), 0x7005);
        assert_eq!(tree.runs(1 << 63 | 0x7fff << 48 | 1 << 47, u64::MAX).count(), 1);
        assert!(matches!(tree.unmap(1 << 47, K4), Err(EditError::InputBeyondWidth { .. })));
        assert!(matches!(tree.unmap(top, 2 * K4), Err(EditError::InputBeyondWidth { .. })));
        tree.redeem(tree.unmap(top, K4).unwrap().assume_flushed());
        assert!(tree.lookup(top).is_none());
        tree.destroy();
    }
    assert_eq!(memory.used(), 0);
}
