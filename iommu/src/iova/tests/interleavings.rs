//! Every order in which two CPUs can take the locks, with a bounded number of preemptions:
//! `cargo test -p interleavings interleavings`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    vec::Vec,
};

use super::{
    super::{IovaSpace, holes::Run},
    host::{Host, become_cpu},
};
use crate::{Iova, sync::explore};

/// Pages 1 and 2 of a space that has no others.
const LAST: u64 = 3 * 4096 - 1;

struct Model {
    space: IovaSpace<Host>,
    owned: [AtomicBool; 3],
}

impl Model {
    fn new() -> Arc<Self> {
        let mut space = IovaSpace::new(Host::new(16), LAST).expect("there is memory");
        space.caches.truncate(2);
        Arc::new(Self { space, owned: [const { AtomicBool::new(false) }; 3] })
    }

    /// Allocates a page and sees to it that nobody else has it.
    fn allocate(&self) -> Option<Iova> {
        let iova = self.space.allocate(1, LAST).ok()?;
        assert!(
            !self.owned[iova.as_u64() as usize >> 12].swap(true, Ordering::Relaxed),
            "{iova} is handed out twice"
        );
        Some(iova)
    }

    fn free(&self, iova: Iova) {
        self.owned[iova.as_u64() as usize >> 12].store(false, Ordering::Relaxed);
        assert_eq!(self.space.free(iova, 1), Ok(()));
    }

    fn finish(&self) {
        let all = [Run { first: 0, end: 1 }, Run { first: 1, end: 3 }];
        assert_eq!(super::holes(&self.space), all, "a page is lost");
    }
}

/// Runs `work` as CPUs 0 and 1 at once.
fn on_two_cpus(model: &Arc<Model>, work: fn(&Model)) {
    let other = {
        let model = model.clone();
        loom::thread::spawn(move || {
            become_cpu(1);
            work(&model);
        })
    };
    become_cpu(0);
    work(model);
    other.join().expect("the other CPU finishes");
}

#[test]
fn a_page_that_another_cpu_keeps_is_found() {
    explore(4, || {
        let model = Model::new();
        // One page for each: whoever comes second finds its own in the other's magazine, or free again.
        on_two_cpus(&model, |model| {
            for _ in 0..2 {
                let iova = model.allocate().expect("there are as many pages as CPUs");
                model.free(iova);
            }
        });
        model.finish();
    });
}

#[test]
fn two_cpus_that_exhaust_the_space_share_it() {
    explore(4, || {
        let model = Model::new();
        on_two_cpus(&model, |model| {
            let pages: Vec<Iova> = (0..2).map_while(|_| model.allocate()).collect();
            pages.into_iter().for_each(|iova| model.free(iova));
        });
        model.finish();
    });
}
