//! Every number of levels, set of leaf sizes, alignment of input and output: the leaves that come out are the ones that
//! a plain rule says.

use mm::PhysAddr;
use mm::table::x86::{X86Access, X86Format};
use mm::table::{Format, LeafSizes, PageTable};

use super::arena::Arena;
use super::format::{READ, Remap};
use super::walker::Walker;
use super::{G1, K4, M2, finish, flush, range};

const SIZES: [LeafSizes; 4] = [
    LeafSizes::SIZE_4K,
    LeafSizes::SIZE_4K.union(LeafSizes::SIZE_2M),
    LeafSizes::SIZE_4K.union(LeafSizes::SIZE_1G),
    LeafSizes::all(),
];

/// The rule: at each address, the largest leaf whose ends are aligned and that ends within the range.
fn expected_leaf(sizes: LeafSizes, input: u64, output: u64, rest: u64) -> u64 {
    let allowed = [(G1, LeafSizes::SIZE_1G), (M2, LeafSizes::SIZE_2M), (K4, LeafSizes::SIZE_4K)];
    // A 1 GiB leaf must be splittable into 2 MiB ones.
    let sizes = if sizes.contains(LeafSizes::SIZE_2M) { sizes } else { LeafSizes::SIZE_4K };
    let fits = |size| input.is_multiple_of(size) && output.is_multiple_of(size) && rest >= size;
    allowed.into_iter().find(|(size, flag)| sizes.contains(*flag) && fits(*size)).unwrap().0
}

/// Maps one range, sees that hardware finds what the rule says at each leaf, and unmaps it again. `access` is such that
/// of the low bits only the lowest, which says that a leaf is present, is set, and those that hardware would set.
fn check<F: Format>(format: F, access: F::Access, input: u64, output: u64, bytes: u64) {
    let memory = Arena::new(64);
    let tree = PageTable::new(format, &memory).unwrap();
    let present = format.encode_table(PhysAddr::new(0)) & 3;
    let walker =
        Walker { root: tree.root(), levels: format.levels().into(), snoops: format.is_coherent(), present };
    let marks = format.hardware_bits();
    // SAFETY: no other thread changes the tree.
    unsafe { assert!(tree.map(input, &[range(output, bytes)], access).unwrap().is_none()) };
    let mut done = 0;
    while done < bytes {
        let found = walker.walk(&memory, input + done).expect("mapped");
        let leaf = expected_leaf(format.leaf_sizes(), input + done, output + done, bytes - done);
        assert_eq!((found.output, found.leaf_bytes, found.bits & !marks), (output + done, leaf, 1));
        done += leaf;
    }
    for outside in [input.wrapping_sub(1), input.wrapping_add(bytes)] {
        if format.covers(outside, outside) {
            assert_eq!(walker.walk(&memory, outside), None);
        }
    }
    // SAFETY: no other thread changes the tree.
    let stale = unsafe { tree.unmap(input, bytes) }.unwrap();
    assert_eq!(stale.changed_bytes(), bytes);
    tree.redeem(flush(stale));
    // All inputs, or the two halves of the canonical ones.
    let last = u64::MAX >> (64 - 12 - 9 * u32::from(format.levels()));
    assert_eq!(
        [(0, last), (0, last >> 1), (!(last >> 1), u64::MAX)].map(|(a, b)| tree.runs(a, b).count()),
        [0; 3]
    );
    assert!([input, input + (bytes - 1)].into_iter().all(|input| walker.walk(&memory, input).is_none()));
    finish(tree);
}

fn x86(levels: u8, sizes: LeafSizes) -> X86Format {
    X86Format::new(levels, sizes, 46).unwrap()
}

#[test]
fn every_level_size_and_alignment() {
    // Distances from a border, and lengths: one page, one leaf, and each with a page more or less.
    let offsets = [0, K4, M2 - K4, M2, M2 + K4, G1 - M2 - K4, G1 - M2, G1 - K4];
    let lengths = [K4, 2 * K4, M2 - K4, M2, M2 + K4, 2 * M2, 3 * M2 + 7 * K4];
    let mut checks = 0;
    for levels in 3..=5 {
        // A border between two tables of each level.
        for border in (2..=levels).map(|level| 1 << (12 + 9 * (level - 1))) {
            for (sizes, coherent) in SIZES.into_iter().zip([false, true, false, true]) {
                let format = Remap { levels: levels as u8, sizes, output_bits: 46, coherent };
                for (index, offset) in offsets.into_iter().enumerate() {
                    // Output aligned as the input, or less so.
                    for output in [offset, offset ^ K4, offset ^ M2] {
                        for bytes in lengths {
                            if cfg!(miri) && (index + checks) % 400 != 0 {
                                checks += 1;
                                continue;
                            }
                            check(format, READ, border + offset, 16 * G1 + output, bytes);
                            if levels > 3 {
                                let format = x86(levels as u8, sizes);
                                check(format, X86Access::empty(), border + offset, 16 * G1 + output, bytes);
                            }
                            checks += 1;
                        }
                    }
                }
            }
        }
    }
    assert_eq!(checks, (2 + 3 + 4) * 4 * 8 * 3 * 7);
}

#[test]
fn whole_gibibytes() {
    fn check_all<F: Format>(format: F, access: F::Access) {
        check(format, access, 3 * G1, G1, G1);
        check(format, access, 3 * G1, G1, 2 * G1 + M2);
        if !cfg!(miri) {
            check(format, access, 3 * G1 - M2, G1 - M2, G1 + 2 * M2);
            check(format, access, 3 * G1 + M2, G1 + M2, 2 * G1);
            check(format, access, 3 * G1, G1 + M2, G1);
        }
    }
    for levels in 3..=5 {
        for sizes in SIZES.into_iter().skip(1) {
            if !sizes.contains(LeafSizes::SIZE_2M) || cfg!(miri) && !sizes.contains(LeafSizes::SIZE_1G) {
                continue;
            }
            check_all(Remap { levels, sizes, output_bits: 46, coherent: false }, READ);
            if levels > 3 {
                check_all(x86(levels, sizes), X86Access::empty());
            }
        }
    }
}

#[test]
fn the_last_entry_of_every_table() {
    for levels in 3..=5 {
        let top = 1 << (12 + 9 * u32::from(levels));
        for bytes in [K4, 2 * K4, M2, M2 + K4, G1, G1 + M2] {
            let format = Remap { levels, sizes: LeafSizes::all(), output_bits: 46, coherent: false };
            let output = (1 << 46) - bytes;
            check(format, READ, top - bytes, output, bytes);
            if levels > 3 {
                // The ends of both halves of the canonical addresses.
                for end in [top / 2, 0] {
                    let input = u64::wrapping_sub(end, bytes);
                    check(x86(levels, LeafSizes::all()), X86Access::empty(), input, output, bytes);
                }
            }
        }
    }
}
