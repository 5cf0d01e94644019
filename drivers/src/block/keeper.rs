//! The thread that owns the device: deadlines, status, recovery, shutdown.

use alloc::sync::Arc;
use core::{fmt, mem, sync::atomic::Ordering};

use iommu::dma::FaultCounts;

use super::{
    BlockError,
    engine::{Phase, Running, Shared},
    flight::InFlight,
    hardware::{Hardware, Queue, Stop},
};
use crate::{faults::Doubt, host::Event, quiet::is_taken_back};

/// How often deadlines and the device's status are looked at when nothing happens.
const WATCH_INTERVAL_NS: u64 = 1_000_000_000;

/// How long a device may take to end a request that it was asked to abort.
const ABORT_DEADLINE_NS: u64 = 2_000_000_000;

/// How long it may take to take a device back, and how often it is looked whether it has been.
const RELEASE_DEADLINE_NS: u64 = 10_000_000_000;
const RELEASE_LOOK_NS: u64 = 10_000_000;

/// Resets in a row, with no request done in between, after which a device is given up.
const FRUITLESS_RESETS: u32 = 4;

/// What the keeper's thread owns. Dropping it makes the device quiet, fails what it has and ends the workers.
pub struct Keeper<H: Hardware, Q: Queue> {
    shared: Arc<Shared<Q>>,
    hardware: H,
    next_watch_ns: u64,
    /// When an overdue request that is being aborted must have ended.
    abort_deadline_ns: Option<u64>,
    /// Last: who waits for the end finds the device's registers and vectors free.
    _running: Running<Q>,
}

impl<H: Hardware, Q: Queue> Keeper<H, Q> {
    pub fn new(shared: &Arc<Shared<Q>>, hardware: H) -> Self {
        let running = Running::new(shared);
        Self {
            shared: shared.clone(),
            hardware,
            next_watch_ns: 0,
            abort_deadline_ns: None,
            _running: running,
        }
    }

    /// Starts the device, which is reset and has nothing to do.
    pub fn start(&mut self) -> Result<(), H::Error> {
        self.hardware.start()?;
        self.shared.enter(Phase::Running);
        Ok(())
    }

    /// The thread: until the device is shut down.
    pub fn run(mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            let deadline_ns = self.shared.host.now_ns().saturating_add(WATCH_INTERVAL_NS);
            self.shared.attention.wait(deadline_ns);
            if let Err(cause) = self.turn() {
                self.recover(cause);
            }
        }
    }

    /// Looks at whatever wants attention. An error is a reason to reset the device.
    fn turn(&mut self) -> Result<(), Trouble> {
        let attention = &self.shared.attention;
        if self.shared.phase() == Phase::Running && attention.quarantined.load(Ordering::Acquire) {
            self.seclude();
            return Ok(());
        }
        if self.shared.phase() == Phase::Running && attention.taken.load(Ordering::Acquire) {
            self.leave();
            return Ok(());
        }
        if attention.broken.swap(false, Ordering::AcqRel) {
            return Err(Trouble::Broken);
        }
        if attention.status.swap(false, Ordering::AcqRel) && !self.hardware.is_running() {
            return Err(Trouble::AskedForReset);
        }
        if attention.reset.swap(false, Ordering::AcqRel) {
            return Err(Trouble::Requested);
        }
        self.watch()
    }

    /// Once in a while: deadlines, and the status of a device whose interrupt may have been lost.
    fn watch(&mut self) -> Result<(), Trouble> {
        let now_ns = self.shared.host.now_ns();
        if now_ns < self.next_watch_ns || self.shared.phase() != Phase::Running {
            return Ok(());
        }
        self.next_watch_ns = now_ns.saturating_add(WATCH_INTERVAL_NS);
        if !self.hardware.is_running() {
            return Err(Trouble::AskedForReset);
        }
        let mut overdue = None;
        for (index, channel) in self.shared.channels.iter().enumerate() {
            let state = channel.state.lock();
            let (in_flight, late) = (state.queue.in_flight(), state.queue.overdue(now_ns));
            drop(state);
            if in_flight > 0 {
                channel.wake.signal();
            }
            overdue = overdue.or(late.map(|request| (index, request)));
        }
        self.judge(overdue, now_ns)
    }

    /// A request that is late is aborted, if the device knows how to; the device is reset if that does not help.
    fn judge(&mut self, overdue: Option<(usize, u16)>, now_ns: u64) -> Result<(), Trouble> {
        let Some((queue, request)) = overdue else {
            self.abort_deadline_ns = None;
            return Ok(());
        };
        match self.abort_deadline_ns {
            Some(deadline_ns) if now_ns < deadline_ns => Ok(()),
            None if self.hardware.abort(queue, request) => {
                let now_ns = self.shared.host.now_ns();
                self.abort_deadline_ns = Some(now_ns.saturating_add(ABORT_DEADLINE_NS));
                Ok(())
            }
            _ => Err(Trouble::Overdue),
        }
    }

    /// Resets the device, fails what it had, and starts it again.
    fn recover(&mut self, cause: Trouble) {
        let function = self.shared.dma.function();
        if self.shared.phase() != Phase::Running {
            return;
        }
        // Before it is counted: who sees the count and then a request done knows that the reset is over.
        self.shared.enter(Phase::Resetting);
        let resets = self.shared.resets.fetch_add(1, Ordering::Release) + 1;
        // A device that misbehaves for ever fills no log.
        if resets.is_power_of_two() {
            log::warn!("{} {function}: {cause}; reset {resets}", H::NAME);
        }
        self.abort_deadline_ns = None;
        if !self.halt(Phase::Resetting) {
            return;
        }
        if self.shared.attention.quarantined.load(Ordering::Acquire) {
            // Starting it would turn bus mastering on.
            return self.seclude();
        }
        if self.shared.attention.taken.load(Ordering::Acquire) {
            return self.leave();
        }
        if self.shared.fruitless_resets.fetch_add(1, Ordering::Relaxed) >= FRUITLESS_RESETS {
            log::error!("{} {function}: given up after {resets} resets", H::NAME);
            self.shared.enter(Phase::Gone);
            return self.hardware.disconnect();
        }
        for channel in &self.shared.channels {
            let mut state = channel.state.lock();
            state.queue.restart();
            state.is_broken = false;
        }
        if let Err(error) = self.start() {
            log::error!("{} {function}: {error} after a reset", H::NAME);
            self.halt(Phase::Gone);
            self.hardware.disconnect();
        }
    }

    /// The device is in quarantine: what it has fails at once, whether or not it still answers, and it is not started
    /// again. After its release another driver does that.
    fn seclude(&mut self) {
        let function = self.shared.dma.function();
        self.shared.enter(Phase::Quarantined);
        log::warn!("{} {function}: in quarantine, its requests fail", H::NAME);
        // It reaches nothing, quiet or not, and what was mapped for it stays until its release.
        self.take_back(|flight| flight.finish(Err(BlockError::Quarantined)));
        if let Err(error) = self.hardware.stop(Stop::CutOff) {
            log::warn!("{} {function}: {error}", H::NAME);
        }
        self.hardware.disconnect();
    }

    /// The device is being taken back. It reaches nothing from here on, and nothing is asked of it: what it has fails,
    /// with the buffers, when it is quiet. It may be another driver's then.
    fn leave(&mut self) {
        let shared = &self.shared;
        shared.enter(Phase::Gone);
        let deadline_ns = shared.host.now_ns().saturating_add(RELEASE_DEADLINE_NS);
        while !shared.dma.was_taken_back() {
            let now_ns = shared.host.now_ns();
            if shared.attention.quarantined.load(Ordering::Acquire) || now_ns >= deadline_ns {
                return self.seclude();
            }
            shared.attention.wait(now_ns.saturating_add(RELEASE_LOOK_NS));
        }
        // Who takes it says so, and not each time that a device comes and goes.
        log::debug!("{} {}: taken back, its requests fail", H::NAME, shared.dma.function());
        self.take_back(|flight| flight.finish(Err(BlockError::Gone)));
    }

    /// Makes the device quiet and fails what it has. The phase is `next` afterwards if it is quiet, which is returned.
    fn halt(&mut self, next: Phase) -> bool {
        self.shared.enter(Phase::Resetting);
        let how = if next == Phase::Gone { Stop::ForGood } else { Stop::ToRestart };
        // Whoever took it away in the middle of that has made it quiet.
        let quiet = self.hardware.stop(how).or_else(|error| {
            if is_taken_back(&*self.shared.host, &self.shared.dma) { Ok(()) } else { Err(error) }
        });
        if let Err(error) = &quiet {
            log::error!("{} {}: {error}; its memory stays pinned", H::NAME, self.shared.dma.function());
            self.hardware.disconnect();
            self.shared.enter(Phase::NotQuiet);
            // The queues stay as they are even when everybody has let go of the device.
            mem::forget(self.shared.clone());
        }
        let faults = self.shared.faults.check(&self.shared.dma);
        let now_ns = self.shared.host.now_ns();
        self.take_back(|flight| match quiet {
            Ok(()) if next == Phase::Gone => flight.finish(Err(BlockError::Gone)),
            Ok(()) => {
                let error = failure(&flight, faults, now_ns);
                flight.finish(Err(error));
            }
            Err(_) => flight.pin(),
        });
        if quiet.is_ok() {
            self.shared.enter(next);
        }
        quiet.is_ok()
    }

    /// Passes each request that the device has to `end`: one at a time, because giving memory back must not happen
    /// under the lock.
    fn take_back(&self, end: impl Fn(InFlight)) {
        for channel in &self.shared.channels {
            while let Some(flight) = { channel.state.lock().queue.take_back() } {
                end(flight);
            }
        }
    }
}

impl<H: Hardware, Q: Queue> Drop for Keeper<H, Q> {
    fn drop(&mut self) {
        if matches!(self.shared.phase(), Phase::Running | Phase::Resetting) {
            self.halt(Phase::Gone);
            self.hardware.disconnect();
        }
        self.shared.stop.store(true, Ordering::Release);
        for channel in &self.shared.channels {
            channel.wake.signal();
        }
    }
}

/// Why a request that was taken back from a device that has been reset failed.
fn failure(flight: &InFlight, faults: FaultCounts, now_ns: u64) -> BlockError {
    if Doubt::of(flight.faults, faults) != Doubt::None {
        BlockError::Blocked
    } else if flight.deadline_ns <= now_ns {
        BlockError::TimedOut
    } else {
        BlockError::Reset
    }
}

/// Why a device is reset.
enum Trouble {
    /// It broke the protocol of a queue.
    Broken,
    /// It asks for it, or does not answer at all.
    AskedForReset,
    /// It did not finish a request in time.
    Overdue,
    /// Its owner wants it.
    Requested,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Broken => "it broke the protocol of its queue",
            Self::AskedForReset => "it asks for a reset",
            Self::Overdue => "a request is overdue",
            Self::Requested => "its owner wants it reset",
        })
    }
}
