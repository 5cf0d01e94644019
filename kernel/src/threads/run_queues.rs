//! Threads that are ready to run.

use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use intrusive_collections::LinkedList;
use iommu::platform::MAX_CPUS;

use super::thread::{RunAdapter, Thread};

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
            Some(cpu) => self.bound[cpu].push_back(thread),
            None => self.shared.push_back(thread),
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
        let bound = &mut self.bound[cpu];
        if turn(bound) < turn(&self.shared) { bound.pop_front() } else { self.shared.pop_front() }
    }
}
