//! Who runs next, and where.
//!
//! Every thread is in one place, which owns it: on a CPU, in a run queue, among the sleepers (all that are parked,
//! also those without a deadline), or on its way to be dropped. One lock protects all of that. There is a run queue
//! that all CPUs take from, and one for each CPU with the threads that are bound to it; of the two that a CPU takes
//! from, the thread goes first that has been ready longest.
//!
//! A CPU notes that it is idle under the lock, having found nothing to do; who makes a thread ready looks for one that
//! is, under the same lock, and interrupts it. So a CPU never sleeps beside a thread that it could run.

use alloc::sync::Arc;
use core::{
    fmt, mem,
    sync::atomic::{AtomicU64, Ordering, Ordering::Relaxed},
};

use intrusive_collections::RBTree;
use iommu::platform::MAX_CPUS;

use super::{
    run_queues::{self, RunQueues},
    thread::{Body, JoinHandle, SleepAdapter, State, Thread},
};
use crate::{
    arch::{self, Cpu, InterruptGuard, apic, clock, context},
    memory::stacks::Stack,
    smp,
    sync::{IrqMutex, IrqMutexGuard, Rank},
    testing,
};

/// How long a thread runs while others are ready.
const SLICE_NS: u64 = 10 * clock::NS_PER_MS;

struct Scheduler {
    ready: RunQueues,
    /// Parked threads by deadline.
    sleepers: RBTree<SleepAdapter>,
    /// The CPU whose timer is set for the first sleeper, and for when.
    sleep_timer: Option<(usize, u64)>,
    /// CPUs that run their idle threads and were not told of anything else to do, one bit each.
    idle_cpus: u64,
    /// The idle thread of each CPU that has something better to do.
    idle: [Option<Arc<Thread>>; MAX_CPUS],
    /// A thread that ended on a CPU, until that has left its stack.
    finished: [Option<Arc<Thread>>; MAX_CPUS],
}

static SCHEDULER: IrqMutex<Scheduler> = IrqMutex::new(
    Rank::Scheduler,
    Scheduler {
        ready: RunQueues::new(),
        sleepers: RBTree::new(SleepAdapter::NEW),
        sleep_timer: None,
        idle_cpus: 0,
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
    let idle = Arc::new(Thread::new("idle", None, None, None));
    Cpu::current().current_thread.store(Arc::into_raw(idle).cast_mut(), Relaxed);
}

/// What the idle thread does: lets others run, and otherwise sleeps until an interrupt.
pub fn idle() -> ! {
    loop {
        switch(SCHEDULER.lock());
        arch::disable();
        Cpu::current().begin_idle();
        // SAFETY: the idle thread holds no lock.
        unsafe { arch::enable_and_halt() };
    }
}

/// Starts a thread that runs `body` and ends with it.
///
/// # Errors
/// No memory for it.
pub fn spawn(name: &'static str, body: Body) -> Result<JoinHandle, SpawnError> {
    spawn_bound(name, None, body)
}

/// Starts a thread that runs on CPU number `cpu` only, which is online.
///
/// # Errors
/// No memory for it.
pub fn spawn_on(cpu: usize, name: &'static str, body: Body) -> Result<JoinHandle, SpawnError> {
    spawn_bound(name, Some(cpu), body)
}

fn spawn_bound(name: &'static str, cpu: Option<usize>, body: Body) -> Result<JoinHandle, SpawnError> {
    let stack = Stack::new().ok_or(SpawnError { name })?;
    // SAFETY: the stack is new.
    let start = unsafe { context::prepare(stack.top(), start_thread) };
    let thread = Thread::new(name, Some(stack), cpu, Some(body));
    thread.saved_stack.store(start, Relaxed);
    let thread = Arc::new(thread);
    let mut scheduler = SCHEDULER.lock();
    scheduler.make_ready(thread.clone());
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
    let _guard = InterruptGuard::new();
    name_on(Cpu::current())
}

/// Name of the thread that runs on `cpu` at the moment.
pub fn running_on(cpu: &Cpu) -> &'static str {
    // No CPU switches meanwhile.
    let _scheduler = SCHEDULER.lock();
    name_on(cpu)
}

/// Name of the thread that runs on `cpu`: on another CPU than this one only while that does not switch.
pub fn name_on(cpu: &Cpu) -> &'static str {
    let thread = cpu.current_thread.load(Relaxed);
    // SAFETY: the CPU owns a reference to the thread that runs on it.
    unsafe { thread.as_ref() }.map_or("boot", Thread::name)
}

/// The thread that runs, borrowed. Called with interrupts off, or the thread might move away in between.
fn running() -> &'static Thread {
    // SAFETY: as in `current`; callers do not keep the reference beyond the end of the thread, as they are it.
    unsafe { &*Cpu::current().current_thread.load(Relaxed) }
}

/// Blocks until [`unpark`] or `deadline_ns`; may also return for no reason.
pub(super) fn park(deadline_ns: u64) {
    debug_assert!(!Cpu::in_interrupt(), "a handler must not block");
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
        if !scheduler.make_ready(sleeper) && Cpu::in_interrupt() {
            Cpu::current().request_reschedule();
        }
        scheduler.arm_timer();
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
    // If the thread moves on in between, it looks for another CPU, and yields to nobody this time.
    if run_queues::seem_ready_for(Cpu::current().index()) {
        switch(SCHEDULER.lock());
    } else {
        core::hint::spin_loop();
    }
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
    if scheduler.sleep_timer.is_some_and(|(owner, _)| owner == cpu.index()) {
        scheduler.sleep_timer = None;
    }
    scheduler.wake_sleepers(now);
    if !scheduler.ready.is_empty_for(cpu.index()) {
        cpu.request_reschedule();
    }
    scheduler.arm_timer();
}

/// Ends the machine by [`testing::deadline_missed`] unless [`clear_watchdog`] is called before `deadline_ns`. All CPUs
/// watch, as one may hang with interrupts off.
pub fn set_watchdog(deadline_ns: u64) {
    WATCHDOG_NS.store(deadline_ns, Relaxed);
    let scheduler = SCHEDULER.lock();
    scheduler.arm_watchdog();
    let this = Cpu::current().index();
    smp::online().filter(|cpu| cpu.index() != this).for_each(smp::reschedule);
}

/// See [`set_watchdog`].
pub fn clear_watchdog() {
    WATCHDOG_NS.store(u64::MAX, Relaxed);
}

impl Scheduler {
    /// Puts `thread` into its run queue. Returns whether some CPU was told.
    fn make_ready(&mut self, thread: Arc<Thread>) -> bool {
        thread.set_state(State::Ready);
        let bound_to = thread.cpu();
        self.ready.push(thread);
        let this = Cpu::current().index();
        let target = match bound_to {
            // Busy or idle: only that one can run it.
            Some(cpu) if cpu != this => Some(cpu),
            Some(_) => None,
            // This one first, which need not be told by an interrupt.
            None if self.idle_cpus & 1 << this != 0 => None,
            None => (self.idle_cpus != 0).then(|| self.idle_cpus.trailing_zeros() as usize),
        };
        self.idle_cpus &= !(1 << target.unwrap_or(this));
        target.and_then(Cpu::get).map(smp::reschedule).is_some()
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

    /// Sets the timer of this CPU if it would fire too late: for the end of the running thread's slice, for the
    /// watchdog, for the first sleeper if no other CPU's timer is set for that, and to look at the clock if for nothing
    /// else.
    fn arm_timer(&mut self) {
        let this = Cpu::current().index();
        let first = self.sleepers.front().get().map(|thread| thread.deadline_ns.load(Relaxed));
        if let Some(first) = first.filter(|&first| first != u64::MAX)
            && self.sleep_timer.is_none_or(|(_, armed)| first < armed)
        {
            self.sleep_timer = Some((this, first));
            arm_timer_at(first);
        }
        if !self.ready.is_empty_for(this) {
            arm_timer_at(clock::now_ns() + SLICE_NS);
        }
        self.arm_watchdog();
        if Cpu::current().timer_armed_ns.load(Relaxed) == u64::MAX {
            arm_timer_at(clock::now_ns() + clock::PULSE_NS);
        }
    }

    fn arm_watchdog(&self) {
        arm_timer_at(WATCHDOG_NS.load(Relaxed));
    }
}

/// Makes the timer of this CPU fire at `deadline_ns`, if it would not do so before. Called with interrupts off.
pub fn arm_timer_at(deadline_ns: u64) {
    let cpu = Cpu::current();
    if deadline_ns < cpu.timer_armed_ns.load(Relaxed) {
        cpu.timer_armed_ns.store(deadline_ns, Relaxed);
        apic::arm_timer(deadline_ns);
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
        State::Ready => scheduler.ready.push(thread),
        State::Parked => drop(scheduler.sleepers.insert(thread)),
        State::Finished => scheduler.finished[index] = Some(thread),
    }
    let ready = scheduler.ready.pop_for(index);
    match ready {
        Some(_) => scheduler.idle_cpus &= !(1 << index),
        None => scheduler.idle_cpus |= 1 << index,
    }
    let next = ready.or_else(|| scheduler.idle[index].take());
    let next = next.expect("a CPU that runs a thread keeps its idle thread");
    let resume = next.saved_stack.load(Relaxed);
    let next = Arc::into_raw(next);
    cpu.current_thread.store(next.cast_mut(), Relaxed);
    scheduler.arm_timer();
    if next == this {
        return;
    }
    cpu.switches.store(cpu.switches.load(Relaxed) + 1, Relaxed);
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
