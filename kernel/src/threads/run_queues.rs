//! Threads that are ready to run.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use intrusive_collections::LinkedList;
use iommu::platform::MAX_CPUS;

use super::thread::{RunAdapter, Thread};

/// How many threads are in the shared queue, and in each CPU's own: written under the scheduler's lock.
static SHARED: AtomicUsize = AtomicUsize::new(0);
static BOUND: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];

/// Whether there seems to be something that CPU number `cpu` could run. Asked without the scheduler's lock, which CPUs
/// that only pass the time would otherwise keep from those that have something to do.
pub(super) fn seem_ready_for(cpu: usize) -> bool {
    SHARED.load(Relaxed) > 0 || BOUND[cpu].load(Relaxed) > 0
}

/// Adds `change` to a number that the scheduler's lock protects.
fn adjust(count: &AtomicUsize, change: isize) {
    count.store(count.load(Relaxed).wrapping_add_signed(change), Relaxed);
}

/// One queue for all CPUs, and one for each; in each the order in which the threads became ready.
pub(super) struct RunQueues {
    shared: LinkedList<RunAdapter>,
    bound: [LinkedList<RunAdapter>; MAX_CPUS],
    /// Number of the next turn.
    turn: u64,
}

impl RunQueues {
    pub const fn new() -> Self {
        Self {
            shared: LinkedList::new(RunAdapter::NEW),
            bound: [const { LinkedList::new(RunAdapter::NEW) }; MAX_CPUS],
            turn: 0,
        }
    }

    pub fn push(&mut self, thread: Arc<Thread>) {
        thread.turn.store(self.turn, Relaxed);
        self.turn += 1;
        match thread.cpu() {
            Some(cpu) => {
                adjust(&BOUND[cpu], 1);
                self.bound[cpu].push_back(thread);
            }
            None => {
                adjust(&SHARED, 1);
                self.shared.push_back(thread);
            }
        }
    }

    /// Whether there is nothing that CPU number `cpu` could run.
    pub fn is_empty_for(&self, cpu: usize) -> bool {
        self.shared.is_empty() && self.bound[cpu].is_empty()
    }

    /// Takes the thread that has been ready longest, of those that CPU number `cpu` can run.
    pub fn pop_for(&mut self, cpu: usize) -> Option<Arc<Thread>> {
        let turn = |queue: &LinkedList<RunAdapter>| {
            queue.front().get().map_or(u64::MAX, |thread| thread.turn.load(Relaxed))
        };
        let (queue, count) = match &mut self.bound[cpu] {
            bound if turn(bound) < turn(&self.shared) => (bound, &BOUND[cpu]),
            _ => (&mut self.shared, &SHARED),
        };
        let thread = queue.pop_front()?;
        adjust(count, -1);
        Some(thread)
    }
}
