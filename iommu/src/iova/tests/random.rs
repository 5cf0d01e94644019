//! Random operations against an oracle: a map of what is live.

use std::{collections::BTreeMap, sync::Arc, vec::Vec};

use super::{
    super::{FreeError, INTERRUPT_RANGE, IovaError, IovaRequest, IovaSpace, holes::Run},
    MASK_32, MASK_48, Random, holes,
    host::{Host, become_cpu},
};
use crate::Iova;

const PAGE: u64 = 4096;

/// What to do to a space.
struct Plan {
    seed: u64,
    /// Last address of the space.
    last: u64,
    checked: bool,
    operations: usize,
    /// Lengths in pages.
    lengths: &'static [u64],
    /// Highest addresses of devices.
    masks: &'static [u64],
    /// Ranges that are live at most.
    live: usize,
}

/// A space, and what must be true of it.
struct Trial {
    space: IovaSpace<Host>,
    random: Random,
    plan: Plan,
    /// Live and reserved ranges: length in pages by first page.
    used: BTreeMap<u64, u64>,
    live: Vec<(Iova, u64)>,
    before: Vec<Run>,
    exhaustions: usize,
}

impl Trial {
    fn new(host: &Arc<Host>, plan: Plan) -> Self {
        let new = if plan.checked { IovaSpace::new_checked } else { IovaSpace::new };
        let space = new(host.clone(), plan.last).expect("there is memory");
        let mut used = BTreeMap::new();
        if plan.last > MASK_32 {
            used.insert(INTERRUPT_RANGE.start() / PAGE, 256);
        }
        let before = holes(&space);
        Self { space, random: Random(plan.seed), plan, used, live: Vec::new(), before, exhaustions: 0 }
    }

    fn is_unused(&self, first: u64, pages: u64) -> bool {
        self.used.range(..first + pages).next_back().is_none_or(|(&below, &length)| below + length <= first)
    }

    fn enter(&mut self, iova: Iova, pages: u64) {
        let first = iova.as_u64() / PAGE;
        assert!(self.is_unused(first, pages), "{pages} pages at {iova} are in use");
        self.used.insert(first, pages);
        self.live.push((iova, pages));
    }

    fn step(&mut self) {
        become_cpu(self.random.below(3) as usize);
        match self.random.below(100) {
            0..40 => self.allocate(),
            40..50 => self.allocate_fixed(),
            50 => self.bad_free(),
            _ => self.free(),
        }
    }

    fn request(&mut self) -> IovaRequest {
        let pages = self.random.pick(self.plan.lengths);
        let last = self.random.pick(self.plan.masks);
        let alignment = PAGE << self.random.pick(&[0, 0, 0, 1, 3, 9, 10]);
        let boundary = match self.random.below(4) {
            0 => (pages.next_power_of_two() * PAGE) << self.random.below(3),
            _ => 0,
        };
        IovaRequest { pages, last, alignment, boundary }
    }

    fn allocate(&mut self) {
        if self.live.len() >= self.plan.live {
            return self.free();
        }
        let request = self.request();
        match self.space.allocate_with(&request) {
            Ok(iova) => {
                let IovaRequest { pages, last, alignment, boundary } = request;
                let (first, end) = (iova.as_u64(), iova.as_u64() + (pages * PAGE - 1));
                assert!(end <= last && end <= self.plan.last, "{request:?} got {iova}");
                assert!(first > 0 && first.is_multiple_of(alignment), "{request:?} got {iova}");
                assert!(boundary == 0 || first / boundary == end / boundary, "{request:?} got {iova}");
                self.enter(iova, pages);
            }
            Err(error) => {
                assert_eq!(error, IovaError::Exhausted { pages: request.pages, last: request.last });
                self.exhaustions += 1;
                self.check_exhaustion(&request);
            }
        }
    }

    /// Looks for room page by page, in the holes that a space without magazines shows.
    fn check_exhaustion(&self, request: &IovaRequest) {
        let &IovaRequest { pages, last, alignment, boundary } = request;
        let fits = |first: u64| {
            let end = (first + pages) * PAGE - 1;
            first > 0
                && (first * PAGE).is_multiple_of(alignment)
                && end <= last
                && (boundary == 0 || first * PAGE / boundary == end / boundary)
        };
        let central = self.space.central.lock(&*self.space.platform);
        for Run { first, end } in central.look().iter() {
            let end = end.min(last / PAGE + 1).saturating_sub(pages - 1);
            let place = (first..end).find(|&first| fits(first));
            assert_eq!(place, None, "{request:?} would have fitted");
        }
    }

    fn allocate_fixed(&mut self) {
        let pages = self.random.pick(self.plan.lengths);
        let first = self.random.below(self.plan.last / PAGE + 4);
        let lasting = self.random.below(2000) == 0;
        let iova = Iova::new(first * PAGE);
        let last = iova.as_u64() + (pages * PAGE - 1);
        if self.live.len() >= self.plan.live {
            return;
        }
        let result = if lasting {
            self.space.reserve(iova.as_u64(), last)
        } else {
            self.space.allocate_at(iova, pages)
        };
        // A block that is longer than what was asked for keeps its last pages to itself; so it may be taken although
        // the oracle sees nobody there, but never the other way round.
        let free = last <= self.plan.last && self.is_unused(first, pages);
        match result {
            Ok(()) => {
                assert!(free, "{pages} pages at {iova} are in use");
                self.enter(iova, pages);
                if lasting {
                    self.live.pop();
                    let run = Run { first, end: first + pages };
                    self.before = self.before.iter().flat_map(|&hole| without(hole, run)).collect();
                }
            }
            Err(error) => {
                assert_eq!(error, IovaError::Taken { first: iova.as_u64(), last });
                let central = self.space.central.lock(&*self.space.platform);
                let run = Run { first, end: first + pages };
                assert!(!central.look().is_free(run), "{pages} pages at {iova} were free");
            }
        }
    }

    fn free(&mut self) {
        if self.live.is_empty() {
            return;
        }
        let choice = self.random.below(self.live.len() as u64) as usize;
        let (iova, pages) = self.live.swap_remove(choice);
        self.used.remove(&(iova.as_u64() / PAGE));
        assert_eq!(self.space.free(iova, pages), Ok(()));
        if self.plan.checked && self.random.below(50) == 0 {
            let error = FreeError::NotAllocated { iova, pages };
            assert_eq!(self.space.free(iova, pages), Err(error), "freed twice");
        }
    }

    /// In a checked space, frees what is not allocated.
    fn bad_free(&mut self) {
        let iova = Iova::new(self.random.below(self.plan.last / PAGE + 4) * PAGE);
        let pages = self.random.pick(self.plan.lengths);
        if self.plan.checked && self.used.get(&(iova.as_u64() / PAGE)) != Some(&pages) {
            assert!(self.space.free(iova, pages).is_err(), "{pages} pages at {iova} were never allocated");
        }
    }

    fn finish(mut self) {
        while !self.live.is_empty() {
            self.free();
        }
        assert_eq!(holes(&self.space), self.before, "seed {}", self.plan.seed);
        let statistics = self.space.statistics();
        assert_eq!((statistics.allocated_pages, statistics.cached_pages), (0, 0));
    }
}

/// What is left of `hole` without `run`.
fn without(hole: Run, run: Run) -> impl Iterator<Item = Run> {
    let below = Run { first: hole.first, end: hole.end.min(run.first) };
    let above = Run { first: hole.first.max(run.end), end: hole.end };
    [below, above].into_iter().filter(|run| run.first < run.end)
}

fn run(plans: impl IntoIterator<Item = Plan>) -> usize {
    let mut exhaustions = 0;
    for plan in plans {
        let host = Host::new(if cfg!(miri) { 32 } else { 4096 });
        let mut trial = Trial::new(&host, plan);
        for _ in 0..if cfg!(miri) { 150 } else { trial.plan.operations } {
            trial.step();
        }
        exhaustions += trial.exhaustions;
        trial.finish();
        assert_eq!(host.frames.in_use(), 0);
    }
    exhaustions
}

/// Lengths of which a range takes exactly as many pages as it has.
const EXACT: &[u64] = &[1, 1, 1, 1, 2, 2, 4, 8, 16, 32, 64, 128, 256, 512, 513, 700];

/// Lengths of all kinds.
const ANY: &[u64] = &[1, 1, 1, 2, 3, 3, 5, 7, 9, 16, 31, 63, 100, 129, 255, 256, 257, 512, 600, 1025];

#[test]
fn a_small_space_that_is_exhausted_again_and_again() {
    let last = (16 << 20) - 1;
    let plan = |seed, checked, lengths| Plan {
        seed,
        last,
        checked,
        operations: 150_000,
        lengths,
        masks: &[MASK_48, (16 << 20) - 1, (4 << 20) - 1, (9 << 20) + 12345],
        live: 100,
    };
    let exhaustions =
        run([plan(1, false, EXACT), plan(2, true, EXACT), plan(3, false, ANY), plan(4, true, ANY)]);
    assert!(exhaustions > if cfg!(miri) { 0 } else { 1000 }, "only {exhaustions} exhaustions");
}

#[test]
fn a_wide_space_with_devices_of_all_masks() {
    let plan = |seed, checked, live| Plan {
        seed,
        last: MASK_48,
        checked,
        operations: 200_000,
        lengths: ANY,
        masks: &[MASK_48, MASK_32, u64::MAX, (1 << 36) - 1, (1 << 30) - 1, (1 << 24) - 1],
        live,
    };
    run([plan(5, false, 3000), plan(6, true, 3000), plan(7, false, 20)]);
}

/// A 32-bit window of which half is in use when the operations begin. While they go on, up to a quarter of that comes
/// back and is taken again: more than the magazines hold, so that holes open, and others are filled.
#[test]
fn large_aligned_holes_survive_in_a_half_full_window() {
    const HALF: u64 = if cfg!(miri) { 1 << 10 } else { 1 << 19 };
    const SWING: u64 = HALF / 4;
    let operations = if cfg!(miri) { 300 } else { 1_000_000 };
    for (seed, lengths) in [(8, ANY), (9, &[1, 2, 4][..]), (10, &[1, 3, 16, 256, 384, 512][..])] {
        let host = Host::new(if cfg!(miri) { 64 } else { 1 << 15 });
        let space = IovaSpace::new(host, MASK_32).expect("there is memory");
        let mut random = Random(seed);
        let mut live: Vec<(Iova, u64)> = Vec::new();
        let (mut occupied, mut is_full, mut done) = (0, false, 0);
        while done < operations {
            become_cpu(random.below(4) as usize);
            // Mostly down from the upper end of the swing, and up from the lower one.
            if live.is_empty() || is_full == (random.below(8) == 0) {
                let pages = random.pick(lengths);
                live.push((space.allocate(pages, MASK_32).expect("half of it is free"), pages));
                occupied += pages;
            } else {
                let (iova, pages) = live.swap_remove(random.below(live.len() as u64) as usize);
                assert_eq!(space.free(iova, pages), Ok(()));
                occupied -= pages;
            }
            let has_begun = done > 0 || occupied >= HALF;
            done += usize::from(has_begun);
            is_full = occupied >= HALF || is_full && occupied > HALF - SWING;
            assert!(
                cfg!(miri) || !has_begun || occupied + 2 * SWING >= HALF,
                "only {occupied} pages are in use"
            );
        }
        let request = IovaRequest { alignment: 2 << 20, ..IovaRequest::new(512, MASK_32) };
        assert!(space.allocate_with(&request).is_ok(), "lengths {lengths:?}");
    }
}
