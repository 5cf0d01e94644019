//! Processes: programs in ring 3, each in an address space of its own.
//!
//! A process is one thread of the kernel's whose body ([`Running::run`]) goes to ring 3, comes back with what happened
//! there, and deals with it: an interrupt is handled, a call is served ([`calls`]), and what the CPU did not let the
//! program do is its end. The thread sleeps and is preempted like any other, and ends by returning, so that all that
//! the process had is given back by being dropped. To kill a process is to set a flag that this loop looks at, and to
//! interrupt the CPU that it may be on.
//!
//! How many processes there are, and what each may have, is bounded here. What a program can make the kernel allocate
//! is asked for so that it can be refused; starting a process is the kernel's own decision, and takes what starting a
//! thread takes.

mod budget;
mod calls;
mod copy;
mod device;
mod device_calls;
mod disk;
mod space;

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{
    fmt,
    sync::atomic::{
        AtomicBool, AtomicU32,
        Ordering::{Relaxed, SeqCst},
    },
};

use drivers::block::BlockDevice;
use iommu::PciAddress;
use program::{Program, ProgramError};

use budget::Budget;
pub use budget::total_pages;
pub use device::{GiveError, Given, Giver};
pub use disk::{Driver, NVME_DRIVER, start_disk};
pub use space::Space;

use crate::{
    arch::{
        clock,
        user::{Exception, Trap, UserContext},
    },
    programs, smp,
    sync::{IrqMutex, Rank},
    threads::{self, SpawnError, WaitQueue},
};
use calls::Lines;

/// Most processes at a time.
pub const PROCESSES_MAX: usize = 16;
/// Most pages of one, with those of its table: 8 MiB.
pub const PAGES_MAX: usize = 2048;

/// The processes that have not ended.
static PROCESSES: IrqMutex<[Option<Arc<Process>>; PROCESSES_MAX]> =
    IrqMutex::new(Rank::Processes, [const { None }; PROCESSES_MAX]);

/// What others see of a process.
pub struct Process {
    /// Its number, which no other one ever has.
    pub pid: u32,
    /// The program's.
    pub name: &'static str,
    /// When it was started.
    pub started_ns: u64,
    budget: Arc<Budget>,
    killed: AtomicBool,
    ending: IrqMutex<Option<Ending>>,
    /// Its own thread where it waits in the kernel, and those that wait for its end, or for its disk.
    changed: Arc<WaitQueue>,
    /// The block device that it has made.
    disk: spin::Once<Arc<dyn BlockDevice>>,
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// By itself, with this code.
    Exited(u64),
    /// Somebody had it killed.
    Killed,
    /// It did what it may not.
    Fault(Exception),
    /// It jumped out of the addresses that a program can have.
    Astray(u64),
}

/// Why a process could not be started.
#[derive(Debug)]
pub enum StartError {
    /// There is no program of this name.
    NoSuchProgram,
    /// Its file is none that can be loaded.
    Program(ProgramError),
    /// There is no memory, or not as much as one process may have.
    OutOfMemory,
    /// Its devices were given for several address spaces.
    SeveralSpaces,
    /// There are [`PROCESSES_MAX`].
    TooMany,
    /// There is no memory for its thread.
    Spawn(SpawnError),
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with {code}"),
            Self::Killed => f.write_str("killed"),
            Self::Fault(exception) => write!(f, "ended by an exception: {exception}"),
            Self::Astray(address) => write!(f, "ended: it jumped to {address:#x}"),
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchProgram => f.write_str("there is no such program"),
            Self::Program(error) => write!(f, "the program's file: {error}"),
            Self::OutOfMemory => f.write_str("no memory for a process"),
            Self::SeveralSpaces => f.write_str("its devices have several address spaces"),
            Self::TooMany => write!(f, "there are {PROCESSES_MAX} processes already"),
            Self::Spawn(error) => write!(f, "{error}"),
        }
    }
}

impl core::error::Error for StartError {}

/// Starts the program called `name`, with `argument` and `devices`.
///
/// # Errors
/// See [`StartError`]. Nothing is left of it then, and the devices are free.
pub fn start(name: &str, argument: u64, devices: Vec<Given>) -> Result<Arc<Process>, StartError> {
    let file = programs::find(name).ok_or(StartError::NoSuchProgram)?;
    start_file(file, argument, devices)
}

/// Starts the program that `file` holds, which need not be one of the kernel's.
///
/// # Errors
/// As for [`start`].
pub fn start_file(
    file: &programs::File,
    argument: u64,
    mut devices: Vec<Given>,
) -> Result<Arc<Process>, StartError> {
    static LAST_PID: AtomicU32 = AtomicU32::new(0);
    let program = Program::read(file.bytes).map_err(StartError::Program)?;
    let mut space = match devices.iter_mut().find_map(Given::take_space) {
        Some(space) => space,
        None => Space::new(PAGES_MAX).ok_or(StartError::OutOfMemory)?,
    };
    if devices.iter_mut().any(|device| device.take_space().is_some()) {
        return Err(StartError::SeveralSpaces);
    }
    space.load(&program).ok_or(StartError::OutOfMemory)?;
    let process = Arc::new(Process {
        pid: LAST_PID.fetch_add(1, Relaxed) + 1,
        name: file.name,
        started_ns: clock::now_ns(),
        budget: space.budget().clone(),
        killed: AtomicBool::new(false),
        ending: IrqMutex::new(Rank::Processes, None),
        changed: Arc::new(WaitQueue::new()),
        disk: spin::Once::new(),
    });
    let context = UserContext::new(program.entry, abi::STACK_TOP, argument);
    let listed = Listed::new(&process)?;
    devices.iter().for_each(|device| device.belong_to(&process));
    let lines = Lines::new();
    let running = Running { context, space, devices, lines, process: process.clone(), _listed: listed };
    threads::spawn("process", Box::new(move || running.run())).map_err(StartError::Spawn)?;
    Ok(process)
}

/// The processes that have not ended, one after the other.
pub fn all() -> impl Iterator<Item = Arc<Process>> {
    (0..PROCESSES_MAX).filter_map(|slot| PROCESSES.lock()[slot].clone())
}

/// The process with this number, if it has not ended.
pub fn find(pid: u32) -> Option<Arc<Process>> {
    all().find(|process| process.pid == pid)
}

impl Process {
    /// How many pages it has, with those of its table.
    pub fn pages(&self) -> usize {
        self.budget.used()
    }

    /// Ends it, wherever it is. [`wait`](Self::wait) says when it has.
    pub fn kill(&self) {
        self.killed.store(true, SeqCst);
        self.changed.wake_all();
        smp::interrupt_others();
    }

    /// How it ended, and all that it had is given back then; `None` if that has not happened by `deadline_ns`.
    pub fn wait(&self, deadline_ns: u64) -> Option<Ending> {
        self.changed.wait_until(deadline_ns, || self.ending.lock().is_some());
        *self.ending.lock()
    }

    /// The block device that it makes; `None` if it ends before, or has none by `deadline_ns`.
    pub fn await_disk(&self, deadline_ns: u64) -> Option<Arc<dyn BlockDevice>> {
        self.changed.wait_until(deadline_ns, || self.disk.get().is_some() || self.ending.lock().is_some());
        self.disk.get().cloned()
    }

    /// Whether it makes a disk of `function`.
    pub fn drives(&self, function: PciAddress) -> bool {
        self.disk.get().is_some_and(|disk| disk.dma().function() == function)
    }

    /// Its own thread waits, until `deadline_ns`, until `is_met`, or until it is killed. False in the first case.
    fn wait_in_kernel(&self, deadline_ns: u64, mut is_met: impl FnMut() -> bool) -> bool {
        self.changed.wait_until(deadline_ns, || self.killed.load(SeqCst) || is_met())
    }

    fn end(&self, ending: Ending) {
        match ending {
            Ending::Exited(_) | Ending::Killed => log::debug!("{self} {ending}"),
            Ending::Fault(_) | Ending::Astray(_) => log::warn!("{self} {ending}"),
        }
        *self.ending.lock() = Some(ending);
        self.changed.wake_all();
    }
}

/// A place in the list of processes, until it is dropped.
struct Listed(Arc<Process>);

impl Listed {
    fn new(process: &Arc<Process>) -> Result<Self, StartError> {
        let mut processes = PROCESSES.lock();
        let slot = processes.iter_mut().find(|slot| slot.is_none()).ok_or(StartError::TooMany)?;
        *slot = Some(process.clone());
        Ok(Self(process.clone()))
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let is_it =
            |slot: &&mut Option<Arc<Process>>| slot.as_ref().is_some_and(|it| Arc::ptr_eq(it, &self.0));
        let taken = PROCESSES.lock().iter_mut().find(is_it).and_then(Option::take);
        // Out of the lock.
        drop(taken);
    }
}

/// What its own thread has of a process.
struct Running {
    context: UserContext,
    /// They go before the space: what of it they were lent is nobody else's before they are quiet. The program, which
    /// could use their registers, does not run any more.
    devices: Vec<Given>,
    space: Space,
    lines: Lines,
    process: Arc<Process>,
    _listed: Listed,
}

impl Running {
    /// The process's life. It says how it ended only when all that it had is given back.
    fn run(mut self) {
        let ending = self.run_to_the_end();
        let process = self.process.clone();
        drop(self);
        process.end(ending);
    }

    fn run_to_the_end(&mut self) -> Ending {
        loop {
            if self.process.killed.load(SeqCst) || self.devices.iter().any(Given::is_lost) {
                return Ending::Killed;
            }
            let rip = self.context.rip();
            if !abi::is_user(rip) {
                return Ending::Astray(rip);
            }
            debug_assert!(self.space.has_kernels_half());
            // SAFETY: the table has the kernel's half, and in the lower one the pages of the process. It is dropped
            // with `self`. The address was checked.
            match unsafe { self.context.run(self.space.root(), &self.process.killed) } {
                Trap::Interrupt => {}
                Trap::Call => {
                    if let Some(ending) = self.serve(self.context.call()) {
                        return ending;
                    }
                }
                Trap::Exception(exception) => return Ending::Fault(exception),
            }
        }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
