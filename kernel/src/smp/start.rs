//! Starting the other CPUs, one at a time.
//!
//! ```text
//! the CPU that starts another          the other
//! Starting: INIT, STARTUP, STARTUP ->  trampoline, own stack, descriptors, APIC
//!                                  <-  Arrived: answers with its clock, serves flushes
//! in the set of CPUs, then Online  ->  forgets translations, takes threads
//! ```
//!
//! One that does not arrive in time, or whose clock shows another time, gets another INIT, which leaves it waiting for
//! good, and is left out.

use core::{
    fmt,
    sync::atomic::{
        AtomicBool, AtomicU32, AtomicU64, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release, SeqCst},
    },
};

use iommu::platform::MAX_CPUS;
use mm::{PAGE_BYTES, PhysAddr, PhysRange};

use super::{ONLINE, count, serve_flush, shootdown::flush_this_cpu};
use crate::{
    arch::{
        Cpu,
        apic::{self, Ipi},
        clock::{self, NS_PER_MS, NS_PER_S},
        gdt::{self, InterruptStack},
        halt_for_ever, idt, memory_types, trampoline, user,
    },
    memory::{self, Alias, stacks::Stack},
    threads,
};

/// Most time from the first STARTUP to the CPU's arrival: it takes microseconds on hardware, but a host may let an
/// emulated one wait.
const ARRIVAL_NS: u64 = 10 * NS_PER_S;
/// For each answer of a CPU that has arrived.
const ANSWER_NS: u64 = 10 * NS_PER_S;
/// What a CPU needs to get over an INIT.
const INIT_NS: u64 = 10 * NS_PER_MS;
/// After this a CPU that waits for a STARTUP and missed the first gets another.
const REPEAT_NS: u64 = NS_PER_MS;
/// So many CPUs may fail to start before the rest is not tried.
pub const MAX_LEFT_OUT: usize = 4;
/// How often the clocks are compared.
const CLOCK_ROUNDS: u32 = 8;

/// Nothing is being started.
const IDLE: u32 = 0;
/// The CPU was asked to start.
const STARTING: u32 = 1;
/// It runs this kernel's code, and waits.
const ARRIVED: u32 = 2;
/// It runs, but cannot take interrupts.
const FAILED: u32 = 3;
/// It may take threads.
const ONLINE_NOW: u32 = 4;
/// It came too late, or is not wanted.
const REFUSED: u32 = 5;

/// What a CPU that starts and the one that starts it tell each other.
struct Mailbox {
    step: AtomicU32,
    /// The number that the CPU gets.
    index: AtomicUsize,
    stacks: [AtomicU64; InterruptStack::ALL.len()],
    /// Raised to ask for the time; the CPU sets `answers` to it after `tsc`.
    questions: AtomicU32,
    answers: AtomicU32,
    tsc: AtomicU64,
}

static MAILBOX: Mailbox = Mailbox {
    step: AtomicU32::new(IDLE),
    index: AtomicUsize::new(0),
    stacks: [const { AtomicU64::new(0) }; InterruptStack::ALL.len()],
    questions: AtomicU32::new(0),
    answers: AtomicU32::new(0),
    tsc: AtomicU64::new(0),
};

/// Why a CPU was left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartError {
    /// There are [`MAX_CPUS`] already.
    TooMany,
    /// The xAPIC of this CPU cannot address it.
    Unreachable,
    /// No page below 1 MiB, or it could not be mapped, or the root table is out of reach.
    NoStartPage,
    /// No memory for its stacks.
    NoStacks,
    /// It did not come in time.
    NoAnswer,
    /// It has no local APIC.
    NoApic,
    /// It was asked for the time between two readings of ours, and its own was not between them.
    OtherTime { before: u64, theirs: u64, after: u64 },
    /// Another CPU is being started.
    Busy,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany => write!(f, "{MAX_CPUS} CPUs are the most that there can be"),
            Self::Unreachable => f.write_str("its APIC id is beyond what an xAPIC can address"),
            Self::NoStartPage => f.write_str("no usable page below 1 MiB to start it at"),
            Self::NoStacks => f.write_str("no memory for its stacks"),
            Self::NoAnswer => f.write_str("it does not answer"),
            Self::NoApic => f.write_str("it has no local APIC"),
            Self::OtherTime { before, theirs, after } => {
                write!(f, "its clock shows {theirs} between {before} and {after} of this CPU's")
            }
            Self::Busy => f.write_str("another CPU is being started"),
        }
    }
}

impl core::error::Error for StartError {}

/// How many CPUs [`start_others`] was told of.
static LISTED: AtomicUsize = AtomicUsize::new(0);

/// How many CPUs firmware lists as enabled.
pub fn listed() -> usize {
    LISTED.load(Relaxed)
}

/// Starts every CPU in `apic_ids` but this one. Those that do not come are reported and left out.
pub fn start_others(apic_ids: &[u32]) {
    LISTED.store(apic_ids.len(), Relaxed);
    start_all(apic_ids, ARRIVAL_NS);
    log::info!("{} of {} cpus run", count(), apic_ids.len().max(1));
}

/// Starts every CPU in `apic_ids` but this one, each of which has `arrival_ns` to come. Returns how many did not: after
/// [`MAX_LEFT_OUT`] nobody else is asked, so that a table of CPUs that are not there costs little time and memory.
pub fn start_all(apic_ids: &[u32], arrival_ns: u64) -> usize {
    let this = Cpu::first().apic_id();
    let mut left_out = 0;
    for &id in apic_ids.iter().filter(|&&id| id != this) {
        if left_out == MAX_LEFT_OUT {
            log::error!("{left_out} cpus are left out: the others that firmware lists are not asked");
            break;
        }
        if let Err(error) = start_one(id, arrival_ns) {
            log::error!("the cpu with APIC id {id} is left out: {error}");
            left_out += 1;
        }
    }
    left_out
}

/// Starts the CPU with `apic_id`, which does not run yet, and has `arrival_ns` to come.
///
/// # Errors
/// See [`StartError`]. The CPU then does nothing.
pub fn start_one(apic_id: u32, arrival_ns: u64) -> Result<(), StartError> {
    static BUSY: AtomicBool = AtomicBool::new(false);
    if BUSY.swap(true, Acquire) {
        return Err(StartError::Busy);
    }
    let result = launch(apic_id, arrival_ns);
    BUSY.store(false, Release);
    result
}

fn launch(apic_id: u32, arrival_ns: u64) -> Result<(), StartError> {
    if !apic::can_address(apic_id) {
        return Err(StartError::Unreachable);
    }
    let index = count();
    if index >= MAX_CPUS {
        return Err(StartError::TooMany);
    }
    let code = place_code().ok_or(StartError::NoStartPage)?;
    prepare_mailbox(index).ok_or(StartError::NoStacks)?;
    let result = call(apic_id, &code, arrival_ns).and_then(|()| compare_clocks());
    if let Err(error) = result {
        // From now on it only halts, should it still come; and it does not come after another INIT.
        MAILBOX.step.store(REFUSED, SeqCst);
        apic::send(apic_id, Ipi::Init);
        return Err(error);
    }
    // It serves flushes by now, and forgets what it may have read before this when it sees the step.
    ONLINE.fetch_or(1 << index, SeqCst);
    MAILBOX.step.store(ONLINE_NOW, SeqCst);
    Ok(())
}

/// The page that CPUs start at.
struct StartCode {
    page: PhysAddr,
    /// Executable where the code runs while paging comes on; unmapped again when this is dropped.
    _alias: Alias,
}

/// Copies the trampoline to its page.
fn place_code() -> Option<StartCode> {
    let page = memory::start_page()?;
    let root = u32::try_from(memory::root()?.as_u64()).ok()?;
    let range = PhysRange::new(page, PAGE_BYTES);
    let code = trampoline::code();
    // SAFETY: the page is kept for this, and starting is exclusive.
    let writable = unsafe { Alias::writable(range) }?;
    // SAFETY: the code is smaller than the page (its labels are 16-bit offsets), and holds the root at that offset.
    unsafe {
        writable.as_ptr().copy_from_nonoverlapping(code.as_ptr(), code.len());
        writable.as_ptr().add(trampoline::root_offset()).cast::<u32>().write_unaligned(root);
    }
    drop(writable);
    // SAFETY: code, written above; nothing else is in the low half.
    let alias = unsafe { Alias::executable_in_place(range) }?;
    Some(StartCode { page, _alias: alias })
}

/// Number and stacks for the CPU that starts next. Stacks of one that never came are not used again: it may still come.
fn prepare_mailbox(index: usize) -> Option<()> {
    for stack in &MAILBOX.stacks {
        stack.store(Stack::leak_new()?, Relaxed);
    }
    trampoline::set_stack(Stack::leak_new()?);
    MAILBOX.index.store(index, Relaxed);
    MAILBOX.questions.store(0, Relaxed);
    MAILBOX.answers.store(0, Relaxed);
    MAILBOX.step.store(STARTING, SeqCst);
    Some(())
}

/// Sends what makes a CPU start, and waits until it is there.
fn call(apic_id: u32, code: &StartCode, arrival_ns: u64) -> Result<(), StartError> {
    let page = u8::try_from(code.page.as_u64() / PAGE_BYTES).map_err(|_| StartError::NoStartPage)?;
    let answered = || MAILBOX.step.load(Acquire) != STARTING;
    apic::send(apic_id, Ipi::Init);
    threads::sleep_until(clock::now_ns() + INIT_NS);
    apic::send(apic_id, Ipi::Startup(page));
    if !wait(REPEAT_NS, answered) {
        // One that started meanwhile is not waiting for it, and ignores it.
        apic::send(apic_id, Ipi::Startup(page));
    }
    wait(arrival_ns, answered);
    match MAILBOX.step.load(Acquire) {
        ARRIVED => Ok(()),
        FAILED => Err(StartError::NoApic),
        _ => Err(StartError::NoAnswer),
    }
}

/// All of the kernel reads the time on whatever CPU it happens to run on.
fn compare_clocks() -> Result<(), StartError> {
    for round in 1..=CLOCK_ROUNDS {
        let before = clock::read_tsc();
        MAILBOX.questions.store(round, Release);
        if !wait(ANSWER_NS, || MAILBOX.answers.load(Acquire) == round) {
            return Err(StartError::NoAnswer);
        }
        let after = clock::read_tsc();
        let theirs = MAILBOX.tsc.load(Relaxed);
        if !(before..=after).contains(&theirs) {
            return Err(StartError::OtherTime { before, theirs, after });
        }
    }
    Ok(())
}

/// Waits until `is_met` holds; false if that takes longer than `ns`.
fn wait(ns: u64, is_met: impl Fn() -> bool) -> bool {
    let deadline_ns = clock::now_ns() + ns;
    while !is_met() {
        if clock::now_ns() >= deadline_ns {
            return is_met();
        }
        core::hint::spin_loop();
    }
    true
}

/// Where the trampoline leads, on the new CPU's own stack with interrupts off.
pub extern "C" fn started() -> ! {
    Cpu::install(MAILBOX.index.load(Relaxed));
    let stacks = MAILBOX.stacks.each_ref().map(|stack| stack.load(Relaxed));
    // SAFETY: this CPU does so once, with stacks that are its own.
    unsafe { gdt::load(stacks) };
    idt::load();
    user::init();
    memory_types::init();
    let arrived = if apic::init().is_ok() { ARRIVED } else { FAILED };
    // Too late, if that fails.
    if MAILBOX.step.compare_exchange(STARTING, arrived, SeqCst, SeqCst).is_err() || arrived == FAILED {
        halt_for_ever();
    }
    threads::init();
    while answer() {
        serve_flush();
        core::hint::spin_loop();
    }
    flush_this_cpu();
    threads::idle()
}

/// Tells the time if asked to. False when this CPU belongs to the others.
fn answer() -> bool {
    match MAILBOX.step.load(SeqCst) {
        ARRIVED => {
            let question = MAILBOX.questions.load(Acquire);
            if question != MAILBOX.answers.load(Relaxed) {
                MAILBOX.tsc.store(clock::read_tsc(), Relaxed);
                MAILBOX.answers.store(question, Release);
            }
            true
        }
        ONLINE_NOW => false,
        _ => halt_for_ever(),
    }
}
