//! The driver's thread: completions, deadlines, recovery, shutdown.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use iommu::DmaDevice;

use super::{
    DiskError, Refused, Shared,
    flight::InFlight,
    layout::{feature, read_info},
    state::{DESCRIPTORS, Done, Doubt, FaultWatch, Phase, State},
};
use crate::{
    block::BlockError,
    host::{Event, Host},
    lock::Lock,
    virtio::{Doorbell, QueueAddresses, Rings, SplitQueue, Transport, TransportError},
};

/// The one request queue that is used.
const QUEUE: u16 = 0;
/// MSI-X entries.
const CONFIG_ENTRY: u16 = 0;
const QUEUE_ENTRY: u16 = 1;

/// Most descriptors that the driver makes use of.
const QUEUE_SIZE_LIMIT: u16 = 256;

/// How often deadlines and the device's status are looked at when nothing happens.
const WATCH_INTERVAL_NS: u64 = 1_000_000_000;

/// Resets in a row, with no request done in between, after which a device is given up.
const FRUITLESS_RESETS: u32 = 4;

const FEATURES: u64 = feature::SEGMENT_SIZE | feature::READ_ONLY | feature::FLUSH;

/// What the driver's thread owns. Dropping it makes the device quiet and fails what it has.
pub struct Service {
    shared: Arc<Shared>,
    transport: Transport,
    config_changed: Arc<ConfigChanged>,
    /// Requests on their way from the queue to their owners; room for all there can be.
    done: Vec<Done>,
    fruitless_resets: u32,
    next_watch_ns: u64,
}

/// The event of the configuration vector: wakes the thread, and tells it that the status is worth a look.
struct ConfigChanged {
    changed: AtomicBool,
    wake: Arc<dyn Event>,
}

impl Event for ConfigChanged {
    fn signal(&self) {
        self.changed.store(true, Ordering::Release);
        self.wake.signal();
    }

    fn wait(&self, deadline_ns: u64) -> bool {
        self.wake.wait(deadline_ns)
    }
}

impl Service {
    /// Finds the device, agrees with it, gives it its queue and lets it run.
    pub fn bring_up(host: &Arc<dyn Host>, dma: DmaDevice) -> Result<Self, DiskError> {
        let mut transport = Transport::open(host, &dma)?;
        let features = transport.negotiate(FEATURES)?;
        let info = read_info(transport.configuration().ok_or(DiskError::NoConfiguration)?, features)?;
        let size = queue_size(transport.queue_limit(QUEUE)?)?;
        let wake = host.event();
        let config_changed = Arc::new(ConfigChanged { changed: AtomicBool::new(false), wake: wake.clone() });
        transport.add_interrupt(CONFIG_ENTRY, config_changed.clone())?;
        transport.add_interrupt(QUEUE_ENTRY, wake.clone())?;
        let queue = SplitQueue::new(Rings::new(&dma, size)?, size).map_err(|_| DiskError::OutOfMemory)?;
        let slots = dma.alloc_coherent(usize::from(size))?;
        let mut done = Vec::new();
        done.try_reserve_exact(usize::from(size)).map_err(|_| DiskError::OutOfMemory)?;
        let doorbell = connect(&transport, queue.memory(), size)?;
        let faults = FaultWatch { counts: dma.fault_counts() };
        let state = State { phase: Phase::Running, queue, slots, doorbell, faults };
        let shared = Arc::new(Shared {
            host: host.clone(),
            dma,
            info,
            flushes: features & feature::FLUSH != 0,
            wake,
            stop: AtomicBool::new(false),
            reset: AtomicBool::new(false),
            stopped: host.event(),
            resets: AtomicU64::new(0),
            state: Lock::new(host.clone(), state),
        });
        transport.start();
        Ok(Self { shared, transport, config_changed, done, fruitless_resets: 0, next_watch_ns: 0 })
    }

    /// What the thread shares with submitters.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The thread: until the disk is dropped.
    pub fn run(mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            let deadline_ns = self.shared.host.now_ns().saturating_add(WATCH_INTERVAL_NS);
            self.shared.wake.wait(deadline_ns);
            if let Err(cause) = self.turn() {
                self.recover(cause);
            }
        }
    }

    /// Completes what the device has finished. An error is a reason to reset it.
    fn turn(&mut self) -> Result<(), Trouble> {
        let collected = self.shared.state.lock().collect(&mut self.done);
        // The count is read after the device's word was taken: a fault that it keeps quiet about is in it.
        let faults = self.check_faults();
        self.deliver(faults);
        collected.map_err(Trouble::Queue)?;
        if self.config_changed.changed.swap(false, Ordering::AcqRel) && !self.transport.is_running() {
            return Err(Trouble::AskedForReset);
        }
        if self.shared.reset.swap(false, Ordering::AcqRel) {
            return Err(Trouble::Requested);
        }
        self.watch()
    }

    /// Completes the requests in `done`. One that a fault may have met, and nobody knows whose, is done again for as long
    /// as there is time.
    fn deliver(&mut self, faults: FaultWatch) {
        let now_ns = self.shared.host.now_ns();
        for Done { flight, result } in self.done.drain(..) {
            let result = match faults.doubt(flight.faults) {
                Doubt::None => result,
                Doubt::Repeat if flight.deadline_ns > now_ns => {
                    let InFlight { job, promise, deadline_ns, .. } = flight;
                    let started = self.shared.state.lock().start(job, promise, deadline_ns);
                    if let Err(Refused { job, promise, .. }) = started {
                        let flight = InFlight { job, promise, deadline_ns, faults: faults.counts };
                        flight.finish(Err(BlockError::Blocked));
                    }
                    continue;
                }
                Doubt::Repeat | Doubt::Blocked => Err(BlockError::Blocked),
            };
            if result.is_ok() {
                self.fruitless_resets = 0;
            }
            flight.finish(result);
        }
    }

    /// Once in a while: deadlines, and the status of a device whose interrupt may have been lost.
    fn watch(&mut self) -> Result<(), Trouble> {
        let now_ns = self.shared.host.now_ns();
        if now_ns < self.next_watch_ns {
            return Ok(());
        }
        self.next_watch_ns = now_ns.saturating_add(WATCH_INTERVAL_NS);
        let state = self.shared.state.lock();
        let (running, overdue) = (state.phase == Phase::Running, state.is_overdue(now_ns));
        drop(state);
        if running && !self.transport.is_running() {
            return Err(Trouble::AskedForReset);
        }
        if overdue { Err(Trouble::Overdue) } else { Ok(()) }
    }

    fn check_faults(&self) -> FaultWatch {
        let faults = FaultWatch { counts: self.shared.dma.fault_counts() };
        self.shared.state.lock().faults = faults;
        faults
    }

    /// Resets the device, fails what it had, and starts it again.
    fn recover(&mut self, cause: Trouble) {
        let resets = self.shared.resets.fetch_add(1, Ordering::Relaxed) + 1;
        // A device that misbehaves for ever fills no log.
        if resets.is_power_of_two() {
            log::warn!("virtio-blk {}: {cause}; reset {resets}", self.shared.dma.function());
        }
        self.stop_device(Phase::Resetting);
        self.fruitless_resets += 1;
        let phase = self.shared.state.lock().phase;
        if phase != Phase::Resetting {
            return;
        }
        if self.fruitless_resets > FRUITLESS_RESETS {
            log::error!("virtio-blk {}: given up after {resets} resets", self.shared.dma.function());
            return self.give_up();
        }
        if let Err(error) = self.restart() {
            log::error!("virtio-blk {}: {error} after a reset", self.shared.dma.function());
            self.give_up();
        }
    }

    /// Makes the device quiet and fails what it has. The phase is `next` afterwards, if it is quiet.
    fn stop_device(&mut self, next: Phase) {
        self.shared.state.lock().phase = Phase::Resetting;
        let quiet = self.transport.reset();
        if let Err(error) = &quiet {
            log::error!("virtio-blk {}: {error}; its memory stays pinned", self.shared.dma.function());
            self.transport.device().disable_bus_master();
            self.shared.state.lock().phase = Phase::NotQuiet;
            // The rings stay as they are even when everybody has let go of the disk.
            core::mem::forget(self.shared.clone());
        }
        let faults = self.check_faults();
        let now_ns = self.shared.host.now_ns();
        // One at a time, because giving memory back must not happen under the lock.
        while let Some(flight) = self.take_back() {
            match quiet {
                Ok(()) => {
                    let error =
                        if next == Phase::Gone { BlockError::Gone } else { failure(&flight, faults, now_ns) };
                    flight.finish(Err(error));
                }
                Err(_) => flight.pin(),
            }
        }
        if quiet.is_ok() {
            self.shared.state.lock().phase = next;
        }
    }

    fn take_back(&self) -> Option<InFlight> {
        self.shared.state.lock().queue.take_back()
    }

    /// Starts a device that has been reset, with the rings it had.
    fn restart(&mut self) -> Result<(), TransportError> {
        self.transport.negotiate(FEATURES)?;
        let mut state = self.shared.state.lock();
        state.queue.restart();
        let size = state.queue.size();
        state.doorbell = connect(&self.transport, state.queue.memory(), size)?;
        self.transport.start();
        state.phase = Phase::Running;
        Ok(())
    }

    /// Leaves a device that was reset as it is.
    fn give_up(&self) {
        self.transport.device().disable_bus_master();
        self.shared.state.lock().phase = Phase::Gone;
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let phase = self.shared.state.lock().phase;
        if phase == Phase::Running {
            self.stop_device(Phase::Gone);
            self.transport.device().disable_bus_master();
        }
        self.shared.stopped.signal();
    }
}

/// Why a request that was taken back from a device that has been reset failed.
fn failure(flight: &InFlight, faults: FaultWatch, now_ns: u64) -> BlockError {
    if faults.doubt(flight.faults) != Doubt::None {
        BlockError::Blocked
    } else if flight.deadline_ns <= now_ns {
        BlockError::TimedOut
    } else {
        BlockError::Reset
    }
}

/// Tells the device about its queue and its interrupts.
fn connect(transport: &Transport, rings: &Rings, size: u16) -> Result<Doorbell, TransportError> {
    let [descriptors, available, used] = rings.addresses();
    transport.set_config_vector(CONFIG_ENTRY)?;
    transport.set_queue(QUEUE, size, QueueAddresses { descriptors, available, used }, QUEUE_ENTRY)
}

/// The size to use of a queue that may have up to `limit` descriptors: a power of two.
fn queue_size(limit: u16) -> Result<u16, DiskError> {
    let limit = limit.min(QUEUE_SIZE_LIMIT);
    if limit < DESCRIPTORS {
        return Err(DiskError::QueueTooSmall(limit));
    }
    // At least 2, and rounded down.
    match 1 << limit.ilog2() {
        size if size < DESCRIPTORS => Err(DiskError::QueueTooSmall(size)),
        size => Ok(size),
    }
}

/// Why a device is reset.
enum Trouble {
    /// It broke the protocol of its queue.
    Queue(crate::virtio::QueueError),
    /// It asks for it, or does not answer at all.
    AskedForReset,
    /// It did not finish a request in time.
    Overdue,
    /// Its owner wants it.
    Requested,
}

impl core::fmt::Display for Trouble {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Queue(error) => error.fmt(f),
            Self::AskedForReset => f.write_str("the device asks for a reset"),
            Self::Overdue => f.write_str("a request is overdue"),
            Self::Requested => f.write_str("its owner wants it reset"),
        }
    }
}
