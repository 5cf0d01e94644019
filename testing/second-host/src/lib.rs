//! Another kernel that takes `mm` and `iommu` over, as small as can be: its own frames, its own locks, its own threads.
//! Its machine is the model's, whose hardware is reached by `self.model`. `docs/taking-over.md` goes through it, and
//! the tests run what the suites of the first kernel run in QEMU.

mod frames;
mod lock;

use std::{
    cell::Cell,
    ptr::NonNull,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle, Thread},
    time::Duration,
};

use iommu::{
    Iommu, Options, PciAddress, Platform, StartError,
    platform::{Event, LockClass, MsiMessage, Work},
    topology::Function,
};
use mm::{
    PhysAddr, PhysRange,
    lock_order::HeldLocks,
    table::{Table, TableMemory},
};
use vtd_model::{Machine, MachineConfig, ModelPlatform, ModelRegisters};

use frames::Frames;
use lock::{InterruptsOff, Lock, interrupts_are_on};

thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
    static IN_INTERRUPT: Cell<bool> = const { Cell::new(false) };
    static HELD: HeldLocks = const { HeldLocks::new() };
}

/// The host, as the subsystem sees it.
struct Host {
    machine: Arc<Machine>,
    model: ModelPlatform,
    frames: Lock<Frames>,
    /// There is work for the worker.
    woken: AtomicBool,
    worker: OnceLock<Thread>,
    ends: AtomicBool,
}

// SAFETY: a frame is given out once until it comes back, zeroed.
unsafe impl TableMemory for Host {
    fn allocate(&self) -> Option<PhysAddr> {
        let frame = self.frames.with(Frames::allocate)?;
        self.machine.take_table_pages(frame, 1);
        Some(frame)
    }

    unsafe fn free(&self, page: PhysAddr) {
        // SAFETY: the caller's promise. The model looks whether a unit could still walk it.
        unsafe { self.model.tables().free(page) };
        self.frames.with(|frames| frames.free(page));
    }

    unsafe fn table(&self, page: PhysAddr) -> &Table {
        // SAFETY: the caller's promise.
        unsafe { self.model.tables().table(page) }
    }

    fn write_back(&self, first: *const u8, bytes: usize) {
        self.model.tables().write_back(first, bytes);
    }
}

// SAFETY: frames are the host's own; other memory and registers are the machine's.
unsafe impl Platform for Host {
    type Tables = Self;
    type Registers = ModelRegisters;
    type InterruptGuard = InterruptsOff;

    fn tables(&self) -> &Self {
        self
    }

    fn allocate_contiguous(&self, pages: usize) -> Option<PhysAddr> {
        let first = self.frames.with(|frames| frames.allocate_contiguous(pages))?;
        self.machine.take_table_pages(first, pages);
        Some(first)
    }

    fn map_registers(&self, base: PhysAddr, bytes: usize) -> Option<ModelRegisters> {
        self.model.map_registers(base, bytes)
    }

    fn now_ns(&self) -> u64 {
        self.model.now_ns()
    }

    fn cpu(&self) -> usize {
        CPU.get()
    }

    fn interrupt_guard(&self) -> InterruptsOff {
        InterruptsOff::new()
    }

    fn in_interrupt(&self) -> bool {
        IN_INTERRUPT.get()
    }

    fn lock_taken(&self, class: LockClass) {
        let taken = HELD.with(|held| held.take(class as u8, interrupts_are_on()));
        taken.unwrap_or_else(|error| panic!("{class:?}: {error}"));
    }

    fn lock_released(&self, class: LockClass) {
        HELD.with(|held| held.release(class as u8));
    }

    fn relax(&self) {
        self.model.relax();
        thread::yield_now();
    }

    fn allocate_vector(&self, event: Event) -> Option<MsiMessage> {
        self.model.allocate_vector(event)
    }

    fn read_config(&self, function: PciAddress, offset: u16) -> u32 {
        self.model.read_config(function, offset)
    }

    fn write_config(&self, function: PciAddress, offset: u16, value: u32) {
        self.model.write_config(function, offset, value);
    }

    fn change_config(&self, function: PciAddress, offset: u16, clear: u32, set: u32) {
        self.model.change_config(function, offset, clear, set);
    }

    fn wake(&self, _work: Work) {
        self.woken.store(true, SeqCst);
        if let Some(worker) = self.worker.get() {
            worker.unpark();
        }
    }

    fn physical(&self, first: NonNull<u8>, bytes: usize) -> Option<PhysAddr> {
        self.model.physical(first, bytes)
    }

    fn is_own_memory(&self, range: PhysRange) -> bool {
        self.model.is_own_memory(range)
    }
}

impl Host {
    /// The worker's life: both kinds of work, when it is woken and when the clock says so.
    fn work(&self, iommu: &Iommu) {
        const LOOK: Duration = Duration::from_millis(1);
        while !self.ends.load(SeqCst) {
            let due_ns = iommu.next_faults_ns().min(iommu.next_reap_ns());
            if self.woken.swap(false, SeqCst) || due_ns <= self.now_ns() {
                iommu.process_faults();
                iommu.reap();
            }
            thread::park_timeout(LOOK);
        }
    }
}

/// The host while it runs.
pub struct Kernel {
    pub machine: Arc<Machine>,
    pub iommu: Iommu,
    host: Arc<Host>,
    worker: Option<JoinHandle<()>>,
}

impl Kernel {
    /// Boots on a machine, all of whose functions are endpoints.
    pub fn boot(config: MachineConfig) -> Result<Self, StartError> {
        let machine = Machine::new(config);
        let host = Arc::new(Host {
            model: ModelPlatform::new(&machine),
            frames: Lock::new(Frames::new(machine.table_memory())),
            machine: machine.clone(),
            woken: AtomicBool::new(false),
            worker: OnceLock::new(),
            ends: AtomicBool::new(false),
        });
        // What firmware and the bus say. A kernel reads both itself.
        let dmar = machine.config().dmar_table();
        let functions: Vec<Function> =
            machine.config().functions.iter().map(|found| Function::endpoint(found.address)).collect();
        let memory = machine.config().memory.ram();
        let found = iommu::Machine {
            dmar: Some(&dmar),
            functions: &functions,
            io_apics: &[],
            memory: &memory,
            registers: &[],
            x2apic: true,
        };
        let iommu = Iommu::start(host.clone(), &found, Options::default())?;
        let (its_host, its_iommu) = (host.clone(), iommu.clone());
        let worker = thread::spawn(move || {
            CPU.set(1);
            its_host.worker.get_or_init(thread::current);
            its_host.work(&its_iommu);
        });
        Ok(Self { machine, iommu, host, worker: Some(worker) })
    }

    /// Takes the interrupts that have come, as a CPU does between two instructions.
    pub fn take_interrupts(&self) {
        self.machine.deliver_events(|event| {
            let _off = InterruptsOff::new();
            IN_INTERRUPT.set(true);
            self.iommu.handle_event(event);
            IN_INTERRUPT.set(false);
        });
    }

    /// Lets a function send requests, or stops it, as its driver does.
    pub fn set_bus_master(&self, function: PciAddress, on: bool) {
        const COMMAND: u16 = 4;
        const BUS_MASTER: u32 = 1 << 2;
        // Ones would clear bits of the status register beside it.
        const STATUS: u32 = 0xffff << 16;
        let set = if on { BUS_MASTER } else { 0 };
        self.host.change_config(function, COMMAND, BUS_MASTER | STATUS, set);
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.host.ends.store(true, SeqCst);
        if let Some(worker) = self.worker.take() {
            worker.thread().unpark();
            assert!(worker.join().is_ok() || thread::panicking(), "the worker panicked");
        }
    }
}
