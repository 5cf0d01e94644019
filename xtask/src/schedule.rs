//! Runs tasks a few at a time, as far as the host's memory goes, and hands out their results in order.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError, mpsc};
use std::thread;

/// What may run at once.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    pub jobs: usize,
    pub memory_mib: u64,
}

struct State {
    next: usize,
    running: usize,
    used_mib: u64,
}

/// A task that runs, until this is dropped: who waits for its memory gets it even if it panics.
struct Running<'a> {
    state: &'a Mutex<State>,
    changed: &'a Condvar,
    mib: u64,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running -= 1;
        state.used_mib -= self.mib;
        self.changed.notify_all();
    }
}

/// Runs `run(i)` for each task, which needs `tasks[i]` MiB, and calls `show(i, result)` in the order of the tasks.
///
/// A task that needs more than there is runs alone.
pub fn in_order<T: Send>(
    tasks: &[u64],
    capacity: Capacity,
    run: impl Fn(usize) -> T + Sync,
    mut show: impl FnMut(usize, T),
) {
    let state = Mutex::new(State { next: 0, running: 0, used_mib: 0 });
    let changed = Condvar::new();
    let (sender, results) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..capacity.jobs.max(1) {
            let (sender, state, changed, run) = (sender.clone(), &state, &changed, &run);
            scope.spawn(move || {
                while let Some(task) = begin(state, changed, tasks, capacity.memory_mib) {
                    let _running = Running { state, changed, mib: tasks[task] };
                    // The receiver outlives this scope: sending cannot fail.
                    let _ = sender.send((task, run(task)));
                }
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        let mut due = 0;
        for (task, result) in results {
            early.insert(task, result);
            while let Some(result) = early.remove(&due) {
                show(due, result);
                due += 1;
            }
        }
    });
}

/// Waits until the next task fits, and claims it; `None` when all are taken.
fn begin(state: &Mutex<State>, changed: &Condvar, tasks: &[u64], memory_mib: u64) -> Option<usize> {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let task = state.next;
        let needed = *tasks.get(task)?;
        if state.running == 0 || state.used_mib + needed <= memory_mib {
            state.next += 1;
            state.running += 1;
            state.used_mib += needed;
            return Some(task);
        }
        state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

/// A figure of /proc/meminfo in MiB; 0 when it is not there.
pub fn memory_mib(names: &[&str]) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    names.iter().map(|name| meminfo_mib(&text, name)).sum()
}

fn meminfo_mib(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = value.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

#[cfg(test)]
mod tests {
    use std::panic::{self, AssertUnwindSafe};
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn results_come_in_order_whatever_takes_longest() {
        let mut seen = Vec::new();
        let slow_first = |task: usize| {
            thread::sleep(Duration::from_millis(if task == 0 { 150 } else { 5 }));
            task * 10
        };
        let capacity = Capacity { jobs: 2, memory_mib: 100 };
        in_order(&[1; 6], capacity, slow_first, |task, result| seen.push((task, result)));
        assert_eq!(seen, [(0, 0), (1, 10), (2, 20), (3, 30), (4, 40), (5, 50)]);
    }

    #[test]
    fn neither_jobs_nor_memory_are_exceeded() {
        let (jobs, memory) = (AtomicUsize::new(0), AtomicU64::new(0));
        let tasks = [10, 60, 60, 10, 10, 500, 10, 10];
        let busy = |task: usize| {
            let running = jobs.fetch_add(1, Ordering::SeqCst) + 1;
            let used = memory.fetch_add(tasks[task], Ordering::SeqCst) + tasks[task];
            thread::sleep(Duration::from_millis(20));
            memory.fetch_sub(tasks[task], Ordering::SeqCst);
            jobs.fetch_sub(1, Ordering::SeqCst);
            assert!(running <= 3);
            assert!(used <= 100 || running == 1, "{used} MiB in {running} jobs");
        };
        let mut finished = 0;
        in_order(&tasks, Capacity { jobs: 3, memory_mib: 100 }, busy, |_, ()| finished += 1);
        assert_eq!(finished, tasks.len());
    }

    #[test]
    fn a_task_that_panics_lets_the_others_go_on() {
        let (sender, over) = mpsc::channel();
        thread::spawn(move || {
            let ran = AtomicUsize::new(0);
            let first_panics = |task: usize| {
                // The other worker waits for the memory by then.
                thread::sleep(Duration::from_millis(100));
                assert!(task > 0, "as the test wants it");
                ran.fetch_add(1, Ordering::SeqCst);
            };
            let capacity = Capacity { jobs: 2, memory_mib: 100 };
            let in_order = || in_order(&[60; 3], capacity, first_panics, |_, ()| {});
            let result = panic::catch_unwind(AssertUnwindSafe(in_order));
            let _ = sender.send((result.is_err(), ran.into_inner()));
        });
        assert_eq!(over.recv_timeout(Duration::from_secs(20)), Ok((true, 2)));
    }

    #[test]
    fn memory_figures_are_read() {
        let text = "MemTotal:       16307164 kB\nMemAvailable:   12000000 kB\nSwapTotal:       2097148 kB\n";
        assert_eq!(meminfo_mib(text, "MemTotal"), 15924);
        assert_eq!(meminfo_mib(text, "SwapTotal"), 2047);
        assert_eq!(meminfo_mib(text, "Mem"), 0);
        assert!(memory_mib(&["MemTotal"]) > 0);
    }
}
