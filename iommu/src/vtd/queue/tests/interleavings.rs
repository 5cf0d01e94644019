//! Two CPUs that use the queue at once, in every order.

use std::sync::{Arc, atomic::Ordering};

use loom::thread;

use super::*;
use crate::{sync::explore, vtd::testing::Manner};

/// One round of waiting is long enough for a look at the unit's errors.
const ROUND_NS: u64 = 30_000;

struct Model {
    platform: FakePlatform,
    unit: Unit<FakePlatform>,
}

impl Model {
    fn new(behave: impl FnOnce(&mut Manner)) -> Arc<Self> {
        let platform = FakePlatform::new(CAP, ECAP);
        platform.relax_ns.store(ROUND_NS, Ordering::Relaxed);
        let unit = unit(&platform);
        platform.unit.behave(behave);
        Arc::new(Self { platform, unit })
    }

    fn has_executed(&self, is_it: impl Fn(&Descriptor) -> bool) -> bool {
        let log = self.platform.unit.log();
        log.iter().any(|event| matches!(event, Executed::Descriptor(descriptor) if is_it(descriptor)))
    }

    /// Asks for the invalidation of `page`, waits, and sees that it was carried out.
    fn invalidate(&self, page: u64) {
        // Batches, and what goes the short way, share the ring.
        match pages(page) {
            Invalidation::Iotlb(scope) if page == 3 => self.unit.forget(&self.platform, &[scope]),
            batch => self.unit.invalidate(&self.platform, &[batch]),
        }
        .unwrap();
        assert!(
            self.has_executed(|descriptor| is_of(descriptor, page) || is_global(descriptor)),
            "the ticket of page {page} was complete before the unit was there"
        );
    }
}

fn is_of(descriptor: &Descriptor, page: u64) -> bool {
    matches!(descriptor, Descriptor::Iotlb { granularity: Granularity::Selective, first, .. }
        if first.as_u64() == page << 12)
}

fn is_global(descriptor: &Descriptor) -> bool {
    matches!(descriptor, Descriptor::Iotlb { granularity: Granularity::Global, .. })
}

#[test]
fn a_ticket_is_complete_only_when_its_batch_is() {
    explore(2, || {
        // The unit does one thing each time a CPU waits.
        let model = Model::new(|manner| manner.lazy = true);
        model.platform.pace.store(1, Ordering::Relaxed);
        let other = {
            let model = model.clone();
            thread::spawn(move || {
                // Nobody waits for the first: its slot must not be given out while the unit may yet write to it.
                drop(model.unit.submit(&model.platform, &[pages(1)]).unwrap());
                model.invalidate(2);
            })
        };
        model.invalidate(3);
        other.join().unwrap();
    });
}

#[test]
fn who_was_refused_asks_again_whoever_else_is_there() {
    explore(3, || {
        let model = Model::new(|manner| {
            manner.refuses = Some(std::boxed::Box::new(|descriptor| is_of(&descriptor, 2)));
        });
        let other = {
            let model = model.clone();
            thread::spawn(move || model.invalidate(2))
        };
        model.invalidate(3);
        other.join().unwrap();
    });
}
