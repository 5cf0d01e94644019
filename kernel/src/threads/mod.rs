//! Kernel threads, preempted by the timer; blocking with deadlines; waking from anywhere.
//!
//! Two layers. [`scheduler`] knows threads that run, are ready, or are parked until a deadline; its one lock is held
//! across a switch and released by the thread that comes next. [`wait`] builds queues and events on parking: a
//! thread notes itself as a waiter, looks once more whether it has to wait, and parks; who changes something unparks
//! it. A wake that comes before the park makes that return at once, so that none is lost.

mod run_queues;
mod scheduler;
mod thread;
mod wait;

pub use scheduler::{
    SpawnError, arm_timer_at, clear_watchdog, current_name, idle, init, name_on, preempt, running_on,
    set_watchdog, sleep_until, spawn, spawn_on, timer_interrupt, yield_now,
};
pub use thread::{JoinHandle, Thread};
pub use wait::{Event, WaitQueue};
