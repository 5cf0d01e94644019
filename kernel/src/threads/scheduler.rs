//! Who runs next.
//!
//! Every thread is in one place, which owns it: on a CPU, in the run queue, among the sleepers (all that are parked,
//! also those without a deadline), or on its way to be dropped. One lock protects all of that.

use alloc::sync::Arc;
use core::{
    fmt, mem,
    sync::atomic::{AtomicU64, Ordering, Ordering::Relaxed},
};

use intrusive_collections::{LinkedList, RBTree};
use iommu::platform::MAX_CPUS;

use super::thread::{Body, JoinHandle, RunAdapter, SleepAdapter, State, Thread};
use crate::{
    arch::{self, Cpu, InterruptGuard, apic, clock, context},
    memory::stacks::Stack,
    sync::{IrqMutex, IrqMutexGuard, Rank},
    testing,
};

/// How long a thread runs while others are ready.
const SLICE_NS: u64 = 10 * clock::NS_PER_MS;

struct Scheduler {
    /// Ready threads, in the order in which they became so.
    ready: LinkedList<RunAdapter>,
    /// Parked threads by deadline.
    sleepers: RBTree<SleepAdapter>,
    /// The idle thread of each CPU that has something better to do.
    idle: [Option<Arc<Thread>>; MAX_CPUS],
    /// A thread that ended on a CPU, until that has left its stack.
    finished: [Option<Arc<Thread>>; MAX_CPUS],
}

static SCHEDULER: IrqMutex<Scheduler> = IrqMutex::new(
    Rank::Scheduler,
    Scheduler {
        ready: LinkedList::new(RunAdapter::NEW),
        sleepers: RBTree::new(SleepAdapter::NEW),
        idle: [const { None }; MAX_CPUS],
        finished: [const { None }; MAX_CPUS],
    },
);

/// When the test that runs has to be over.
static WATCHDOG_NS: AtomicU64 = AtomicU64::new(u64::MAX);

/// There was no memory or no stack for a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpawnError {
    /// Name of the thread that could not be started.
    pub name: &'static str,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no memory for thread {}", self.name)
    }
}

impl core::error::Error for SpawnError {}

/// Makes what runs on this CPU its idle thread.
pub fn init() {
    let idle = Arc::new(Thread::new("idle", None, None));
    Cpu::current().current_thread.store(Arc::into_raw(idle).cast_mut(), Relaxed);
}

/// What the idle thread does: lets others run, and otherwise sleeps until an interrupt.
pub fn idle() -> ! {
    loop {
        yield_now();
        // SAFETY: the idle thread holds no lock.
        unsafe { arch::enable_and_halt() };
    }
}

/// Starts a thread that runs `body` and ends with it.
///
/// # Errors
/// No memory for it.
pub fn spawn(name: &'static str, body: Body) -> Result<JoinHandle, SpawnError> {
    let stack = Stack::new().ok_or(SpawnError { name })?;
    // SAFETY: the stack is new.
    let start = unsafe { context::prepare(stack.top(), start_thread) };
    let thread = Thread::new(name, Some(stack), Some(body));
    thread.saved_stack.store(start, Relaxed);
    let thread = Arc::new(thread);
    let mut scheduler = SCHEDULER.lock();
    scheduler.ready.push_back(thread.clone());
    scheduler.arm_timer();
    Ok(JoinHandle(thread))
}

/// The first code of every thread.
extern "C" fn start_thread() -> ! {
    Cpu::current().set_interrupts_were_on(true);
    finish_switch();
    let thread = current();
    let body = thread.body.lock().take();
    if let Some(body) = body {
        body();
    }
    thread.finished.store(true, Ordering::Release);
    thread.joiners.wake_all();
    drop(thread);
    let scheduler = SCHEDULER.lock();
    running().set_state(State::Finished);
    switch(scheduler);
    unreachable!("a finished thread was resumed");
}

/// The thread that runs.
pub(super) fn current() -> Arc<Thread> {
    let _guard = InterruptGuard::new();
    let thread = Cpu::current().current_thread.load(Relaxed).cast_const();
    // SAFETY: the pointer comes from `Arc::into_raw` and the CPU owns that reference while the thread runs; the
    // reference made here is another one.
    unsafe {
        Arc::increment_strong_count(thread);
        Arc::from_raw(thread)
    }
}

/// Name of the thread that runs, also before there are threads.
pub fn current_name() -> &'static str {
    if Cpu::current().current_thread.load(Relaxed).is_null() { "boot" } else { running().name() }
}

/// The thread that runs, borrowed.
fn running() -> &'static Thread {
    // SAFETY: as in `current`; callers do not keep the reference beyond the end of the thread, as they are it.
    unsafe { &*Cpu::current().current_thread.load(Relaxed) }
}

/// Blocks until [`unpark`] or `deadline_ns`; may also return for no reason.
pub(super) fn park(deadline_ns: u64) {
    debug_assert!(!Cpu::current().in_interrupt(), "a handler must not block");
    let scheduler = SCHEDULER.lock();
    debug_assert!(Cpu::current().interrupts_were_on(), "blocking with interrupts off");
    let thread = running();
    debug_assert!(!thread.is_idle(), "the idle thread must not block");
    if thread.token.swap(false, Relaxed) {
        return;
    }
    thread.deadline_ns.store(deadline_ns, Relaxed);
    thread.set_state(State::Parked);
    switch(scheduler);
}

/// Makes `thread` ready, or its next [`park`] return at once. Callable in an interrupt.
pub(super) fn unpark(thread: Arc<Thread>) {
    let mut scheduler = SCHEDULER.lock();
    if thread.state() != State::Parked {
        thread.token.store(true, Relaxed);
        return;
    }
    // SAFETY: all parked threads are among the sleepers.
    let sleeper = unsafe { scheduler.sleepers.cursor_mut_from_ptr(Arc::as_ptr(&thread)) }.remove();
    if let Some(sleeper) = sleeper {
        scheduler.make_ready(sleeper);
        scheduler.arm_timer();
    }
    if Cpu::current().in_interrupt() {
        Cpu::current().request_reschedule();
    }
}

/// Blocks until `deadline_ns`.
pub fn sleep_until(deadline_ns: u64) {
    while clock::now_ns() < deadline_ns {
        park(deadline_ns);
    }
}

/// Lets other threads that are ready run first.
pub fn yield_now() {
    switch(SCHEDULER.lock());
}

/// Ends the slice of the running thread: called when an interrupt has been handled, with interrupts off.
pub fn preempt() {
    switch(SCHEDULER.lock());
}

/// The timer of this CPU fired.
pub fn timer_interrupt() {
    let cpu = Cpu::current();
    cpu.timer_armed_ns.store(u64::MAX, Relaxed);
    let now = clock::now_ns();
    if now >= WATCHDOG_NS.load(Relaxed) {
        testing::deadline_missed();
    }
    let mut scheduler = SCHEDULER.lock();
    scheduler.wake_sleepers(now);
    if !scheduler.ready.is_empty() {
        cpu.request_reschedule();
    }
    scheduler.arm_timer();
}

/// Ends the machine by [`testing::deadline_missed`] unless [`clear_watchdog`] is called before `deadline_ns`.
pub fn set_watchdog(deadline_ns: u64) {
    WATCHDOG_NS.store(deadline_ns, Relaxed);
    SCHEDULER.lock().arm_timer();
}

/// See [`set_watchdog`].
pub fn clear_watchdog() {
    WATCHDOG_NS.store(u64::MAX, Relaxed);
}

impl Scheduler {
    fn make_ready(&mut self, thread: Arc<Thread>) {
        thread.set_state(State::Ready);
        self.ready.push_back(thread);
    }

    /// Makes every sleeper ready whose deadline has come, earliest first.
    fn wake_sleepers(&mut self, now_ns: u64) {
        loop {
            let mut first = self.sleepers.front_mut();
            let is_due = first.get().is_some_and(|thread| thread.deadline_ns.load(Relaxed) <= now_ns);
            let Some(thread) = is_due.then(|| first.remove()).flatten() else { return };
            self.make_ready(thread);
        }
    }

    /// Sets the timer of this CPU if it would fire too late.
    fn arm_timer(&self) {
        let cpu = Cpu::current();
        let sleeper = self.sleepers.front().get().map_or(u64::MAX, |thread| thread.deadline_ns.load(Relaxed));
        let mut next = sleeper.min(WATCHDOG_NS.load(Relaxed));
        if !self.ready.is_empty() {
            next = next.min(clock::now_ns() + SLICE_NS);
        }
        if next < cpu.timer_armed_ns.load(Relaxed) {
            cpu.timer_armed_ns.store(next, Relaxed);
            apic::arm_timer(next);
        }
    }
}

/// Puts the running thread where its state says and gives the CPU to the next one. Returns when that thread runs again,
/// at once if it is the next one itself.
fn switch(mut scheduler: IrqMutexGuard<'_, Scheduler>) {
    let cpu = Cpu::current();
    let index = cpu.index();
    // SAFETY: the CPU gives up its reference, which came from `Arc::into_raw`; the slot is filled again below.
    let thread = unsafe { Arc::from_raw(cpu.current_thread.load(Relaxed).cast_const()) };
    let this = Arc::as_ptr(&thread);
    let save = thread.saved_stack.as_ptr();
    match thread.state() {
        State::Ready if thread.is_idle() => scheduler.idle[index] = Some(thread),
        State::Ready => scheduler.ready.push_back(thread),
        State::Parked => drop(scheduler.sleepers.insert(thread)),
        State::Finished => scheduler.finished[index] = Some(thread),
    }
    let next = scheduler.ready.pop_front().or_else(|| scheduler.idle[index].take());
    let next = next.expect("a CPU that runs a thread keeps its idle thread");
    let resume = next.saved_stack.load(Relaxed);
    let next = Arc::into_raw(next);
    cpu.current_thread.store(next.cast_mut(), Relaxed);
    scheduler.arm_timer();
    if next == this {
        return;
    }
    let interrupts_were_on = cpu.interrupts_were_on();
    mem::forget(scheduler);
    // SAFETY: the lock keeps both threads where they are, and `next` is not running: it was in the run queue or is
    // the idle thread of this CPU. Its stack was saved when it left its last CPU, or prepared by `spawn`.
    unsafe { context::switch(save, resume) };
    // Perhaps on another CPU.
    Cpu::current().set_interrupts_were_on(interrupts_were_on);
    finish_switch();
}

/// The second half of a switch, on the stack of the thread that runs now: releases the lock that the first half took.
fn finish_switch() {
    // SAFETY: the thread that ran before forgot its guard when it switched, on this CPU.
    let mut scheduler = unsafe { SCHEDULER.assume_locked() };
    let finished = scheduler.finished[Cpu::current().index()].take();
    drop(scheduler);
    // Its stack, at the latest, is freed here, out of the lock.
    drop(finished);
}
