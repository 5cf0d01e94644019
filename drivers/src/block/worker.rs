//! A queue's thread: takes finished requests back and completes them.

use alloc::{collections::TryReserveError, sync::Arc, vec::Vec};
use core::{mem, sync::atomic::Ordering};

use iommu::dma::FaultCounts;

use super::{
    BlockError,
    batch::Batch,
    engine::{Channel, Phase, Refused, Running, Shared},
    flight::{Done, InFlight},
    hardware::Queue,
};
use crate::faults::Doubt;

/// What a queue's thread owns.
pub struct Worker<Q: Queue> {
    shared: Arc<Shared<Q>>,
    index: usize,
    /// Requests on their way from the queue to their owners; room for all that the queue can have.
    done: Vec<Done>,
    batch: Batch,
    /// Some owner has not taken what was completed before.
    is_ahead: bool,
    _running: Running<Q>,
}

/// What there was to take.
enum Collected {
    /// Everything; the next one raises the interrupt.
    All,
    /// There is more than there was room for.
    Some,
}

impl<Q: Queue> Worker<Q> {
    /// The worker of queue number `index`.
    pub fn new(shared: &Arc<Shared<Q>>, index: usize) -> Result<Self, TryReserveError> {
        let mut done = Vec::new();
        let depth = shared.channels[index].state.lock().queue.depth();
        done.try_reserve_exact(depth)?;
        let batch = Batch::new(depth)?;
        Ok(Self {
            shared: shared.clone(),
            index,
            done,
            batch,
            is_ahead: false,
            _running: Running::new(shared),
        })
    }

    /// The thread: until the device is shut down.
    pub fn run(mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            // The keeper wakes who misses an interrupt.
            self.channel().wake.wait(u64::MAX);
            while let Collected::Some = self.turn() {}
            // An owner that is behind goes first: it misses nothing meanwhile. Another of this queue's waits for at
            // most a slice of each thread that is ready. What the device finishes until then wakes nobody, and comes
            // back with one flush.
            if mem::take(&mut self.is_ahead) {
                self.shared.host.yield_now();
            }
        }
    }

    fn channel(&self) -> &Channel<Q> {
        &self.shared.channels[self.index]
    }

    /// Completes what the device has finished.
    fn turn(&mut self) -> Collected {
        let collected = self.collect();
        let faults = self.shared.faults.check(&self.shared.dma);
        self.deliver(faults);
        collected
    }

    /// Moves what the device has finished to `done`, as far as there is room.
    fn collect(&mut self) -> Collected {
        let mut state = self.shared.channels[self.index].state.lock();
        if state.phase != Phase::Running || state.is_broken {
            return Collected::All;
        }
        loop {
            if self.done.len() == self.done.capacity() {
                return Collected::Some;
            }
            match state.queue.take_finished() {
                Ok(Some(done)) => self.done.push(done),
                Ok(None) if state.queue.rearm() => {}
                Ok(None) => return Collected::All,
                Err(error) => {
                    state.is_broken = true;
                    drop(state);
                    let resets = self.shared.resets.load(Ordering::Relaxed) + 1;
                    // A device that misbehaves for ever fills no log.
                    if resets.is_power_of_two() {
                        log::warn!("{} {}: {error}", self.shared.info.driver, self.shared.dma.function());
                    }
                    self.shared.attention.raise(&self.shared.attention.broken);
                    return Collected::All;
                }
            }
        }
    }

    /// Completes the requests in `done`. One that a fault may have met, and nobody knows whose, is done again for as
    /// long as there is time.
    fn deliver(&mut self, faults: FaultCounts) {
        if self.done.is_empty() {
            return;
        }
        let now_ns = self.shared.host.now_ns();
        for Done { flight, result } in self.done.drain(..) {
            let result = match Doubt::of(flight.faults, faults) {
                Doubt::None => result,
                Doubt::Repeat if flight.repeat_until_ns > now_ns => {
                    let InFlight { job, promise, repeat_until_ns, .. } = flight;
                    if let Err(Refused { job, promise, .. }) =
                        self.shared.start(job, promise, Some(repeat_until_ns))
                    {
                        job.finish(promise, Err(BlockError::Blocked));
                    }
                    continue;
                }
                Doubt::Repeat | Doubt::Blocked => Err(BlockError::Blocked),
            };
            if result.is_ok() {
                self.shared.fruitless_resets.store(0, Ordering::Relaxed);
            }
            self.is_ahead |= self.batch.add(flight, result);
        }
        self.is_ahead |= self.batch.finish(&self.shared.dma);
    }
}
