//! Walks that start where the last one went.

use crate::counts::{Touches, Tree, touched, tree};
use crate::memory::Memory;
use crate::table::x86::X86Access;
use crate::{PAGE_BYTES, PhysAddr, PhysRange};

const G1: u64 = 1 << 30;
/// Half of a table of level 4.
const FAR: u64 = 1 << 46;

fn map(tree: &Tree<'_>, input: u64) -> Touches {
    let page = PhysRange::new(PhysAddr::new(5 * G1), PAGE_BYTES);
    // SAFETY: no other thread changes the tree.
    Touches::of(tree, || unsafe { tree.map(input, &[page], X86Access::WRITE) }.unwrap())
}

fn unmap(tree: &Tree<'_>, input: u64) -> Touches {
    // SAFETY: no other thread changes the tree.
    Touches::of(tree, || Some(unsafe { tree.unmap(input, PAGE_BYTES) }.unwrap()))
}

/// How many links of the upper tables an operation has touched.
fn upper(touches: &Touches) -> usize {
    touches.at_level(3).len() + touches.at_level(4).len()
}

/// Two pages are mapped in each of these gigabytes, so that a walk is what the next one starts from.
#[test]
fn a_page_near_the_last_one_takes_no_walk_from_the_top() {
    for input in [0, G1, 3 * G1, FAR, FAR + 7 * G1] {
        let memory = Memory::new(32);
        let tree = tree(&memory);
        map(&tree, input);
        // The first walk to a table that is there finds it.
        map(&tree, input + PAGE_BYTES);
        let near = input + G1 - PAGE_BYTES;
        map(&tree, near);
        map(&tree, near - PAGE_BYTES);
        for (page, back) in [(input + 5 * PAGE_BYTES, input), (near - 2 * PAGE_BYTES, near)] {
            assert_eq!(upper(&map(&tree, page)), 0, "map at {page:#x}");
            assert_eq!(upper(&unmap(&tree, back)), 0, "unmap at {back:#x}");
        }
    }
}

/// The same place in another gigabyte is another place, however far away it is.
#[test]
fn a_page_elsewhere_is_walked_to() {
    for (here, there) in [(0, G1), (G1, 0), (0, FAR), (FAR, 0), (511 * G1, 512 * G1), (3 * G1, FAR + 3 * G1)]
    {
        let memory = Memory::new(32);
        let tree = tree(&memory);
        for input in [here, there] {
            (0..3).for_each(|page| drop(map(&tree, input + page * PAGE_BYTES)));
        }
        // The last walk went there; the first page here is not what it comes to.
        let touches = unmap(&tree, here);
        assert!(upper(&touches) > 0, "{here:#x} after {there:#x}");
        touches.assert_each(1, (here, PAGE_BYTES), touched(1, 1, 0));
        let touches = unmap(&tree, here + PAGE_BYTES);
        assert_eq!(upper(&touches), 0, "{here:#x} again");
        assert_eq!(tree.lookup(there).map(|found| found.output.as_u64()), Some(5 * G1));
    }
}
