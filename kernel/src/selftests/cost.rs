//! What the kernel's own operations cost.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, Ordering};

use harness::bench;

use crate::{
    arch::{InterruptGuard, clock, interrupts},
    memory::frames,
    threads::{self, Event},
};

bench! {
    fn interrupt_guard(bencher) {
        bencher.measure(|| drop(InterruptGuard::new()));
    }
}

bench! {
    fn read_clock(bencher) {
        bencher.measure(clock::now_ns);
    }
}

bench! {
    fn heap_64_bytes(bencher) {
        bencher.measure(|| Box::new([0_u8; 64]));
    }
}

bench! {
    fn heap_16_kib(bencher) {
        bencher.measure(|| Vec::<u8>::with_capacity(16 << 10));
    }
}

bench! {
    fn frame(bencher) {
        bencher.measure_with(|| (), |()| {
            if let Some(frame) = frames::allocate(1) {
                // SAFETY: allocated in the line above.
                unsafe { frames::free(frame, 1) };
            }
        });
    }
}

bench! {
    /// To another thread and back.
    fn two_switches(bencher) {
        let stop = Arc::new(AtomicBool::new(false));
        let other = {
            let stop = stop.clone();
            threads::spawn("other", Box::new(move || {
                while !stop.load(Ordering::Relaxed) {
                    threads::yield_now();
                }
            }))?
        };
        bencher.measure(threads::yield_now);
        stop.store(true, Ordering::Relaxed);
        other.join(clock::now_ns() + clock::NS_PER_S);
    }
}

bench! {
    /// From raising an interrupt to the return from it.
    fn interrupt(bencher) {
        let event = Arc::new(Event::new());
        let handler = event.clone();
        let vector = interrupts::allocate(Box::new(move || handler.signal()));
        let vector = vector.ok_or(harness::failure!("no vector is free"))?;
        let mut expected = interrupts::arrived(vector.number());
        bencher.measure(|| {
            expected += 1;
            super::interrupts::send_to_self(vector.number());
            while interrupts::arrived(vector.number()) < expected {
                core::hint::spin_loop();
            }
        });
    }
}
