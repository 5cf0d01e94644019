//! A machine with one function, and the host that its driver asks.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::{
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
    vec::Vec,
};

use iommu::{DmaDevice, Iommu, Options, PciAddress, Platform, platform::MsiMessage, topology};
use mm::PhysAddr;
use vtd_model::{Machine, MachineConfig, ModelPlatform};

use crate::{
    host::{Event, Host, Interrupt, InterruptError, InterruptState, SpawnError},
    mmio::{Mmio, trap::Registers},
    pci::{
        Claims, Config, ConfigSpace, Device, Function,
        fake::{FakeFunction, FakeSpace},
    },
};

/// Where BAR 0 is.
pub const BAR: u64 = 0xfe00_0000;
/// Its length.
pub const BAR_BYTES: usize = 0x8000;

/// Address of every message; its data tell interrupts apart.
const MESSAGE_ADDRESS: u64 = 0xfee0_0000;

/// How long a test waits for something that should happen at once.
const HANG: Duration = Duration::from_secs(60);

/// How long each wait takes in a storm of interrupts, and how many of them no deadline allows.
const STORMY_WAIT_NS: u64 = 1_000_000;
const STORMY_WAITS_MAX: usize = 100_000;

/// Virtual time, and everybody who waits for it or for an event.
#[derive(Default)]
struct Clock {
    now_ns: Mutex<u64>,
    changed: Condvar,
    /// Every event is signalled whenever somebody waits for it.
    storms: AtomicBool,
    /// Waits in the storm.
    stormy_waits: AtomicUsize,
}

/// What each vector signals, while it is in use.
type Vectors = Mutex<Vec<Option<Arc<dyn Event>>>>;

/// What happens before each write to a register: where, and what.
type BeforeWrite = Box<dyn FnMut(usize, u64) + Send>;

/// The host of one function.
pub struct TestHost {
    pub space: FakeSpace,
    platform: Arc<ModelPlatform>,
    function: PciAddress,
    device: Mutex<Option<Arc<dyn Registers>>>,
    clock: Arc<Clock>,
    vectors: Arc<Vectors>,
    /// There is no memory for a thread.
    pub refuse_threads: AtomicBool,
    /// How many CPUs there are, and on which one every thread runs.
    pub cpus: AtomicUsize,
    pub cpu: AtomicUsize,
    /// How often a thread let others run.
    pub yields: AtomicUsize,
}

/// A machine with one function, claimed.
pub struct Bench {
    pub host: Arc<TestHost>,
    pub iommu: Iommu,
    pub dma: DmaDevice,
    /// The function, as the thing that does DMA.
    pub requester: vtd_model::Device,
    machine: Arc<Machine>,
    trace: Arc<Trace>,
}

impl Bench {
    /// A machine whose function has the configuration space `function`, with BAR 0 and the command register added.
    pub fn new(function: FakeFunction) -> Self {
        const MEMORY_ON: u32 = 2;
        let machine = Machine::new(MachineConfig::plain(1));
        let platform = Arc::new(ModelPlatform::new(&machine));
        let address = machine.config().functions[0].address;
        let functions = [topology::Function::endpoint(address)];
        let dmar = machine.config().dmar_table();
        let found = iommu::Machine {
            dmar: Some(&dmar),
            functions: &functions,
            io_apics: &[],
            memory: &[],
            registers: &[],
            x2apic: false,
        };
        let iommu = Iommu::start(platform.clone(), &found, Options::default()).unwrap();
        let dma = iommu.claim(address).unwrap();
        let space = FakeSpace::default();
        let bar_mask = !(BAR_BYTES as u32 - 1);
        let function = function.with(0x10, BAR as u32).writable(0x10, bar_mask);
        space.add(address, function.with(0x04, MEMORY_ON | 1 << 20).writable(0x04, 0xffff));
        let host = Arc::new(TestHost {
            space,
            platform,
            function: address,
            device: Mutex::new(None),
            clock: Arc::default(),
            vectors: Arc::default(),
            refuse_threads: AtomicBool::new(false),
            cpus: AtomicUsize::new(1),
            cpu: AtomicUsize::new(0),
            yields: AtomicUsize::new(0),
        });
        let requester = machine.device(address);
        Self { host, iommu, dma, requester, machine, trace: Arc::default() }
    }

    /// Makes the unit carry out no invalidation, or all of them again.
    pub fn stall_invalidations(&self, is_stalled: bool) {
        self.machine.misbehave(0, |unit| unit.queue_stalled = is_stalled);
    }

    /// Makes `device` answer behind BAR 0.
    pub fn plug(&self, device: Arc<dyn Registers>) {
        let trace = self.trace.clone();
        *self.host.device.lock().unwrap() = Some(Arc::new(Traced { device, trace }));
    }

    /// Calls `hook` before each write to a register from now on, with its offset and the value.
    pub fn before_write(&self, hook: impl FnMut(usize, u64) + Send + 'static) {
        *self.trace.before.lock().unwrap() = Some(Box::new(hook));
    }

    /// The function is pulled out, and taken from its driver, as soon as somebody writes to the register at `offset`.
    pub fn pull_out_at_write(&self, offset: usize) {
        let (host, trace) = (Arc::downgrade(&self.host), Arc::downgrade(&self.trace));
        let (iommu, function) = (self.iommu.clone(), self.dma.function());
        self.before_write(move |at, _value| {
            let (Some(host), Some(trace)) = (host.upgrade(), trace.upgrade()) else { return };
            if at == offset && !trace.is_gone.swap(true, Ordering::Relaxed) {
                host.space.remove(function);
                iommu.functions_gone(&[function], |_| true).unwrap();
            }
        });
    }

    /// Takes the function from its driver, resets it, with its registers by `reset`, and gives it to the next one.
    pub fn pass_on(&self, reset: impl Fn()) -> DmaDevice {
        const COMMAND: u16 = 0x04;
        const BUS_MASTER: u32 = 4;
        let function = self.dma.function();
        let is_quiet = |_| {
            reset();
            self.host.space.change32(function, COMMAND, BUS_MASTER, 0);
            true
        };
        self.iommu.release(function, is_quiet).unwrap();
        self.iommu.claim(function).unwrap()
    }

    /// How often anybody has written to the function's registers, and to its configuration space.
    pub fn writes(&self) -> (usize, usize) {
        (self.trace.writes.load(Ordering::Relaxed), self.host.space.writes.lock().unwrap().len())
    }

    /// The function as it is found now, with registers that are nobody else's.
    pub fn function(&self) -> Function {
        self.settled(&Claims::new())
    }

    /// The same where others have what `claims` says.
    pub fn settled(&self, claims: &Claims) -> Function {
        let found = Function::read(Config::new(&self.host.space, self.dma.function()), None);
        let mut found = [found.expect("it answers")];
        found[0].measure(&self.host.space);
        claims.settle(&self.host.space, &mut found, 0);
        let [function] = found;
        function
    }

    /// The function in the hands of a driver.
    pub fn device(&self) -> Device {
        Device::open(self.as_host(), &self.function()).expect("it answers")
    }

    /// The host as drivers see it.
    pub fn as_host(&self) -> Arc<dyn Host> {
        self.host.clone()
    }

    /// Waits until no more than `wanted` mappings are live, with the reaper at work.
    pub fn await_live_mappings(&self, wanted: usize) {
        await_true(|| {
            self.iommu.reap();
            self.iommu.live_mappings() <= wanted
        });
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !thread::panicking() {
            let complaints = self.machine.take_complaints();
            assert!(complaints.is_empty(), "{complaints:#?}");
        }
    }
}

/// What is known of registers, and done about them.
#[derive(Default)]
struct Trace {
    writes: AtomicUsize,
    before: Mutex<Option<BeforeWrite>>,
    /// They read as all ones.
    is_gone: AtomicBool,
}

/// Registers whose writes are seen.
struct Traced {
    device: Arc<dyn Registers>,
    trace: Arc<Trace>,
}

impl Registers for Traced {
    fn read(&self, offset: usize, width: usize) -> u64 {
        if self.trace.is_gone.load(Ordering::Relaxed) {
            return u64::MAX >> (64 - 8 * width);
        }
        self.device.read(offset, width)
    }

    fn write(&self, offset: usize, width: usize, value: u64) {
        self.trace.writes.fetch_add(1, Ordering::Relaxed);
        if let Some(before) = &mut *self.trace.before.lock().unwrap() {
            before(offset, value);
        }
        if !self.trace.is_gone.load(Ordering::Relaxed) {
            self.device.write(offset, width, value);
        }
    }
}

/// Waits for what another thread is about to do.
pub fn await_true(mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < HANG, "it never happened");
        thread::sleep(Duration::from_millis(1));
    }
}

impl TestHost {
    /// Lets time pass.
    pub fn advance(&self, ns: u64) {
        *self.clock.now_ns.lock().unwrap() += ns;
        self.clock.changed.notify_all();
    }

    /// From now on every event is signalled again and again.
    pub fn begin_storm(&self) {
        self.clock.storms.store(true, Ordering::Relaxed);
    }

    /// Delivers a message that a device has sent.
    pub fn deliver(&self, message: MsiMessage) {
        assert_eq!(message.address, MESSAGE_ADDRESS, "a message to nowhere");
        let event = self.vectors.lock().unwrap()[message.data as usize].clone();
        event.expect("a message after its vector was freed").signal();
    }

    /// Raises every interrupt that is in use.
    pub fn signal_all(&self) {
        self.vectors.lock().unwrap().iter().flatten().for_each(|event| event.signal());
    }

    /// Vectors in use.
    pub fn live_vectors(&self) -> usize {
        self.vectors.lock().unwrap().iter().flatten().count()
    }

    /// Whether the function may master the bus.
    pub fn is_bus_master(&self) -> bool {
        self.space.read32(self.function, 0x04) & 4 != 0
    }
}

struct TestEvent {
    signalled: AtomicBool,
    clock: Arc<Clock>,
}

impl Event for TestEvent {
    fn signal(&self) {
        let _time = self.clock.now_ns.lock().unwrap();
        self.signalled.store(true, Ordering::Release);
        self.clock.changed.notify_all();
    }

    fn wait(&self, deadline_ns: u64) -> bool {
        let mut now_ns = self.clock.now_ns.lock().unwrap();
        if self.clock.storms.load(Ordering::Relaxed) {
            *now_ns += STORMY_WAIT_NS;
            drop(now_ns);
            let waits = self.clock.stormy_waits.fetch_add(1, Ordering::Relaxed);
            assert!(waits < STORMY_WAITS_MAX, "the deadline is not looked at");
            return true;
        }
        loop {
            if self.signalled.swap(false, Ordering::AcqRel) {
                return true;
            }
            if *now_ns >= deadline_ns {
                return false;
            }
            let (woken, timeout) = self.clock.changed.wait_timeout(now_ns, HANG).unwrap();
            assert!(!timeout.timed_out(), "nothing happens any more");
            now_ns = woken;
        }
    }
}

struct TestInterrupt {
    vectors: Arc<Vectors>,
    index: usize,
    cpus: usize,
}

impl Interrupt for TestInterrupt {
    fn message(&self) -> MsiMessage {
        MsiMessage { address: MESSAGE_ADDRESS, data: self.index as u32 }
    }

    fn retarget(&mut self, cpu: usize) -> Result<(), InterruptError> {
        if cpu < self.cpus { Ok(()) } else { Err(InterruptError::NoCpu { cpu }) }
    }
}

impl Drop for TestInterrupt {
    fn drop(&mut self) {
        self.vectors.lock().unwrap()[self.index] = None;
    }
}

// SAFETY: `map_mmio` gives windows that are never accessed as memory, and there are no interrupts to be off.
unsafe impl Host for TestHost {
    fn config_read32(&self, function: PciAddress, offset: u16) -> u32 {
        self.space.read32(function, offset)
    }

    fn config_write32(&self, function: PciAddress, offset: u16, value: u32) {
        self.config_change32(function, offset, u32::MAX, value);
    }

    fn config_write16(&self, function: PciAddress, offset: u16, value: u16) {
        assert_ne!(offset & !3, 0x04, "the command register is changed, not written");
        self.space.write16(function, offset, value);
    }

    fn config_change32(&self, function: PciAddress, offset: u16, clear: u32, set: u32) {
        self.space.change32(function, offset, clear, set);
        if offset == 0x04 {
            self.platform.write_config(function, offset, self.space.read32(function, offset));
        }
    }

    fn map_mmio(&self, base: PhysAddr, bytes: usize) -> Option<Mmio> {
        let device = self.device.lock().unwrap().clone()?;
        (base.as_u64() == BAR && bytes == BAR_BYTES).then(|| Mmio::trapped(device, bytes))
    }

    fn now_ns(&self) -> u64 {
        *self.clock.now_ns.lock().unwrap()
    }

    fn event(&self) -> Arc<dyn Event> {
        Arc::new(TestEvent { signalled: AtomicBool::new(false), clock: self.clock.clone() })
    }

    fn allocate_interrupt(
        &self,
        function: PciAddress,
        event: Arc<dyn Event>,
    ) -> Result<Box<dyn Interrupt>, InterruptError> {
        assert_eq!(function, self.function);
        let mut vectors = self.vectors.lock().unwrap();
        vectors.push(Some(event));
        let (vectors, index) = (self.vectors.clone(), vectors.len() - 1);
        Ok(Box::new(TestInterrupt { vectors, index, cpus: self.cpus() }))
    }

    fn cpus(&self) -> usize {
        self.cpus.load(Ordering::Relaxed)
    }

    fn cpu(&self) -> usize {
        self.cpu.load(Ordering::Relaxed)
    }

    fn spawn(&self, name: &'static str, body: Box<dyn FnOnce() + Send>) -> Result<(), SpawnError> {
        if self.refuse_threads.load(Ordering::Relaxed) {
            return Err(SpawnError { name });
        }
        thread::spawn(body);
        Ok(())
    }

    fn relax(&self) {
        self.advance(1_000_000);
    }

    fn yield_now(&self) {
        self.yields.fetch_add(1, Ordering::Relaxed);
    }

    fn interrupts_off(&self) -> InterruptState {
        InterruptState { were_on: true }
    }

    fn interrupts_restore(&self, _state: InterruptState) {}
}
