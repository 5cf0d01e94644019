//! What callers hand to an interface's thread, and how they get its result.

use alloc::{
    boxed::Box,
    collections::VecDeque,
    sync::{Arc, Weak},
};
use core::{
    fmt,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use drivers::{
    host::{Event, Host},
    lock::Lock,
};

use crate::stack::Net;

/// Most jobs that wait to be begun, and most that run at a time.
pub const MOST_JOBS: usize = 8;

/// Something to be done by an interface's thread, in steps.
pub trait Job: Send {
    /// Does what can be done now.
    fn step(&mut self, net: &mut Net<'_>) -> Step;

    /// Gives back what it holds, whether it is done or not.
    fn end(&mut self, net: &mut Net<'_>);
}

/// What a job says after a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// It is done, and nobody wants it any more.
    Done,
    /// It waits for a packet, or for this time.
    Wait {
        /// Until when.
        until_ns: u64,
    },
}

/// The interface takes no more jobs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// It has as many as it takes.
    Busy,
    /// It was shut down.
    ShutDown,
    /// No memory for it.
    OutOfMemory,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "the interface has as much to do as it takes",
            Self::ShutDown => "the interface was shut down",
            Self::OutOfMemory => "no memory for it",
        })
    }
}

impl core::error::Error for Refused {}

/// Why there is no result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoResult {
    /// It has not come in time.
    TimedOut,
    /// It never comes: the job has ended without one, or it was taken already.
    Gone,
}

impl fmt::Display for NoResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TimedOut => "no result in time",
            Self::Gone => "the interface has dropped the job",
        })
    }
}

impl core::error::Error for NoResult {}

/// A result that is still to come. Dropping it ends the job.
pub struct Pending<T> {
    slot: Arc<Slot<T>>,
}

struct Slot<T> {
    result: Lock<Option<T>>,
    arrived: Arc<dyn Event>,
    progress: AtomicU64,
    /// Nobody leaves a result any more.
    is_over: AtomicBool,
}

impl<T> Pending<T> {
    /// Waits for the result until `deadline_ns`.
    ///
    /// # Errors
    /// It has not come, or never will.
    pub fn wait(&self, deadline_ns: u64) -> Result<T, NoResult> {
        if !self.slot.is_over.load(Ordering::Acquire) {
            self.slot.arrived.wait(deadline_ns);
        }
        // Looked at first: what was left before the end is there.
        let is_over = self.slot.is_over.load(Ordering::Acquire);
        let result = self.slot.result.lock().take();
        result.ok_or(if is_over { NoResult::Gone } else { NoResult::TimedOut })
    }

    /// How far the job is, in its own measure: bytes.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.slot.progress.load(Ordering::Relaxed)
    }
}

/// Where a job leaves its result.
pub struct Promise<T> {
    slot: Weak<Slot<T>>,
}

/// A result to come, and where it is left.
pub fn promise<T>(host: &Arc<dyn Host>) -> (Promise<T>, Pending<T>) {
    let slot = Arc::new(Slot {
        result: Lock::new(host.clone(), None),
        arrived: host.event(),
        progress: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
    });
    (Promise { slot: Arc::downgrade(&slot) }, Pending { slot })
}

impl<T> Promise<T> {
    /// Leaves the result.
    pub fn keep(&self, result: T) {
        if let Some(slot) = self.slot.upgrade() {
            *slot.result.lock() = Some(result);
            slot.arrived.signal();
        }
    }

    /// Says how far the job is.
    pub fn report(&self, progress: u64) {
        if let Some(slot) = self.slot.upgrade() {
            slot.progress.store(progress, Ordering::Relaxed);
        }
    }

    /// Whether somebody still waits.
    pub fn is_wanted(&self) -> bool {
        self.slot.strong_count() > 0
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        // Who still waits finds out now.
        if let Some(slot) = self.slot.upgrade() {
            slot.is_over.store(true, Ordering::Release);
            slot.arrived.signal();
        }
    }
}

/// Jobs on their way to the thread. It never grows.
pub struct Inbox {
    /// `None` once it is closed.
    jobs: Lock<Option<VecDeque<Box<dyn Job>>>>,
}

impl Inbox {
    /// `None` without memory.
    pub fn new(host: &Arc<dyn Host>) -> Option<Self> {
        let mut jobs = VecDeque::new();
        jobs.try_reserve_exact(MOST_JOBS).ok()?;
        Some(Self { jobs: Lock::new(host.clone(), Some(jobs)) })
    }

    /// Puts a job in.
    pub fn put(&self, job: Box<dyn Job>) -> Result<(), Refused> {
        match &mut *self.jobs.lock() {
            None => Err(Refused::ShutDown),
            Some(jobs) if jobs.len() == MOST_JOBS => Err(Refused::Busy),
            Some(jobs) => {
                jobs.push_back(job);
                Ok(())
            }
        }
    }

    /// The job that was put in first.
    pub fn take(&self) -> Option<Box<dyn Job>> {
        self.jobs.lock().as_mut()?.pop_front()
    }

    /// Takes no more jobs, and drops those that nobody has taken.
    pub fn close(&self) {
        // Not under the lock: whoever waits for them is woken.
        let jobs = self.jobs.lock().take();
        drop(jobs);
    }
}
