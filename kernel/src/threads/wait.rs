//! Waiting for something, until a deadline.

use core::{
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use alloc::sync::Arc;
use intrusive_collections::LinkedList;

use super::{
    scheduler::{self, park},
    thread::{Thread, WaitAdapter},
};
use crate::{
    arch::clock,
    sync::{IrqMutex, Rank},
};

/// Threads that wait for a condition, in the order in which they came.
pub struct WaitQueue {
    waiters: IrqMutex<LinkedList<WaitAdapter>>,
}

impl WaitQueue {
    /// A queue with nobody in it.
    pub const fn new() -> Self {
        Self { waiters: IrqMutex::new(Rank::WaitQueue, LinkedList::new(WaitAdapter::NEW)) }
    }

    /// Blocks until `is_met` holds; false if `deadline_ns` came first. A deadline in the past makes it a check.
    ///
    /// `is_met` is asked after every wake: whoever makes the condition true calls [`wake_one`](Self::wake_one) or
    /// [`wake_all`](Self::wake_all) after that.
    pub fn wait_until(&self, deadline_ns: u64, mut is_met: impl FnMut() -> bool) -> bool {
        while !is_met() {
            if clock::now_ns() >= deadline_ns {
                return false;
            }
            let thread = scheduler::current();
            self.waiters.lock().push_back(thread.clone());
            // A change between the first look and the line above woke nobody.
            let met = is_met();
            if !met {
                park(deadline_ns);
            }
            self.leave(&thread);
            if met {
                return true;
            }
        }
        true
    }

    /// Wakes the thread that has waited longest. Callable in an interrupt.
    pub fn wake_one(&self) {
        let first = self.waiters.lock().pop_front();
        if let Some(thread) = first {
            scheduler::unpark(thread);
        }
    }

    /// Wakes all threads that wait now. Callable in an interrupt.
    pub fn wake_all(&self) {
        let mut waiters = self.waiters.lock();
        while let Some(thread) = waiters.pop_front() {
            scheduler::unpark(thread);
        }
    }

    /// Takes `thread` out, if nobody did when waking it.
    fn leave(&self, thread: &Arc<Thread>) {
        let mut waiters = self.waiters.lock();
        if thread.wait_link.is_linked() {
            // SAFETY: the thread is in a list, and in this queue's: it put itself there, and a thread waits in one
            // queue at a time.
            unsafe { waiters.cursor_mut_from_ptr(ptr::from_ref(&**thread)) }.remove();
        }
    }
}

/// A flag that a thread can wait for: binary, sticky, and cleared by the wait that it ends.
pub struct Event {
    signalled: AtomicBool,
    waiters: WaitQueue,
}

impl Event {
    /// An event that is not signalled.
    pub const fn new() -> Self {
        Self { signalled: AtomicBool::new(false), waiters: WaitQueue::new() }
    }

    /// Sets the flag and wakes a waiter. Callable in an interrupt; never blocks.
    pub fn signal(&self) {
        self.signalled.store(true, Ordering::Release);
        self.waiters.wake_one();
    }

    /// Waits until the flag is set and clears it; false if `deadline_ns` came first.
    pub fn wait(&self, deadline_ns: u64) -> bool {
        self.waiters.wait_until(deadline_ns, || self.signalled.swap(false, Ordering::Acquire))
    }
}
