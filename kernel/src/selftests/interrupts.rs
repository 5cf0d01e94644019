//! Vectors: all are survived, handlers come and go.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use harness::{Failure, check, check_eq, test};
use iommu::{dump::InterruptReport, interrupts::Sender};
use suites::{Machine, reports};

use crate::{
    arch::{apic, apic_errors, clock, device_rate, interrupts},
    console,
    shell::input,
    threads,
};

/// Raises `vector` on this CPU by its local APIC, and waits until it was delivered.
pub(super) fn send_to_self(vector: u8) {
    apic::send_to_self(vector);
}

test! {
    /// Every vector that nobody asked for is counted, and the machine goes on.
    fn unexpected_vectors_are_survived(context) {
        let deadline = context.now_ns() + 5 * clock::NS_PER_S;
        let mut raised = 0;
        // Those of exceptions too, from the lowest one that an APIC delivers: with an error code, without, and on a
        // stack of its own. And that of the APIC's errors, without any.
        let strays = (16..interrupts::LEGACY_BASE).chain(
            (interrupts::LEGACY_BASE..=u8::MAX).filter(|&vector| !interrupts::is_used(vector)))
            .chain([interrupts::APIC_ERROR]);
        for vector in strays {
            let (before, arrived) = (interrupts::unexpected(), interrupts::arrived(vector));
            send_to_self(vector);
            while interrupts::arrived(vector) == arrived && context.now_ns() < deadline {
                core::hint::spin_loop();
            }
            check_eq!(interrupts::arrived(vector), arrived + 1, "vector {vector:#x}");
            check_eq!(interrupts::unexpected(), before + 1, "vector {vector:#x}");
            raised += 1;
        }
        check!(raised > 150, "only {raised} vectors were free");
    }
}

/// Raises `vector` on this CPU `times` times, and waits for each.
fn raise(context: &harness::Context<'_>, vector: u8, times: u64) -> Result<(), Failure> {
    let deadline_ns = context.now_ns() + 5 * clock::NS_PER_S;
    for _ in 0..times {
        let arrived = interrupts::arrived(vector);
        send_to_self(vector);
        while interrupts::arrived(vector) == arrived {
            check!(context.now_ns() < deadline_ns, "vector {vector:#x} does not arrive");
            core::hint::spin_loop();
        }
    }
    Ok(())
}

test! {
    /// The APIC's error interrupt, as often as a device may raise it, without errors behind it, and errors as often as
    /// they may come: all are counted, and the log has a line or two of them.
    fn a_storm_of_apic_errors_is_counted_and_not_logged(context) {
        const TIMES: u64 = 1_000;
        /// Reports of a few intervals, and what others have to say meanwhile.
        const LINES_MAX: u64 = 5;
        const RECEIVED_ILLEGAL_VECTOR: u32 = 1 << 6;
        let (lines, unexpected) = (console::lines(), interrupts::unexpected());
        raise(context, interrupts::APIC_ERROR, TIMES)?;
        check_eq!(interrupts::unexpected(), unexpected + TIMES);
        let errors = apic_errors::count();
        for _ in 0..TIMES {
            apic_errors::record(RECEIVED_ILLEGAL_VECTOR);
            threads::yield_now();
        }
        check_eq!(apic_errors::count(), errors + TIMES);
        let logged = console::lines() - lines;
        check!(logged <= LINES_MAX, "{logged} lines for {TIMES} interrupts");
    }
}

test! {
    /// A non-maskable interrupt that has no cause is counted, and the machine goes on.
    fn a_stray_nmi_is_survived(_context) {
        let before = interrupts::unexpected();
        // SAFETY: the vector has a handler on a stack of its own, which returns.
        unsafe { x86::int!(2) };
        check_eq!(interrupts::unexpected(), before + 1);
    }
}

test! {
    /// A handler runs once for each interrupt, and not any more when its vector is given back.
    fn handlers_come_and_go(context) {
        let deadline = context.now_ns() + 5 * clock::NS_PER_S;
        let count = Arc::new(AtomicUsize::new(0));
        let handler = {
            let count = count.clone();
            interrupts::allocate(Box::new(move || {
                count.fetch_add(1, Ordering::SeqCst);
            }))
        };
        let vector = handler.ok_or(harness::failure!("no vector is free"))?;
        let number = vector.number();
        for round in 1..=100 {
            send_to_self(number);
            while count.load(Ordering::SeqCst) < round && context.now_ns() < deadline {
                core::hint::spin_loop();
            }
            check_eq!(count.load(Ordering::SeqCst), round);
        }
        drop(vector);
        let before = interrupts::unexpected();
        send_to_self(number);
        while interrupts::unexpected() == before && context.now_ns() < deadline {
            core::hint::spin_loop();
        }
        check_eq!(count.load(Ordering::SeqCst), 100, "the handler is gone");
    }
}

test! {
    /// A device that raises its interrupt again whenever it was handled: whoever runs on that CPU gets on, the
    /// interrupt comes no more often than it may, and still comes afterwards.
    fn an_interrupt_without_end_leaves_the_cpu_to_others(context) {
        const WINDOWS: u64 = 200;
        let goes_on = Arc::new(AtomicBool::new(true));
        let number = Arc::new(AtomicU8::new(0));
        let handler = {
            let (goes_on, number) = (goes_on.clone(), number.clone());
            Box::new(move || {
                if goes_on.load(Ordering::SeqCst) {
                    apic::send_to_self(number.load(Ordering::SeqCst));
                }
            })
        };
        let vector = interrupts::allocate_for_device(handler);
        let vector = vector.ok_or(harness::failure!("no vector is free"))?;
        number.store(vector.number(), Ordering::SeqCst);
        let (before, pauses) = (interrupts::arrived(vector.number()), device_rate::pauses());
        let start_ns = context.now_ns();
        send_to_self(vector.number());
        while context.now_ns() < start_ns + WINDOWS * device_rate::WINDOW_NS {
            core::hint::spin_loop();
        }
        let came = interrupts::arrived(vector.number()) - before;
        let windows = (context.now_ns() - start_ns) / device_rate::WINDOW_NS + 1;
        goes_on.store(false, Ordering::SeqCst);
        // Each interrupt of the timer lets one through that is too many.
        check!(came < windows * u64::from(device_rate::BURST + 20), "{came} in {windows} windows");
        check!(device_rate::pauses() > pauses, "it was never too much");
        threads::sleep_until(context.now_ns() + 5 * device_rate::WINDOW_NS);
        raise(context, vector.number(), 2 * u64::from(device_rate::BURST))?;
    }
}

test! {
    /// Vectors run out with an answer, and all come back.
    fn vectors_run_out(_context) {
        let take_all = || -> Vec<_> { core::iter::from_fn(|| interrupts::allocate(Box::new(|| {}))).collect() };
        let vectors = take_all();
        let count = vectors.len();
        check!((100..=192).contains(&count), "{count} vectors");
        let mut numbers: Vec<_> = vectors.iter().map(interrupts::Vector::number).collect();
        numbers.dedup();
        check_eq!(numbers.len(), count, "two have the same number");
        drop(vectors);
        check_eq!(take_all().len(), count, "some did not come back");
    }
}

test! {
    /// The serial line's interrupt comes by the I/O APIC, each time that the port raises it; where interrupts are
    /// remapped by an entry that lets the I/O APIC in and no PCI function.
    fn the_serial_line_interrupts_by_an_entry_of_its_own(context) {
        let machine = Machine::of(context)?;
        let functions = machine.hotplug.functions()?;
        let is_of_no_function = |entry: &InterruptReport| match entry.sender {
            Some(Sender::Function(source)) => !functions.iter().any(|f| f.address.source_id() == source),
            _ => false,
        };
        let mut entries = reports::interrupts(&machine.iommu);
        entries.retain(is_of_no_function);
        check_eq!(entries.len(), usize::from(machine.remaps_interrupts()));
        let arrived = || entries.first().map(|entry| interrupts::arrived(entry.vector));
        for _ in 0..20 {
            let deadline_ns = context.now_ns() + 5 * clock::NS_PER_S;
            let (before, by_entry) = (input::interrupts(), arrived());
            console::raise_interrupt();
            while input::interrupts() == before {
                check!(context.now_ns() < deadline_ns, "the serial line does not interrupt");
                threads::yield_now();
            }
            check_eq!(input::interrupts(), before + 1);
            check_eq!(arrived(), by_entry.map(|count| count + 1));
        }
    }
}
