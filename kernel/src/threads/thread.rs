//! One thread.

use alloc::{boxed::Box, sync::Arc};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};

use intrusive_collections::{KeyAdapter, LinkedListAtomicLink, RBTreeAtomicLink, intrusive_adapter};

use super::WaitQueue;
use crate::{
    memory::stacks::Stack,
    sync::{IrqMutex, Rank},
};

pub(super) type Body = Box<dyn FnOnce() + Send>;

/// What a thread is doing. Changes under the scheduler's lock only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum State {
    /// In a run queue, or running.
    Ready,
    /// Parked: in no run queue until it is unparked or its deadline passes.
    Parked,
    /// Its body has returned.
    Finished,
}

/// A kernel thread. The scheduler's lock protects everything that is not said to be otherwise.
pub struct Thread {
    name: &'static str,
    /// The idle threads run on the stack that their CPU started on.
    stack: Option<Stack>,
    /// The only CPU that it may run on.
    cpu: Option<usize>,
    /// Taken by the thread itself when it starts.
    pub(super) body: IrqMutex<Option<Body>>,
    /// Stack pointer while it does not run.
    pub(super) saved_stack: AtomicUsize,
    state: AtomicU8,
    /// Its place in the order in which threads became ready.
    pub(super) turn: AtomicU64,
    /// It was unparked while it was not parked: the next park returns at once.
    pub(super) token: AtomicBool,
    /// When to wake it although nobody unparked it. Key of the sleepers' tree: changes only while not in it.
    pub(super) deadline_ns: AtomicU64,
    /// Its body has returned; says so to [`JoinHandle::join`] without a lock.
    pub(super) finished: AtomicBool,
    pub(super) joiners: WaitQueue,
    pub(super) run_link: LinkedListAtomicLink,
    pub(super) sleep_link: RBTreeAtomicLink,
    /// Protected by the lock of the wait queue that the thread is in; it waits in one at a time.
    pub(super) wait_link: LinkedListAtomicLink,
}

intrusive_adapter!(pub(super) RunAdapter = Arc<Thread>: Thread { run_link => LinkedListAtomicLink });
intrusive_adapter!(pub(super) SleepAdapter = Arc<Thread>: Thread { sleep_link => RBTreeAtomicLink });
intrusive_adapter!(pub(super) WaitAdapter = Arc<Thread>: Thread { wait_link => LinkedListAtomicLink });

impl KeyAdapter<'_> for SleepAdapter {
    type Key = u64;

    fn get_key(&self, thread: &Thread) -> u64 {
        thread.deadline_ns.load(Relaxed)
    }
}

impl Thread {
    pub(super) fn new(
        name: &'static str,
        stack: Option<Stack>,
        cpu: Option<usize>,
        body: Option<Body>,
    ) -> Self {
        Self {
            name,
            stack,
            cpu,
            body: IrqMutex::new(Rank::ThreadBody, body),
            saved_stack: AtomicUsize::new(0),
            state: AtomicU8::new(State::Ready as u8),
            turn: AtomicU64::new(0),
            token: AtomicBool::new(false),
            deadline_ns: AtomicU64::new(u64::MAX),
            finished: AtomicBool::new(false),
            joiners: WaitQueue::new(),
            run_link: LinkedListAtomicLink::new(),
            sleep_link: RBTreeAtomicLink::new(),
            wait_link: LinkedListAtomicLink::new(),
        }
    }

    /// What the thread is called.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The only CPU that it may run on, if it is bound to one.
    pub(super) fn cpu(&self) -> Option<usize> {
        self.cpu
    }

    /// Whether this is the thread of a CPU that has nothing to do.
    pub(super) fn is_idle(&self) -> bool {
        self.stack.is_none()
    }

    pub(super) fn state(&self) -> State {
        match self.state.load(Relaxed) {
            0 => State::Ready,
            1 => State::Parked,
            _ => State::Finished,
        }
    }

    pub(super) fn set_state(&self, state: State) {
        self.state.store(state as u8, Relaxed);
    }
}

/// The right to wait for the end of a thread. Dropping it detaches the thread.
#[derive(Clone)]
pub struct JoinHandle(pub(super) Arc<Thread>);

impl JoinHandle {
    /// Waits until the thread's body has returned. False if `deadline_ns` passed first.
    pub fn join(&self, deadline_ns: u64) -> bool {
        self.0.joiners.wait_until(deadline_ns, || self.is_finished())
    }

    /// Whether the thread's body has returned.
    pub fn is_finished(&self) -> bool {
        self.0.finished.load(core::sync::atomic::Ordering::Acquire)
    }
}
