use core::{
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};
use std::cell::Cell;

use super::*;
use crate::{
    checks::Origin,
    dma::{
        segment::Ends,
        space::{Batch, MapRequest, NotMapped, Placed, Placement, Way},
    },
    vtd::testing::FakePlatform,
};

std::thread_local! {
    /// Buffers that this test's thread has freed.
    static FREED: Cell<usize> = const { Cell::new(0) };
}

fn free(_: RawBuffer) {
    FREED.set(FREED.get() + 1);
}

/// A space whose device may not be quiet, and what is asked of it.
#[derive(Default)]
struct Restless {
    is_quiet: AtomicBool,
    unmaps: AtomicUsize,
}

impl Space for Restless {
    fn unmap(&self, _: &Segment, _: Access) -> Result<(), DmaError> {
        self.unmaps.fetch_add(1, SeqCst);
        if self.is_quiet.load(SeqCst) { Ok(()) } else { Err(DmaError::Restless) }
    }

    fn map(&self, _: &MapRequest) -> Result<Placed, NotMapped> {
        unreachable!()
    }

    fn unmap_all(&self, _: &dyn Batch, _: Access) -> Result<(), DmaError> {
        unreachable!()
    }

    fn retire(&self, _: &Segment) -> Result<Owed, DmaError> {
        unreachable!()
    }

    fn is_pending(&self, _: Owed) -> bool {
        unreachable!()
    }

    fn redeem(&self, _: &Segment, _: Access, _: Owed) -> Result<(), DmaError> {
        unreachable!()
    }

    fn map_list(&self, _: &mut List, _: Access, _: Placement, _: Origin) -> Result<(), NotMapped> {
        unreachable!()
    }

    fn reserve(&self, _: &mut List, _: u64, _: Placement) -> Result<(), DmaError> {
        unreachable!()
    }

    fn link(&self, _: &mut List, _: Access, _: Placement, _: Origin) -> Result<(), NotMapped> {
        unreachable!()
    }

    fn sync(&self, _: &List) {
        unreachable!()
    }

    fn unmap_list(&self, _: &List, _: Access) -> Result<(), DmaError> {
        unreachable!()
    }

    fn copy_ends(&self, _: &Segment, _: Way) {
        unreachable!()
    }

    fn abandon(&self, _: Abandoned) {
        unreachable!()
    }
}

/// A reaper that has been given `count` dropped mappings of `space`.
fn given(space: &TryArc<Restless>, count: usize) -> Reaper<FakePlatform> {
    let reaper = Reaper::new(Arc::new(FakePlatform::new(0, 0)), Flush::Strict);
    for _ in 0..count {
        reaper.reserve().unwrap();
        let buffer = RawBuffer { first: NonNull::dangling(), bytes: 0, cookie: 0 };
        let segment = Segment { iova: Iova::new(0), buffer, ends: Ends::NONE };
        reaper.abandon(Abandoned::new(Live { space: space.clone().into(), segment }, None, free));
    }
    reaper
}

#[test]
fn what_waits_for_a_device_is_not_asked_for_at_each_turn() {
    const COUNT: usize = 300;
    let space = TryArc::try_new(Restless::default()).unwrap();
    let reaper = given(&space, COUNT);
    (0..10).for_each(|_| reaper.reap());
    assert_eq!(space.unmaps.load(SeqCst), COUNT);
    // Another device is quiet.
    reaper.rouse();
    (0..10).for_each(|_| reaper.reap());
    assert_eq!((space.unmaps.load(SeqCst), FREED.get()), (2 * COUNT, 0));
    space.is_quiet.store(true, SeqCst);
    reaper.rouse();
    reaper.reap();
    assert_eq!((space.unmaps.load(SeqCst), FREED.get()), (3 * COUNT, COUNT));
}

/// Its device became quiet between the attempt and its end: nobody will say so again.
#[test]
fn what_is_tried_as_its_device_becomes_quiet_is_tried_again() {
    let space = TryArc::try_new(Restless::default()).unwrap();
    let reaper = given(&space, 1);
    let (taken, roused) = {
        let mut queue = reaper.queue.lock(&*reaper.platform);
        (queue.pop(reaper.platform.tables()), queue.roused())
    };
    let waiting = taken.unwrap().reap(&reaper.pinned).expect("it may not be quiet");
    space.is_quiet.store(true, SeqCst);
    reaper.rouse();
    reaper.put_back(waiting, roused);
    reaper.reap();
    assert_eq!((space.unmaps.load(SeqCst), FREED.get()), (2, 1));
}
