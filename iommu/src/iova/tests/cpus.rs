//! Several CPUs at once.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    vec::Vec,
};

use super::{
    super::{IovaError, IovaSpace},
    Random, holes,
    host::{Host, become_cpu},
};
use crate::Iova;

const CPUS: u64 = 4;

/// Who has each page: 0 for nobody.
struct Owners(Vec<AtomicU32>);

impl Owners {
    fn change(&self, iova: Iova, pages: u64, from: u32, to: u32) {
        let first = (iova.as_u64() >> 12) as usize;
        for owner in &self.0[first..first + pages as usize] {
            let swapped = owner.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
            assert_eq!(swapped, Ok(from), "{pages} pages at {iova} are somebody else's");
        }
    }
}

#[test]
fn no_page_ever_has_two_owners() {
    // Small enough to be exhausted again and again, so that CPUs drain each other's magazines.
    let pages = if cfg!(miri) { 256 } else { 8192_u64 };
    let operations = if cfg!(miri) { 60 } else { 400_000 };
    let host = Host::new(512);
    let space = IovaSpace::new(host.clone(), pages * 4096 - 1).expect("there is memory");
    let before = holes(&space);
    let owners = Owners((0..pages).map(|_| AtomicU32::new(0)).collect());
    // What one CPU allocated, for another to free.
    let post: Mutex<Vec<(Iova, u64)>> = Mutex::new(Vec::new());
    let work = |cpu: u64| {
        become_cpu(cpu as usize);
        let mut random = Random(cpu);
        for _ in 0..operations {
            let allocates = random.below(2) == 0;
            if allocates {
                let pages = random.pick(&[1, 1, 2, 3, 4, 16, 37, 256]);
                match space.allocate(pages, u64::MAX) {
                    Ok(iova) => {
                        owners.change(iova, pages, 0, cpu as u32 + 1);
                        owners.change(iova, pages, cpu as u32 + 1, u32::MAX);
                        post.lock().unwrap_or_else(PoisonError::into_inner).push((iova, pages));
                    }
                    Err(error) => assert_eq!(error, IovaError::Exhausted { pages, last: u64::MAX }),
                }
            } else {
                let mut post = post.lock().unwrap_or_else(PoisonError::into_inner);
                let choice = random.below(post.len().max(1) as u64) as usize;
                let taken = (choice < post.len()).then(|| post.swap_remove(choice));
                drop(post);
                if let Some((iova, pages)) = taken {
                    owners.change(iova, pages, u32::MAX, 0);
                    assert_eq!(space.free(iova, pages), Ok(()));
                }
            }
        }
    };
    thread::scope(|scope| (0..CPUS).for_each(|cpu| drop(scope.spawn(move || work(cpu)))));
    for (iova, pages) in post.into_inner().unwrap_or_else(PoisonError::into_inner) {
        assert_eq!(space.free(iova, pages), Ok(()));
    }
    assert_eq!(holes(&space), before);
    assert_eq!(space.statistics().allocated_pages, 0);
}

#[test]
fn a_cpu_that_only_frees_feeds_one_that_only_allocates() {
    let host = Host::new(512);
    let space = IovaSpace::new(host, u64::MAX).expect("there is memory");
    let mut seen = Vec::new();
    for _ in 0..if cfg!(miri) { 200 } else { 20_000 } {
        become_cpu(0);
        let iova = space.allocate(1, u64::MAX).expect("there is room");
        become_cpu(1);
        assert_eq!(space.free(iova, 1), Ok(()));
        seen.push(iova);
    }
    seen.sort_unstable();
    seen.dedup();
    assert!(seen.len() <= 6 * 64, "{} addresses in turn: the depot does not pass them on", seen.len());
}

#[test]
fn a_cpu_beyond_the_highest_number_is_served_too() {
    let host = Host::new(64);
    let mut space = IovaSpace::new(host, u64::MAX).expect("there is memory");
    space.caches.truncate(1);
    become_cpu(2);
    let iova = space.allocate(1, u64::MAX).expect("there is room");
    assert_eq!(space.free(iova, 1), Ok(()));
    assert_eq!(space.statistics().cached_pages, 0);
}
