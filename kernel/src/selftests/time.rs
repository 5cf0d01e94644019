//! The clock and deadlines.

use drivers::block::{Operation, Transfer, transfer};
use harness::{Failure, check, check_eq, failure, test};
use iommu::PageBuffer;
use suites::{Machine, lacks};

use crate::{
    arch::clock::{self, NS_PER_MS, NS_PER_S, Seen},
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
    /// A gap in which nobody could look at the clock counts as one pulse; all others count in full.
    fn gaps_in_the_count_are_no_time(_context) {
        const UNITS_PER_S: u32 = 60;
        const UNIT_NS: u64 = 1 << 24;
        let pulse_units = (clock::PULSE_NS / UNIT_NS) as u32;
        let seen = Seen { last_units: 100, lost_units: 7 };
        for (gap, lost) in [
            (0, 0),
            (1, 0),
            (pulse_units, 0),
            (UNITS_PER_S, 0),
            (2 * UNITS_PER_S, 2 * UNITS_PER_S - pulse_units),
            (1000 * UNITS_PER_S, 1000 * UNITS_PER_S - pulse_units),
        ] {
            let next = seen.look(u64::from(100 + gap) * UNIT_NS + 5);
            check_eq!(next, Seen { last_units: 100 + gap, lost_units: 7 + lost }, "a gap of {gap} units");
        }
        // A counter that is behind another CPU's loses nothing.
        check_eq!(seen.look(0).lost_units, 7);
    }
}

test! {
    /// The host keeps the machine from running for longer than a disk's driver gives a request: no request is late, the
    /// disk is not reset, and the clock does not show it.
    deadline_ms = 60_000,
    lacks = lacks::attended_disk,
    fn a_standstill_is_no_time(context) {
        const STANDSTILL_MS: u64 = 12_000;
        let machine = Machine::of(context)?;
        let disk = machine.disk()?;
        let (resets, stood_still_ns, start_ns) = (disk.resets(), clock::stood_still_ns(), context.now_ns());
        context.hold_still(STANDSTILL_MS);
        let deadline_ns = start_ns + 20 * NS_PER_S;
        while clock::stood_still_ns() == stood_still_ns {
            check!(context.now_ns() < deadline_ns, "the machine did not stand still");
            transfer(&machine.host, &*disk, read_page()?)?;
        }
        let elapsed_ns = context.now_ns() - start_ns;
        let lost_ns = clock::stood_still_ns() - stood_still_ns;
        check!(lost_ns > STANDSTILL_MS / 2 * NS_PER_MS, "it stood still for {lost_ns} ns");
        check!(elapsed_ns < STANDSTILL_MS / 2 * NS_PER_MS, "it took {elapsed_ns} ns");
        transfer(&machine.host, &*disk, read_page()?)?;
        check_eq!(disk.resets(), resets);
    }
}

fn read_page() -> Result<Operation, Failure> {
    let buffer = PageBuffer::zeroed(1).ok_or_else(|| failure!("no memory for a page"))?;
    Ok(Operation::Read(Transfer { first: 0, blocks: 8, buffer }))
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
