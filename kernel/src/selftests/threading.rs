//! Threads: order, preemption, blocking, joining, stacks.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use harness::{check, check_eq, test};

use crate::{
    arch::{
        Cpu,
        clock::{self, NS_PER_S},
        interrupts,
    },
    memory::{
        self,
        stacks::{self, Stack},
    },
    smp,
    sync::{IrqMutex, Rank},
    threads::{self, Event, WaitQueue},
};

test! {
    /// Waiters are woken in the order in which they came.
    fn waiters_wake_in_order(context) {
        const WAITERS: usize = 5;
        let deadline = context.now_ns() + 5 * NS_PER_S;
        let queue = Arc::new(WaitQueue::new());
        let turns = Arc::new(AtomicUsize::new(0));
        let order = Arc::new(IrqMutex::new(Rank::Device, Vec::with_capacity(WAITERS)));
        let waiting = Arc::new(AtomicUsize::new(0));
        let mut handles = Vec::new();
        for number in 0..WAITERS {
            let (queue, turns, order) = (queue.clone(), turns.clone(), order.clone());
            let waiting_too = waiting.clone();
            handles.push(threads::spawn("waiter", Box::new(move || {
                let mut looks = 0;
                queue.wait_until(deadline, || {
                    looks += 1;
                    // The second look comes when the thread is in the queue.
                    waiting_too.fetch_add(usize::from(looks == 2), Ordering::SeqCst);
                    turns.try_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
                });
                order.lock().push(number);
            }))?);
            // Each is in the queue before the next one starts.
            while waiting.load(Ordering::SeqCst) <= number && context.now_ns() < deadline {
                threads::yield_now();
            }
        }
        for woken in 1..=WAITERS {
            turns.fetch_add(1, Ordering::SeqCst);
            queue.wake_one();
            // Two that are woken at the same time may run in any order, on two CPUs.
            while order.lock().len() < woken && context.now_ns() < deadline {
                threads::yield_now();
            }
        }
        for handle in handles {
            check!(handle.join(deadline), "a waiter was not woken");
        }
        check_eq!(*order.lock(), (0..WAITERS).collect::<Vec<_>>());
    }
}

test! {
    /// Threads that never yield, one on each CPU, do not keep others from running.
    fn the_timer_preempts(context) {
        let deadline = context.now_ns() + 5 * NS_PER_S;
        let stop = Arc::new(AtomicBool::new(false));
        let spinners = (0..smp::count()).map(|cpu| {
            let stop = stop.clone();
            threads::spawn_on(cpu, "spinner", Box::new(move || {
                while !stop.load(Ordering::Relaxed) && clock::now_ns() < deadline {
                    core::hint::spin_loop();
                }
            }))
        });
        let spinners = spinners.collect::<Result<Vec<_>, _>>()?;
        // Gives a spinner the CPU; only the timer can take it back, here or elsewhere.
        threads::yield_now();
        check!(!spinners.iter().any(threads::JoinHandle::is_finished), "a spinner ended by itself");
        stop.store(true, Ordering::Relaxed);
        for spinner in spinners {
            check!(spinner.join(deadline), "a spinner was not stopped");
        }
    }
}

test! {
    /// Two threads pass a signal to and fro, and none is lost.
    fn signals_are_not_lost(context) {
        const ROUNDS: usize = 2_000;
        let deadline = context.now_ns() + 8 * NS_PER_S;
        let (there, back) = (Arc::new(Event::new()), Arc::new(Event::new()));
        let echo = {
            let (there, back) = (there.clone(), back.clone());
            threads::spawn("echo", Box::new(move || {
                for _ in 0..ROUNDS {
                    if !there.wait(deadline) {
                        return;
                    }
                    back.signal();
                }
            }))?
        };
        for round in 0..ROUNDS {
            there.signal();
            check!(back.wait(deadline), "no answer in round {round}");
        }
        check!(echo.join(deadline), "the echo did not end");
    }
}

test! {
    /// An interrupt wakes a thread that waits for its event.
    fn interrupts_wake_threads(context) {
        const VECTOR_ROUNDS: usize = 100;
        let deadline = context.now_ns() + 5 * NS_PER_S;
        let event = Arc::new(Event::new());
        let (request, answer) = (Arc::new(Event::new()), Arc::new(Event::new()));
        let handler = {
            let event = event.clone();
            interrupts::allocate(Box::new(move || event.signal()))
        };
        let vector = handler.ok_or(harness::failure!("no vector is free"))?;
        let waiter = {
            let (event, answer, request) = (event.clone(), answer.clone(), request.clone());
            threads::spawn("waiter", Box::new(move || {
                for _ in 0..VECTOR_ROUNDS {
                    request.signal();
                    if event.wait(deadline) {
                        answer.signal();
                    }
                }
            }))?
        };
        for round in 0..VECTOR_ROUNDS {
            check!(request.wait(deadline), "the waiter is gone in round {round}");
            super::interrupts::send_to_self(vector.number());
            check!(answer.wait(deadline), "the interrupt of round {round} woke nobody");
        }
        check!(waiter.join(deadline), "the waiter did not end");
        drop(event);
    }
}

test! {
    /// Threads that end give their stacks and themselves back. What stays is for the next ones: stacks stay mapped
    /// (there are as many as were in use at the same time, which preemption decides), and the heap keeps what it has
    /// grown by; so those are counted, and not frames.
    fn threads_give_their_memory_back(context) {
        let deadline = context.now_ns() + 8 * NS_PER_S;
        let in_use = || (stacks::count().0, memory::small_bytes());
        let before = in_use();
        for _ in 0..1_000 {
            let thread = threads::spawn("short", Box::new(|| {}))?;
            check!(thread.join(deadline), "a thread did not end");
        }
        // The last ones may still be on their stacks; threads of drivers may have ended for good.
        while in_use() > before && context.now_ns() < deadline {
            threads::yield_now();
        }
        let (stacks, bytes) = in_use();
        check!(stacks <= before.0, "{} stacks left in use", stacks - before.0);
        check!(bytes <= before.1, "{} bytes of the heap left in use", bytes - before.1);
    }
}

test! {
    /// Interrupt guards nest, in any order of dropping.
    fn interrupt_guards_nest(_context) {
        use crate::arch::{InterruptGuard, are_enabled};
        check!(are_enabled(), "a thread runs with interrupts on");
        let (first, second) = (InterruptGuard::new(), InterruptGuard::new());
        check!(!are_enabled(), "a guard turns them off");
        drop(first);
        check!(!are_enabled(), "one guard is left");
        drop(second);
        check!(are_enabled(), "no guard is left");
        check!(!Cpu::in_interrupt(), "a thread is not an interrupt");
    }
}

test! {
    /// The page under a stack is not mapped, and a write to it is a page fault there.
    fn stacks_have_guard_pages(_context) {
        let stack = Stack::new().ok_or(harness::failure!("no stack"))?;
        super::memory::check_unmapped(stack.guard_page())?;
        super::memory::check_unmapped(crate::memory::layout::boot_stack_guard().start)?;
        check!(crate::memory::lookup(stack.top() - 1).is_some(), "the stack itself is mapped");
    }
}
