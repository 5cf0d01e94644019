//! Interrupts on two CPUs and the thread that reads what they report, in every order.

use core::sync::atomic::Ordering;
use std::{
    sync::{Arc, Mutex},
    vec,
    vec::Vec,
};

use loom::thread;

use super::{BoundedRing, Fault, FaultAccess, FaultKind, FaultTarget, Reason};
use crate::{Iova, SourceId, fault_log::FaultLog, sync::explore, vtd::testing::FakePlatform};

#[test]
fn what_two_cpus_push_is_read_once_and_in_order() {
    explore(4, || {
        let platform = Arc::new(FakePlatform::new(0, 0));
        let ring = Arc::new(BoundedRing::<u32, 2>::new());
        let pushers: Vec<_> = [10, 20]
            .map(|first| {
                let (platform, ring) = (platform.clone(), ring.clone());
                thread::spawn(move || (first..first + 2).for_each(|value| ring.push(&*platform, value)))
            })
            .into();
        let mut read: Vec<u32> = (0..2).filter_map(|_| ring.pop(&*platform)).collect();
        pushers.into_iter().for_each(|pusher| pusher.join().unwrap());
        read.extend(core::iter::from_fn(|| ring.pop(&*platform)));
        assert_eq!(read.len() as u64 + ring.lost(&*platform), 4, "read: {read:?}");
        for first in [10, 20] {
            let of_one = read.iter().filter(|value| (first..first + 2).contains(*value));
            assert!(of_one.is_sorted_by(|one, next| one < next), "read: {read:?}");
        }
    });
}

#[test]
fn no_fault_is_left_behind_when_its_thread_sleeps() {
    explore(4, || {
        let platform = Arc::new(FakePlatform::new(0, 0));
        let log = Arc::<FaultLog>::from(FaultLog::boxed());
        let interrupt = {
            let (platform, log) = (platform.clone(), log.clone());
            thread::spawn(move || (0..2).for_each(|page| log.record(&*platform, 0, fault(page), false)))
        };
        let seen = Mutex::new(vec![]);
        // Runs when it was woken, and then looks once: what comes after that has to wake it again.
        let work = || {
            let see = |fault: &Fault| seen.lock().unwrap().push(*fault);
            if platform.wakes.swap(0, Ordering::SeqCst) > 0 {
                log.process(&*platform, see, |_| Some(0), |_, _| None::<&str>);
            }
        };
        work();
        thread::yield_now();
        work();
        interrupt.join().unwrap();
        work();
        assert_eq!(*seen.lock().unwrap(), [fault(0), fault(1)]);
    });
}

fn fault(page: u64) -> Fault {
    Fault {
        source: SourceId { segment: 0, requester: 0x20 },
        target: FaultTarget::Address(Iova::new(page << 12)),
        access: FaultAccess::Write,
        pasid: None,
        reason: Reason { code: 5, kind: FaultKind::Denied, words: "no write permission" },
    }
}
