use std::{format, sync::Arc, thread, vec::Vec};

use super::*;
use crate::vtd::testing::FakePlatform;

fn platform() -> FakePlatform {
    FakePlatform::new(0, 0)
}

#[test]
fn a_ring_keeps_the_oldest_and_counts_the_rest() {
    let platform = platform();
    let ring = BoundedRing::<u32, 4>::new();
    for round in 0..3 {
        (0..6).for_each(|value| ring.push(&platform, value));
        let kept: Vec<_> = core::iter::from_fn(|| ring.pop(&platform)).collect();
        assert_eq!(kept, [0, 1, 2, 3]);
        assert_eq!(ring.lost(&platform), 2 * (round + 1));
    }
}

#[test]
fn a_ring_wraps_at_every_place() {
    let platform = platform();
    let ring = BoundedRing::<u32, 3>::new();
    let mut next = 0;
    for count in [1, 2, 3, 1, 3, 2, 2, 1, 1, 3] {
        (next..next + count).for_each(|value| ring.push(&platform, value));
        (next..next + count).for_each(|value| assert_eq!(ring.pop(&platform), Some(value)));
        next += count;
    }
    assert_eq!((ring.pop(&platform), ring.lost(&platform)), (None, 0));
}

#[test]
fn nothing_gets_lost_between_threads_without_being_counted() {
    const EACH: u64 = if cfg!(miri) { 200 } else { 20_000 };
    let platform = Arc::new(platform());
    let ring = Arc::new(BoundedRing::<u64, 16>::new());
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let (platform, ring) = (platform.clone(), ring.clone());
            thread::spawn(move || (0..EACH).for_each(|value| ring.push(&*platform, writer * EACH + value)))
        })
        .collect();
    let (mut seen, mut last) = (0, [None; 3]);
    loop {
        let finished = writers.iter().all(thread::JoinHandle::is_finished);
        while let Some(value) = ring.pop(&*platform) {
            let (writer, value) = ((value / EACH) as usize, value % EACH);
            assert!(last[writer].is_none_or(|last| last < value), "out of order");
            last[writer] = Some(value);
            seen += 1;
        }
        if finished {
            break;
        }
    }
    assert_eq!(seen + ring.lost(&*platform), 3 * EACH);
}

#[test]
fn faults_read_as_sentences() {
    let fault = Fault {
        source: SourceId { segment: 0, requester: 0x0308 },
        target: FaultTarget::Address(Iova::new(0x5000)),
        access: FaultAccess::Write,
        pasid: None,
        reason: Reason { code: 5, kind: FaultKind::Denied, words: "no write permission" },
    };
    assert_eq!(format!("{fault}"), "0000:03:01.0: write at 0x5000 blocked: no write permission (reason 0x5)");
    let pasid = Fault { pasid: Some(0x12), target: FaultTarget::Interrupt(Some(3)), ..fault };
    let text = "0000:03:01.0 (PASID 0x12): interrupt 0x3 blocked: no write permission (reason 0x5)";
    assert_eq!(format!("{pasid}"), text);
}
