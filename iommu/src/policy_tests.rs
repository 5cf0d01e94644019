use std::{vec, vec::Vec};

use super::*;

/// Verdicts on faults at `times`.
fn verdicts(limits: Limits, times: &[u64]) -> Vec<Verdict> {
    let mut history = History::default();
    let mut verdicts = Vec::new();
    for &now_ns in times {
        let (next, verdict) = judge(history, limits, now_ns);
        history = next;
        verdicts.push(verdict);
    }
    verdicts
}

/// The last verdict, worked out nanosecond by nanosecond.
fn reference(throttle_at: u32, quarantine_at: u32, quiet_ns: u64, times: &[u64]) -> Verdict {
    let mut count = 0;
    let mut quiet_for = 0;
    let end = *times.iter().max().unwrap();
    for now in 0..=end {
        if quiet_for == quiet_ns {
            (count, quiet_for) = (count / 2, 0);
        }
        for _ in times.iter().filter(|&&time| time == now) {
            count = quarantine_at.min(count + 1);
            quiet_for = 0;
        }
        quiet_for += 1;
    }
    match count {
        _ if count == quarantine_at => Verdict::Quarantine,
        _ if count >= throttle_at => Verdict::Throttle,
        _ => Verdict::Log,
    }
}

/// Faults in each sequence. Miri is a thousand times slower.
const LENGTH: usize = if cfg!(miri) { 3 } else { 6 };

/// Calls `check` with every sequence of `length` gaps from `choices`, as times.
fn each_sequence(length: usize, choices: &[u64], check: &mut impl FnMut(&[u64])) {
    for code in 0..choices.len().pow(length as u32) {
        let (mut code, mut now) = (code, 0);
        let times: Vec<u64> = (0..length)
            .map(|_| {
                now += choices[code % choices.len()];
                code /= choices.len();
                now
            })
            .collect();
        check(&times);
    }
}

#[test]
fn every_short_sequence_is_judged_as_by_the_reference() {
    for (throttle_at, quarantine_at, quiet_ns) in [(1, 1, 1), (1, 3, 3), (2, 4, 1), (3, 5, 4), (2, 2, 2)] {
        let limits = Limits::new(throttle_at, quarantine_at, quiet_ns).unwrap();
        each_sequence(LENGTH, &[0, 1, 3, 4, 8, 13], &mut |times| {
            let expected = reference(throttle_at, quarantine_at, quiet_ns, times);
            assert_eq!(verdicts(limits, times).last(), Some(&expected), "{limits:?} {times:?}");
        });
    }
}

#[test]
fn a_storm_is_quarantined_at_exactly_the_limit_however_slow() {
    let limits = Limits::default();
    let quiet_ns = limits.quiet_ns.get();
    for gap in [0, 1, 1000, quiet_ns - 1] {
        let times: Vec<u64> = (1..=40).map(|fault| fault * gap).collect();
        let found = verdicts(limits, &times);
        let first = found.iter().position(|&verdict| verdict == Verdict::Quarantine).unwrap();
        assert_eq!(first + 1, limits.quarantine_at() as usize, "gap {gap}");
        let mut expected = vec![Verdict::Log; 3];
        expected.extend([Verdict::Throttle; 12]);
        expected.extend([Verdict::Quarantine; 25]);
        assert_eq!(found, expected);
    }
}

#[test]
fn a_device_that_blunders_now_and_then_is_only_logged() {
    let limits = Limits::default();
    let quiet_ns = limits.quiet_ns.get();
    let times: Vec<u64> = (0..1000).map(|fault| fault * quiet_ns).collect();
    assert!(verdicts(limits, &times).iter().all(|&verdict| verdict == Verdict::Log));
}

#[test]
fn denser_faults_are_never_judged_more_mildly() {
    let limits = Limits::new(2, 4, 4).unwrap();
    each_sequence(LENGTH, &[0, 2, 4, 9], &mut |times| {
        let verdict = *verdicts(limits, times).last().unwrap();
        for moved in 1..LENGTH {
            // The fault and all after it come right after the one before.
            let gap = times[moved] - times[moved - 1];
            let denser: Vec<u64> = times
                .iter()
                .enumerate()
                .map(|(i, time)| if i < moved { *time } else { time - gap })
                .collect();
            assert!(*verdicts(limits, &denser).last().unwrap() >= verdict, "{times:?} to {denser:?}");
        }
    });
}

#[test]
fn a_storm_is_forgotten_by_halves() {
    let limits = Limits::new(2, 16, 100).unwrap();
    let mut history = History::default();
    for _ in 0..1000 {
        (history, _) = judge(history, limits, 5);
    }
    assert_eq!(history.count(), 16);
    let count_after = |gap| judge(history, limits, 5 + gap).0.count();
    assert_eq!([0, 99, 100, 199, 200, 300, 400, 500].map(count_after), [16, 16, 9, 9, 5, 3, 2, 1]);
    assert_eq!(count_after(u64::MAX - 5), 1);
}

#[test]
fn time_that_runs_backwards_forgives_nothing() {
    let limits = Limits::new(2, 3, 10).unwrap();
    assert_eq!(verdicts(limits, &[100, 50, 105]), [Verdict::Log, Verdict::Throttle, Verdict::Quarantine]);
    // And the latest time is the one that counts from.
    let (history, _) = judge(judge(History::default(), limits, 100).0, limits, 0);
    assert_eq!(judge(history, limits, 109).1, Verdict::Quarantine);
}

#[test]
fn limits_that_mean_nothing_are_refused() {
    assert!(Limits::new(0, 1, 1).is_none());
    assert!(Limits::new(2, 1, 1).is_none());
    assert!(Limits::new(1, 1, 0).is_none());
    assert!(Limits::new(1, 1, 1).is_some());
    let largest = Limits::new(u32::MAX, u32::MAX, u64::MAX).unwrap();
    let history = History { count: u32::MAX - 1, last_ns: 0 };
    assert_eq!(judge(history, largest, 0), (History { count: u32::MAX, last_ns: 0 }, Verdict::Quarantine));
    let full = History { count: u32::MAX, last_ns: 0 };
    assert_eq!(judge(full, largest, 0).0, full);
}
