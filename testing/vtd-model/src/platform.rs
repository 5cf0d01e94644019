//! The machine as the driver sees it: the platform traits.

use std::{cell::Cell, marker::PhantomData, ptr::NonNull, sync::Arc};

use iommu::{
    PciAddress, Platform,
    platform::{Event, LockClass, MsiMessage, Registers, Work},
};
use mm::{
    PhysAddr, PhysRange,
    lock_order::HeldLocks,
    table::{Table, TableMemory},
};

use crate::{
    complaints::Rule,
    machine::{Machine, State},
    turn,
};

thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
    static GUARDS: Cell<usize> = const { Cell::new(0) };
    static HELD: HeldLocks = const { HeldLocks::new() };
    static IN_INTERRUPT: Cell<bool> = const { Cell::new(false) };
    /// Of busy waits.
    static ROUNDS: Cell<u32> = const { Cell::new(0) };
}

/// Makes this thread CPU `cpu`.
pub fn become_cpu(cpu: usize) {
    CPU.set(cpu);
}

/// Runs `body` as an interrupt handler.
pub fn in_interrupt<R>(body: impl FnOnce() -> R) -> R {
    let before = IN_INTERRUPT.replace(true);
    let result = body();
    IN_INTERRUPT.set(before);
    result
}

/// Interrupts are off on this thread while it lives.
#[derive(Debug)]
pub struct InterruptGuard {
    /// Guards stay on their CPU.
    not_send: PhantomData<*const ()>,
}

impl Drop for InterruptGuard {
    fn drop(&mut self) {
        GUARDS.set(GUARDS.get() - 1);
    }
}

/// A machine behind the traits of a host kernel.
#[derive(Debug)]
pub struct ModelPlatform {
    machine: Arc<Machine>,
    tables: ModelTables,
}

impl ModelPlatform {
    /// The platform of `machine`.
    #[must_use]
    pub fn new(machine: &Arc<Machine>) -> Self {
        Self { machine: machine.clone(), tables: ModelTables { machine: machine.clone() } }
    }
}

/// The table pages of a machine.
#[derive(Debug)]
pub struct ModelTables {
    machine: Arc<Machine>,
}

/// The registers of one unit.
#[derive(Debug)]
pub struct ModelRegisters {
    machine: Arc<Machine>,
    unit: usize,
    bytes: usize,
}

// SAFETY: pages come zeroed from an arena, each given out once until it is freed.
unsafe impl TableMemory for ModelTables {
    fn allocate(&self) -> Option<PhysAddr> {
        let _turn = turn::take();
        let memory = &self.machine.memory;
        memory.tables.allocate().map(|page| PhysAddr::new(memory.beyond.place(page)))
    }

    unsafe fn free(&self, page: PhysAddr) {
        let _turn = turn::take();
        self.machine.free_table(self.machine.memory.beyond.real(page.as_u64()));
    }

    unsafe fn table(&self, page: PhysAddr) -> &Table {
        let _turn = turn::take();
        let memory = &self.machine.memory;
        memory.tables.table(memory.beyond.real(page.as_u64()))
    }

    fn write_back(&self, first: *const u8, bytes: usize) {
        let _turn = turn::take();
        let mut state = self.machine.state();
        self.machine.stir(&mut state);
        // Before the lines leave the cache: what is linked already but not written shows now.
        self.machine.audit_sometimes(&mut state);
        self.machine.memory.tables.write_back(first, bytes);
    }
}

// SAFETY: addresses and registers are the model's own.
unsafe impl Platform for ModelPlatform {
    type Tables = ModelTables;
    type Registers = ModelRegisters;
    type InterruptGuard = InterruptGuard;

    fn tables(&self) -> &ModelTables {
        &self.tables
    }

    fn allocate_contiguous(&self, pages: usize) -> Option<PhysAddr> {
        let _turn = turn::take();
        let memory = &self.machine.memory;
        memory.tables.allocate_contiguous(pages).map(|first| PhysAddr::new(memory.beyond.place(first)))
    }

    fn map_registers(&self, base: PhysAddr, bytes: usize) -> Option<ModelRegisters> {
        let _turn = turn::take();
        let unit = self.machine.config().units.iter().position(|unit| unit.base == base.as_u64())?;
        Some(ModelRegisters { machine: self.machine.clone(), unit, bytes })
    }

    fn now_ns(&self) -> u64 {
        let _turn = turn::take();
        // Reading a clock takes time: a loop that only looks at it comes to an end.
        const READ_NS: u64 = 5;
        self.machine.clock().advance(READ_NS)
    }

    fn cpu(&self) -> usize {
        CPU.get()
    }

    fn interrupt_guard(&self) -> InterruptGuard {
        GUARDS.set(GUARDS.get() + 1);
        InterruptGuard { not_send: PhantomData }
    }

    fn in_interrupt(&self) -> bool {
        IN_INTERRUPT.get()
    }

    fn lock_taken(&self, class: LockClass) {
        let taken = HELD.with(|held| held.take(class as u8, GUARDS.get() == 0));
        taken.unwrap_or_else(|error| panic!("{class:?}: {error}"));
    }

    fn lock_released(&self, class: LockClass) {
        HELD.with(|held| held.release(class as u8));
    }

    fn relax(&self) {
        let _turn = turn::take();
        // Seldom enough that a machine with one CPU does not lose its host's at every turn.
        const YIELD_ONCE_IN: u32 = 64;
        self.machine.relax();
        let rounds = ROUNDS.get().wrapping_add(1);
        ROUNDS.set(rounds);
        if rounds.is_multiple_of(YIELD_ONCE_IN) {
            std::thread::yield_now();
        }
    }

    fn allocate_vector(&self, event: Event) -> Option<MsiMessage> {
        let _turn = turn::take();
        self.machine.allocate_vector(event)
    }

    fn read_config(&self, function: PciAddress, offset: u16) -> u32 {
        let _turn = turn::take();
        self.machine.read_config(function, offset)
    }

    fn write_config(&self, function: PciAddress, offset: u16, value: u32) {
        let _turn = turn::take();
        self.machine.write_config(function, offset, value);
    }

    fn change_config(&self, function: PciAddress, offset: u16, clear: u32, set: u32) {
        let _turn = turn::take();
        self.machine.change_config(function, offset, clear, set);
    }

    fn wake(&self, work: Work) {
        let _turn = turn::take();
        self.machine.wake(work);
    }

    fn physical(&self, first: NonNull<u8>, bytes: usize) -> Option<PhysAddr> {
        let _turn = turn::take();
        self.machine.memory.physical(first, bytes).map(PhysAddr::new)
    }

    fn is_own_memory(&self, range: PhysRange) -> bool {
        let _turn = turn::take();
        self.machine.config().memory.is_kernels(range)
    }

    fn is_firmware_memory(&self, range: PhysRange) -> bool {
        let _turn = turn::take();
        self.machine.config().memory.is_firmwares(range)
    }
}

impl ModelRegisters {
    fn read(&self, offset: usize, width: usize) -> u64 {
        let _turn = turn::take();
        self.check(offset, width);
        self.machine.clock().access();
        let mut state = self.machine.state();
        let State { units, world } = &mut *state;
        units[self.unit].read(world, offset, width)
    }

    fn write(&self, offset: usize, width: usize, value: u64) {
        let _turn = turn::take();
        self.check(offset, width);
        self.machine.clock().access();
        self.machine.clock().progress();
        let mut state = self.machine.state();
        self.machine.stir(&mut state);
        let State { units, world } = &mut *state;
        units[self.unit].write(world, offset, width, value);
        self.machine.audit_sometimes(&mut state);
    }

    fn check(&self, offset: usize, width: usize) {
        if offset + width > self.bytes {
            let text = format!("unit {}: {offset:#x} lies beyond the {} mapped bytes", self.unit, self.bytes);
            self.machine.complain(Rule::NoSuchRegister, text);
        }
    }
}

impl Registers for ModelRegisters {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn read32(&self, offset: usize) -> u32 {
        self.read(offset, 4) as u32
    }

    fn write32(&self, offset: usize, value: u32) {
        self.write(offset, 4, value.into());
    }

    fn read64(&self, offset: usize) -> u64 {
        self.read(offset, 8)
    }

    fn write64(&self, offset: usize, value: u64) {
        self.write(offset, 8, value);
    }
}
