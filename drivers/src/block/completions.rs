//! The way back from a device to whoever has submitted a request.

use alloc::{
    collections::{TryReserveError, VecDeque},
    sync::Arc,
};

use iommu::PageBuffer;

use super::BlockError;
use crate::{
    host::{Event, Host},
    lock::Lock,
};

/// How a request ended.
#[derive(Debug)]
pub struct Completion {
    /// The caller's name for it.
    pub tag: u64,
    /// Whether it was done.
    pub result: Result<(), BlockError>,
    /// The buffer, if the request had one. After an error of a read its contents mean nothing. It is missing when the
    /// device, or a remapping unit, may still reach it: then it stays pinned for ever.
    pub buffer: Option<PageBuffer>,
}

/// Where completions go until their owner takes them. One thread waits at a time.
///
/// # Examples
/// ```no_run
/// use std::sync::Arc;
///
/// use drivers::{
///     block::{BlockDevice, Completion, Completions, Operation, Request},
///     host::Host,
/// };
///
/// /// Makes the medium durable, and gives up after a second: the completion still comes, and finds nobody.
/// fn flush(host: &Arc<dyn Host>, disk: &dyn BlockDevice) -> Option<Completion> {
///     let completions = Completions::new(host, 1).ok()?;
///     disk.submit(Request { tag: 0, operation: Operation::Flush }, &completions).ok()?;
///     completions.wait(host.now_ns() + 1_000_000_000)
/// }
/// ```
pub struct Completions {
    host: Arc<dyn Host>,
    arrived: Arc<dyn Event>,
    queue: Lock<Queue>,
}

struct Queue {
    done: VecDeque<Completion>,
    /// Completions that are still to come; each has its place in `done`.
    promised: usize,
    room: usize,
}

impl Completions {
    /// Room for the completions of `room` requests in flight. Delivering one never allocates.
    ///
    /// # Errors
    /// No memory for them.
    pub fn new(host: &Arc<dyn Host>, room: usize) -> Result<Arc<Self>, TryReserveError> {
        let mut done = VecDeque::new();
        done.try_reserve_exact(room)?;
        let queue = Lock::new(host.clone(), Queue { done, promised: 0, room });
        Ok(Arc::new(Self { host: host.clone(), arrived: host.event(), queue }))
    }

    /// The oldest completion that has arrived.
    pub fn take(&self) -> Option<Completion> {
        self.queue.lock().done.pop_front()
    }

    /// The oldest completion, after waiting for one until `deadline_ns` if need be.
    pub fn wait(&self, deadline_ns: u64) -> Option<Completion> {
        loop {
            if let Some(completion) = self.take() {
                return Some(completion);
            }
            // In every round: signals for what others have taken gain no time.
            if self.host.now_ns() >= deadline_ns {
                return None;
            }
            self.arrived.wait(deadline_ns);
        }
    }

    /// A place for one completion, or `None` if there is no room.
    pub(crate) fn promise(self: &Arc<Self>, tag: u64) -> Option<Promise> {
        let mut queue = self.queue.lock();
        if queue.done.len() + queue.promised >= queue.room {
            return None;
        }
        queue.promised += 1;
        drop(queue);
        Some(Promise { to: Some(self.clone()), tag })
    }

    /// Returns whether others are there that the owner has not taken.
    fn deliver(&self, completion: Completion) -> bool {
        let mut queue = self.queue.lock();
        let was_empty = queue.done.is_empty();
        queue.promised -= 1;
        queue.done.push_back(completion);
        drop(queue);
        // Who finds the queue not empty has a signal still to come, or is taking completions out.
        if was_empty {
            self.arrived.signal();
        }
        !was_empty
    }
}

/// A completion that is still to come. Dropping it completes the request with [`BlockError::Gone`].
pub(crate) struct Promise {
    to: Option<Arc<Completions>>,
    tag: u64,
}

impl Promise {
    /// Completes the request. Returns whether its owner has not even taken others that were completed before.
    pub fn keep(mut self, result: Result<(), BlockError>, buffer: Option<PageBuffer>) -> bool {
        self.to.take().is_some_and(|to| to.deliver(Completion { tag: self.tag, result, buffer }))
    }

    /// Takes the promise back: the request was never submitted, and the caller is told so.
    pub fn withdraw(mut self) {
        if let Some(to) = self.to.take() {
            to.queue.lock().promised -= 1;
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some(to) = self.to.take() {
            to.deliver(Completion { tag: self.tag, result: Err(BlockError::Gone), buffer: None });
        }
    }
}
