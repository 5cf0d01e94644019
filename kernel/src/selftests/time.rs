//! The clock and deadlines.

use harness::{check, test};

use crate::{
    arch::clock::{self, NS_PER_MS},
    threads::{self, Event},
};

test! {
    /// The clock never goes back, also when it is read as fast as possible.
    fn the_clock_is_monotonic(context) {
        let mut last = context.now_ns();
        for _ in 0..100_000 {
            let now = context.now_ns();
            check!(now >= last, "{now} ns after {last} ns");
            last = now;
        }
    }
}

test! {
    /// Measured again, the interval timer says the same of the clock's speed as when it started.
    fn the_clock_keeps_its_speed(_context) {
        let now = clock::measured_hz().ok_or(harness::failure!("the interval timer stands still"))?;
        let hz = clock::tsc_hz();
        check!(now.abs_diff(hz) < hz / 50, "{now} Hz, not {hz} Hz");
    }
}

test! {
    /// A sleep ends after its deadline, and not long after.
    fn sleeps_end_on_time(context) {
        for delay_ms in [1, 3, 20] {
            let deadline = context.now_ns() + delay_ms * NS_PER_MS;
            threads::sleep_until(deadline);
            let late_ns = context.now_ns().checked_sub(deadline);
            check!(late_ns.is_some(), "a sleep of {delay_ms} ms ended early");
            // A host that is busy may not run us for a while.
            check!(late_ns < Some(500 * NS_PER_MS), "a sleep of {delay_ms} ms was {late_ns:?} ns too long");
        }
    }
}

test! {
    /// A wait for an event that nobody signals ends at its deadline, and says so.
    fn waits_end_at_their_deadline(context) {
        let event = Event::new();
        let deadline = context.now_ns() + 5 * NS_PER_MS;
        check!(!event.wait(deadline), "nobody signalled");
        check!(context.now_ns() >= deadline, "the wait ended early");
        check!(!event.wait(0), "a deadline in the past is a poll");
        event.signal();
        check!(event.wait(0), "a signal that came before the wait is not lost");
        check!(!event.wait(0), "a wait takes the signal");
    }
}
