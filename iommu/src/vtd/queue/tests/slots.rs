//! Status slots by themselves: which may be handed out, and which waits an error concerns.

use super::{
    super::slots::{Blame, OwnedSlot, Slots, Status},
    *,
};
use crate::{
    reach::HostWidth,
    sync::atomic::Ordering,
    vtd::spec::{Completion, Wait},
};

/// All but the one that is never read.
const ALL: usize = 511;

fn slots(platform: &FakePlatform) -> Slots {
    Slots::new(platform, HostWidth(46), true).unwrap()
}

fn take_all(slots: &Slots, platform: &FakePlatform) -> Vec<OwnedSlot> {
    core::iter::from_fn(|| slots.take(platform)).collect()
}

/// Where the unit writes what, when it carries a wait out.
fn written(wait: &Wait) -> (u64, u32) {
    let Completion::Status { address, value } = wait.completion else { panic!("{wait:?}") };
    (address.as_u64(), value)
}

fn complete(platform: &FakePlatform, wait: &Wait) {
    let (address, value) = written(wait);
    platform.memory.word(address).store(value.into(), Ordering::SeqCst);
}

#[test]
fn slots_that_are_put_back_are_handed_out_again() {
    let platform = FakePlatform::new(CAP, ECAP);
    let slots = slots(&platform);
    for _ in 0..3 {
        let taken = take_all(&slots, &platform);
        let mut addresses: Vec<_> =
            taken.iter().map(|slot| written(&slots.arm(slot, 0, false, false)).0).collect();
        addresses.sort_unstable();
        assert_eq!(taken.len(), ALL);
        addresses.dedup();
        assert_eq!(addresses.len(), ALL, "each is somebody's alone");
        taken.into_iter().for_each(|slot| slots.put_back(slot));
    }
}

#[test]
fn an_orphan_is_handed_out_when_it_is_over_and_not_before() {
    const END: u64 = 100;
    let platform = FakePlatform::new(CAP, ECAP);
    let slots = slots(&platform);
    let mut waits = Vec::new();
    let mut own = None;
    for (position, slot) in take_all(&slots, &platform).into_iter().enumerate() {
        waits.push(slots.arm(&slot, position as u64, false, false));
        if position as u64 == END {
            own = Some(slot);
        } else {
            slots.orphan(slot);
        }
    }
    let own = own.unwrap();
    assert!(take_all(&slots, &platform).is_empty(), "nothing is over");
    // Of an orphan that is done nothing is known but that.
    complete(&platform, &waits[300]);
    let taken = take_all(&slots, &platform);
    let again: Vec<_> = taken.iter().map(|slot| slots.arm(slot, 1000, false, false)).collect();
    assert!(matches!(&again[..], [one] if written(one).0 == written(&waits[300]).0));
    // Who waits and sees that it is done knows that everything before is over.
    complete(&platform, &waits[END as usize]);
    assert_eq!(slots.status(&platform, &own), Status::Done { refused: false });
    assert_eq!(slots.over_below(), END + 1);
    let mut freed: Vec<_> = take_all(&slots, &platform)
        .iter()
        .map(|slot| written(&slots.arm(slot, 2000, false, false)).0)
        .collect();
    let mut expected: Vec<_> = waits[..END as usize].iter().map(|wait| written(wait).0).collect();
    freed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(freed, expected);
}

#[test]
fn an_error_concerns_the_waits_at_and_after_its_place() {
    let platform = FakePlatform::new(CAP, ECAP);
    let slots = slots(&platform);
    let armed = |position, devices| {
        let slot = slots.take(&platform).unwrap();
        let wait = slots.arm(&slot, position, devices, false);
        (slot, wait)
    };
    let ((first, _), (second, wait)) = (armed(10, true), armed(20, false));
    assert!(!slots.devices_outstanding(&platform, 10), "a wait is not before itself");
    assert!(slots.devices_outstanding(&platform, 11));
    // A descriptor between the two belongs to the second one, whose own place needs the wait itself.
    let scrap = slots.scrap_wait(false);
    assert_eq!(slots.refuse(&platform, 11), scrap);
    assert_eq!(slots.refuse(&platform, 20), wait);
    assert_eq!(slots.refuse(&platform, 21), scrap, "nobody's");
    slots.drop_below(&platform, 10, 0x0100);
    assert_eq!(slots.status(&platform, &first), Status::Waiting);
    slots.drop_below(&platform, 11, 0x0100);
    assert_eq!(slots.status(&platform, &first), Status::Dropped(Blame { source: 0x0100, is_own: false }));
    assert!(!slots.devices_outstanding(&platform, 11), "it is given up");
    complete(&platform, &wait);
    assert_eq!(slots.status(&platform, &second), Status::Done { refused: true });
    [first, second].into_iter().for_each(|slot| slots.put_back(slot));
}

/// Each use of a slot has a value that it never had before.
#[test]
fn values_of_a_slot_are_not_reused() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..if cfg!(miri) { 100 } else { 5000 } {
        unit.invalidate(&platform, &[domain()]).unwrap();
        for descriptor in platform.unit.take_descriptors() {
            if let Descriptor::Wait(Wait { completion: Completion::Status { address, value }, .. }) =
                descriptor
            {
                assert!(seen.insert((address, value)), "{value} at {address} was used before");
            }
        }
    }
}
