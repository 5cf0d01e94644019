//! Threads that meet in one tree.

use loom::sync::Arc;
use loom::thread;

use crate::memory::Memory;
use crate::table::{Entry, Flushed, Format, LeafSizes, PageTable, Stale, TableMemory};
use crate::{PhysAddr, PhysRange};

const PAGE: u64 = 4096;
/// What a table of level 1 maps, and of level 2.
const LOWEST: u64 = 2 * PAGE;
const UPPER: u64 = 4 * PAGE;
/// Outputs start here, so that they are not mistaken for pages of tables.
const OUTPUT: u64 = 1 << 30;

/// Three levels; leaves at levels 1 and 2. Bit 0 is present, bit 7 marks a leaf above level 1.
#[derive(Clone, Copy)]
struct Small {
    superpages: bool,
}

impl Format for Small {
    type Access = ();

    fn levels(&self) -> u8 {
        3
    }

    fn leaf_sizes(&self) -> LeafSizes {
        if self.superpages { LeafSizes::SIZE_4K | LeafSizes::SIZE_2M } else { LeafSizes::SIZE_4K }
    }

    fn output_bits(&self) -> u8 {
        40
    }

    fn is_coherent(&self) -> bool {
        true
    }

    fn encode_table(&self, table: PhysAddr) -> u64 {
        table.as_u64() | 1
    }

    fn encode_leaf(&self, level: u8, output: PhysAddr, (): ()) -> u64 {
        output.as_u64() | if level > 1 { 0x81 } else { 1 }
    }

    fn decode(&self, level: u8, raw: u64) -> Entry<()> {
        let address = PhysAddr::new(raw & ((1 << 52) - 1) & !0xfff);
        if raw & 1 == 0 {
            Entry::Empty
        } else if level == 1 || raw & 0x80 != 0 {
            Entry::Leaf(address, ())
        } else {
            Entry::Table(address)
        }
    }
}

type Tree = PageTable<Small, Arc<Memory>>;

// SAFETY: every call is passed on unchanged.
unsafe impl TableMemory for Arc<Memory> {
    fn allocate(&self) -> Option<PhysAddr> {
        (**self).allocate()
    }

    unsafe fn free(&self, page: PhysAddr) {
        // SAFETY: the caller's promise.
        unsafe { (**self).free(page) }
    }

    unsafe fn table(&self, page: PhysAddr) -> &crate::table::Table {
        // SAFETY: the caller's promise.
        unsafe { (**self).table(page) }
    }

    fn write_back(&self, first: *const u8, bytes: usize) {
        (**self).write_back(first, bytes);
    }
}

fn map(tree: &Tree, input: u64) {
    // SAFETY: the scenarios give each page to one thread.
    let stale = unsafe { tree.map(input, &[PhysRange::new(PhysAddr::new(OUTPUT + input), PAGE)], ()) };
    redeem(tree, stale.unwrap());
}

fn unmap(tree: &Tree, input: u64) {
    // SAFETY: the scenarios give each page to one thread.
    let stale = unsafe { tree.unmap(input, PAGE) }.unwrap();
    assert_eq!(stale.changed_bytes(), PAGE);
    redeem(tree, Some(stale));
}

fn trim(tree: &Tree) {
    redeem(tree, tree.trim());
}

fn redeem(tree: &Tree, stale: Option<Stale>) {
    // SAFETY: there is no hardware.
    stale.into_iter().for_each(|stale| tree.redeem(unsafe { stale.assume_flushed() }));
}

fn leads(tree: &Tree, input: u64) -> bool {
    match tree.lookup(input) {
        Some(found) => {
            assert_eq!(found.output.as_u64(), OUTPUT + input, "another place's mapping");
            true
        }
        None => false,
    }
}

/// Runs two threads on a tree that `set_up` has prepared, in every order; then exactly `mapped` are mapped, and when
/// these are unmapped, every page comes back.
fn in_every_order(
    superpages: bool,
    set_up: impl Fn(&Tree) + Send + Sync + 'static,
    first: impl Fn(&Tree) + Send + Sync + Copy + 'static,
    second: impl Fn(&Tree) + Send + Sync + 'static,
    mapped: &'static [u64],
) {
    with_preemptions(3, superpages, set_up, first, second, mapped);
}

/// The same with another limit to how often a thread is interrupted.
fn with_preemptions(
    preemptions: usize,
    superpages: bool,
    set_up: impl Fn(&Tree) + Send + Sync + 'static,
    first: impl Fn(&Tree) + Send + Sync + Copy + 'static,
    second: impl Fn(&Tree) + Send + Sync + 'static,
    mapped: &'static [u64],
) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    let tried = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = tried.clone();
    model.check(move || {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let memory = Arc::new(Memory::new());
        let tree = Arc::new(PageTable::new(Small { superpages }, memory.clone()).unwrap());
        set_up(&tree);
        let other = tree.clone();
        let thread = thread::spawn(move || first(&other));
        second(&tree);
        thread.join().unwrap();
        for input in (0..8).map(|page| page * PAGE) {
            assert_eq!(leads(&tree, input), mapped.contains(&input), "{input:#x}");
        }
        mapped.iter().for_each(|input| unmap(&tree, *input));
        trim(&tree);
        let mut tree = Arc::try_unwrap(tree).ok().unwrap();
        tree.release_spare();
        assert_eq!(tree.pages(), 1, "an empty tree is its root");
        memory.check(1);
        // SAFETY: there is no hardware.
        unsafe { tree.destroy() };
        memory.check(0);
    });
    println!("{} executions", tried.load(std::sync::atomic::Ordering::Relaxed));
}

#[test]
fn two_map_where_no_table_is() {
    in_every_order(false, |_| {}, |tree| map(tree, 0), |tree| map(tree, PAGE), &[0, PAGE]);
}

#[test]
fn two_map_below_the_same_upper_table() {
    in_every_order(false, |_| {}, |tree| map(tree, 0), |tree| map(tree, LOWEST), &[0, LOWEST]);
}

/// The slot is taken by another table, so that the emptied one leaves the tree at once.
#[test]
fn one_empties_a_table_that_another_maps_into() {
    let set_up = |tree: &Tree| {
        map(tree, 0);
        map(tree, UPPER);
        unmap(tree, UPPER);
    };
    in_every_order(false, set_up, |tree| unmap(tree, 0), |tree| map(tree, PAGE), &[PAGE]);
}

/// As long as nobody has flushed the table that was there before, whoever maps in its successor is told to.
#[test]
fn one_maps_where_hardware_may_remember_another_table() {
    let lowest = |tree: &Tree, input| match tree.trace(input).steps().nth(1).unwrap().entry {
        Entry::Table(page) => page,
        entry => panic!("{entry:?}"),
    };
    let mapper = move |tree: &Tree| {
        // The first page that was allocated for it, and not used again before it is freed.
        let before = PhysAddr::new(3 * PAGE);
        let segment = PhysRange::new(PhysAddr::new(OUTPUT + PAGE), PAGE);
        // SAFETY: the page is this thread's.
        let stale = unsafe { tree.map(PAGE, &[segment], ()) }.unwrap();
        if stale.is_none() && lowest(tree, PAGE) != before {
            assert!(tree.memory().was_freed(before), "walkers may still use the table that was here");
        }
        redeem(tree, stale);
    };
    let set_up = move |tree: &Tree| {
        map(tree, 0);
        assert_eq!(lowest(tree, 0), PhysAddr::new(3 * PAGE));
        unmap(tree, 0);
    };
    in_every_order(false, set_up, trim, mapper, &[PAGE]);
}

#[test]
fn one_trims_while_another_maps() {
    let set_up = |tree: &Tree| {
        map(tree, 0);
        unmap(tree, 0);
    };
    in_every_order(false, set_up, trim, |tree| map(tree, PAGE), &[PAGE]);
}

#[test]
fn one_trims_while_another_unmaps() {
    let set_up = |tree: &Tree| {
        map(tree, 0);
        map(tree, LOWEST);
        unmap(tree, LOWEST);
    };
    in_every_order(false, set_up, trim, |tree| unmap(tree, 0), &[]);
}

#[test]
fn both_empty_the_same_table() {
    let set_up = |tree: &Tree| {
        map(tree, 0);
        map(tree, PAGE);
        map(tree, UPPER);
        unmap(tree, UPPER);
    };
    in_every_order(false, set_up, |tree| unmap(tree, 0), |tree| unmap(tree, PAGE), &[]);
}

#[test]
fn both_empty_tables_below_the_same_upper_table() {
    let set_up = |tree: &Tree| {
        map(tree, 0);
        map(tree, LOWEST);
    };
    in_every_order(false, set_up, |tree| unmap(tree, 0), |tree| unmap(tree, LOWEST), &[]);
}

/// A range ends in a part of an upper entry without a table; another thread maps the other part.
#[test]
fn one_clears_a_range_beside_which_another_links_a_table() {
    let set_up = |tree: &Tree| {
        map(tree, 0);
        map(tree, PAGE);
    };
    let clearer = |tree: &Tree| {
        // SAFETY: the range is this thread's alone.
        let stale = unsafe { tree.unmap(0, LOWEST + PAGE) }.unwrap();
        assert_eq!(stale.changed_bytes(), LOWEST);
        redeem(tree, Some(stale));
    };
    in_every_order(false, set_up, clearer, |tree| map(tree, LOWEST + PAGE), &[LOWEST + PAGE]);
}

/// An upper table leaves the tree and is linked elsewhere while another thread is on its way through it.
#[test]
fn an_upper_table_moves_under_a_walker() {
    let set_up = |tree: &Tree| {
        map(tree, 0);
        unmap(tree, 0);
    };
    let mover = |tree: &Tree| {
        trim(tree);
        map(tree, UPPER);
    };
    in_every_order(false, set_up, mover, |tree| map(tree, PAGE), &[PAGE, UPPER]);
}

#[test]
fn a_reader_meets_tables_that_go() {
    let set_up = |tree: &Tree| map(tree, 0);
    let unmapper = |tree: &Tree| {
        unmap(tree, 0);
        trim(tree);
        map(tree, UPPER);
    };
    let reader = |tree: &Tree| {
        leads(tree, 0);
        leads(tree, UPPER);
    };
    in_every_order(false, set_up, unmapper, reader, &[UPPER]);
}

/// A superpage of two pages, of which each thread owns one.
fn map_superpage(tree: &Tree) {
    // SAFETY: no other thread knows the tree yet.
    let stale = unsafe { tree.map(0, &[PhysRange::new(PhysAddr::new(OUTPUT), LOWEST)], ()) };
    assert!(stale.unwrap().is_none());
    assert_eq!(tree.lookup(PAGE).unwrap().leaf_bytes, LOWEST);
}

#[test]
fn both_split_a_superpage() {
    with_preemptions(1, true, map_superpage, |tree| unmap(tree, 0), |tree| unmap(tree, PAGE), &[]);
}

#[test]
fn the_rest_of_a_split_superpage_is_always_there() {
    let watcher = |tree: &Tree| assert!(leads(tree, PAGE));
    in_every_order(true, map_superpage, |tree| unmap(tree, 0), watcher, &[PAGE]);
}

/// A superpage wants the place of a kept table that another thread looks into.
#[test]
fn a_superpage_takes_a_tables_place() {
    let set_up = |tree: &Tree| {
        map(tree, 0);
        unmap(tree, 0);
    };
    let mapper = |tree: &Tree| {
        // SAFETY: the range is this thread's alone.
        let stale = unsafe { tree.map(0, &[PhysRange::new(PhysAddr::new(OUTPUT), LOWEST)], ()) };
        redeem(tree, stale.unwrap());
    };
    let reader = |tree: &Tree| {
        leads(tree, 0);
    };
    in_every_order(true, set_up, mapper, reader, &[0, PAGE]);
}
