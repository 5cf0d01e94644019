//! Vectors: all are survived, handlers come and go.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicUsize, Ordering};

use harness::{check, check_eq, test};

use crate::arch::{apic, interrupts};

/// Raises `vector` on this CPU by its local APIC, and waits until it was delivered.
pub(super) fn send_to_self(vector: u8) {
    apic::send_to_self(vector);
}

test! {
    /// Every vector that nobody asked for is counted, and the machine goes on.
    fn unexpected_vectors_are_survived(context) {
        let deadline = context.now_ns() + 5 * crate::arch::clock::NS_PER_S;
        let mut raised = 0;
        // Those of exceptions too, from the lowest one that an APIC delivers: with an error code, without, and on a
        // stack of its own.
        let strays = (16..interrupts::LEGACY_BASE).chain(
            (interrupts::LEGACY_BASE..=u8::MAX).filter(|&vector| !interrupts::is_used(vector)));
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
        let deadline = context.now_ns() + 5 * crate::arch::clock::NS_PER_S;
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
