//! Waiting for a batch.

use core::fmt;

use super::{
    MAX_PAGE_DESCRIPTORS, Pending, Queue,
    deadline::{Deadline, Limits},
    error::InvalidationError,
    invalidation::{Invalidation, IotlbScope},
    job::{Job, MAX_ITEMS},
    slots::{Blame, OwnedSlot, Status},
};
use crate::{Platform, SourceId, dma::Stuck, vtd::unit::Hardware};

/// How often a waiter asks the unit for errors: reading a register is slow.
const ERROR_CHECK_NS: u64 = 20_000;

/// How often a batch is submitted again because somebody else's device did not answer. Each time costs that device
/// its driver, and takes the unit a minute.
const MAX_ATTEMPTS: usize = 16;

/// A batch of invalidations under way. Nothing may be taken for invalidated before [`wait`](Ticket::wait) says so.
#[must_use = "an invalidation is not done before it was waited for"]
pub struct Ticket<'a, P: Platform> {
    /// `None`: it was done at once.
    state: Option<State<'a, P>>,
}

struct State<'a, P: Platform> {
    hardware: &'a Hardware<P::Registers>,
    queue: &'a Queue,
    job: Job<'a>,
    pending: Pending,
}

/// How a job came out.
enum Outcome {
    /// All of it was carried out.
    Done,
    /// Something was refused.
    Refused,
    /// The unit dropped it because of a device. The main part was done already, or not.
    Dropped { blame: Blame, main_done: bool },
    /// A device missed its deadline, and the unit did not notice.
    DevicesLate,
}

impl<'a, P: Platform> Ticket<'a, P> {
    /// The ticket of something that is done already.
    pub(in crate::vtd) fn done() -> Self {
        Self { state: None }
    }

    #[inline]
    pub(in crate::vtd) fn submit(
        platform: &P,
        hardware: &'a Hardware<P::Registers>,
        queue: &'a Queue,
        batch: &'a [Invalidation],
    ) -> Result<Self, InvalidationError> {
        let last = match batch.len() {
            0 => return Ok(Self::done()),
            length => (length - 1) / MAX_ITEMS * MAX_ITEMS,
        };
        let (before, last) = batch.split_at(last);
        for chunk in before.chunks(MAX_ITEMS) {
            Self::submit_chunk(platform, hardware, queue, chunk)?.wait(platform)?;
        }
        Self::submit_chunk(platform, hardware, queue, last)
    }

    #[inline]
    fn submit_chunk(
        platform: &P,
        hardware: &'a Hardware<P::Registers>,
        queue: &'a Queue,
        batch: &'a [Invalidation],
    ) -> Result<Self, InvalidationError> {
        let job = Job::new(batch, hardware);
        let pending = queue.submit(platform, hardware, &job)?;
        Ok(Self { state: Some(State { hardware, queue, job, pending }) })
    }

    /// Whether [`wait`](Self::wait) would return at once. `false` may also mean that something went wrong, which only
    /// `wait` finds out.
    #[must_use]
    pub fn is_complete(&self, platform: &P) -> bool {
        let Some(state) = &self.state else { return true };
        let done = |slot: &OwnedSlot| matches!(state.queue.slots.status(platform, slot), Status::Done { .. });
        state.pending.main.iter().all(done) && state.pending.devices.iter().all(done)
    }

    /// Waits until the whole batch is carried out. The caller holds no lock.
    ///
    /// What a unit refuses is asked for again in its coarsest form; what was dropped because of a device that does not
    /// answer is asked for again without that device.
    ///
    /// # Errors
    /// [`InvalidationError::Stuck`]: the unit is given up. [`InvalidationError::DeviceTimeout`]: all was done but for
    /// the TLBs of devices that did not answer.
    pub fn wait(mut self, platform: &P) -> Result<(), InvalidationError> {
        let Some(State { hardware, queue, job, pending }) = self.state.take() else { return Ok(()) };
        queue.finish(platform, hardware, job, pending)
    }
}

impl Queue {
    /// Carries `batch` out: a [`Ticket`] that is waited for at once.
    ///
    /// # Errors
    /// Those of [`Ticket::wait`].
    #[inline]
    pub(in crate::vtd) fn carry_out<P: Platform>(
        &self,
        platform: &P,
        hardware: &Hardware<P::Registers>,
        batch: &[Invalidation],
    ) -> Result<(), InvalidationError> {
        for chunk in batch.chunks(MAX_ITEMS) {
            let job = Job::new(chunk, hardware);
            let pending = self.submit(platform, hardware, &job)?;
            self.finish(platform, hardware, job, pending)?;
        }
        Ok(())
    }

    /// The same for translations alone, which need no order among them: what most batches come to, and done most often
    /// when the unit is first looked at.
    #[inline(always)]
    pub(in crate::vtd) fn forget<P: Platform>(
        &self,
        platform: &P,
        hardware: &Hardware<P::Registers>,
        scopes: &[IotlbScope],
    ) -> Result<(), InvalidationError> {
        debug_assert!(scopes.len() <= MAX_PAGE_DESCRIPTORS, "more than a plan holds");
        hardware.check()?;
        let Some(slot) = self.try_submit_translations(platform, hardware, scopes) else {
            return self.forget_late(platform, hardware, scopes, None);
        };
        if let Status::Done { refused: false } = self.slots.status(platform, &slot) {
            self.slots.put_back(slot);
            return Ok(());
        }
        self.forget_late(platform, hardware, scopes, Some(slot))
    }

    /// What [`forget`](Self::forget) comes to if there was no room, and so no slot, or the unit is not done at once.
    #[cold]
    #[inline(never)]
    fn forget_late<P: Platform>(
        &self,
        platform: &P,
        hardware: &Hardware<P::Registers>,
        scopes: &[IotlbScope],
        slot: Option<OwnedSlot>,
    ) -> Result<(), InvalidationError> {
        let mut batch = [Invalidation::Iotlb(IotlbScope::Global); MAX_PAGE_DESCRIPTORS];
        let batch = &mut batch[..scopes.len()];
        batch.iter_mut().zip(scopes).for_each(|(item, &scope)| *item = Invalidation::Iotlb(scope));
        match slot {
            None => self.carry_out(platform, hardware, batch),
            main => {
                let job = Job::new(batch, hardware);
                self.finish(platform, hardware, job, Pending { main, devices: None })
            }
        }
    }

    /// Waits until all of `job` is carried out, whatever that takes.
    #[inline]
    fn finish<P: Platform>(
        &self,
        platform: &P,
        hardware: &Hardware<P::Registers>,
        job: Job<'_>,
        pending: Pending,
    ) -> Result<(), InvalidationError> {
        match self.outcome(platform, hardware, pending)? {
            Outcome::Done => Ok(()),
            outcome => self.finish_in_parts(platform, hardware, job, outcome),
        }
    }

    /// Carries out what an `outcome` has left of `job`.
    #[cold]
    fn finish_in_parts<P: Platform>(
        &self,
        platform: &P,
        hardware: &Hardware<P::Registers>,
        mut job: Job<'_>,
        mut outcome: Outcome,
    ) -> Result<(), InvalidationError> {
        let mut silent = Silent::default();
        for attempt in 1..=MAX_ATTEMPTS {
            match outcome {
                Outcome::Done => return silent.result(hardware),
                Outcome::Refused if job.is_coarse() => break,
                Outcome::Refused => job = job.coarse(),
                Outcome::Dropped { blame, main_done } => {
                    job = if main_done { job.devices_only() } else { job };
                    if let Some(source) = culprit(&job, blame) {
                        job = job.without_device(source);
                        silent.add(source);
                    }
                }
                Outcome::DevicesLate => {
                    job = job.devices_only();
                    break;
                }
            }
            if job.is_empty() {
                return silent.result(hardware);
            }
            if attempt == MAX_ATTEMPTS {
                break;
            }
            let pending = self.submit(platform, hardware, &job)?;
            outcome = self.outcome(platform, hardware, pending)?;
        }
        if job.has_main() {
            return Err(hardware.mark_stuck().into());
        }
        job.devices().for_each(|source| silent.add(source));
        silent.result(hardware)
    }
}

/// Devices that have not answered.
#[derive(Default)]
struct Silent {
    first: Option<u16>,
    others: bool,
}

impl Silent {
    fn add(&mut self, source: u16) {
        self.others |= self.first.is_some_and(|first| first != source);
        self.first = self.first.or(Some(source));
    }

    fn result<R>(self, hardware: &Hardware<R>) -> Result<(), InvalidationError> {
        let Some(requester) = self.first else { return Ok(()) };
        let source = SourceId { segment: hardware.segment, requester };
        Err(InvalidationError::DeviceTimeout { source, others: self.others })
    }
}

/// The device of `job` that did not answer, if it is one of its own. If the unit does not say which of them it was, the
/// first is taken for it, and stopped; should it be innocent, the next attempt finds the next.
fn culprit(job: &Job<'_>, blame: Blame) -> Option<u16> {
    let named = job.has_device(blame.source).then_some(blame.source);
    named.or_else(|| job.devices().next().filter(|_| blame.is_own))
}

impl Queue {
    /// Waits for both parts of a job.
    #[inline]
    fn outcome<P: Platform>(
        &self,
        platform: &P,
        hardware: &Hardware<P::Registers>,
        pending: Pending,
    ) -> Result<Outcome, Stuck> {
        let Pending { main, devices } = pending;
        let mut refused = false;
        if let Some(slot) = main {
            match self.wait_for(platform, hardware, &slot, Limits::UNIT) {
                Waited::Done { refused: main_refused } => {
                    refused = main_refused;
                    self.slots.put_back(slot);
                }
                Waited::Dropped(blame) => {
                    [Some(slot), devices].into_iter().flatten().for_each(|slot| self.slots.orphan(slot));
                    return Ok(Outcome::Dropped { blame, main_done: false });
                }
                Waited::Expired | Waited::Stuck => {
                    [Some(slot), devices].into_iter().flatten().for_each(|slot| self.slots.pin(slot));
                    return Err(hardware.mark_stuck());
                }
            }
        }
        match devices {
            Some(slot) => self.devices_outcome(platform, hardware, slot, refused),
            None => Ok(done(refused)),
        }
    }

    /// Waits for the device TLBs of a job whose main part is done, or was `refused`.
    fn devices_outcome<P: Platform>(
        &self,
        platform: &P,
        hardware: &Hardware<P::Registers>,
        slot: OwnedSlot,
        refused: bool,
    ) -> Result<Outcome, Stuck> {
        match self.wait_for(platform, hardware, &slot, Limits::DEVICES) {
            Waited::Done { refused: devices_refused } => {
                self.slots.put_back(slot);
                Ok(done(refused || devices_refused))
            }
            Waited::Dropped(blame) => {
                self.slots.orphan(slot);
                Ok(if refused { Outcome::Refused } else { Outcome::Dropped { blame, main_done: true } })
            }
            Waited::Expired => {
                self.slots.pin(slot);
                Ok(if refused { Outcome::Refused } else { Outcome::DevicesLate })
            }
            Waited::Stuck => {
                self.slots.pin(slot);
                Err(hardware.stuck())
            }
        }
    }

    /// Waits for one slot. Most often it is done already, and nobody asks what time it is.
    #[inline]
    fn wait_for<P: Platform>(
        &self,
        platform: &P,
        hardware: &Hardware<P::Registers>,
        slot: &OwnedSlot,
        limits: Limits,
    ) -> Waited {
        match self.slots.status(platform, slot) {
            Status::Done { refused } => Waited::Done { refused },
            _ => self.wait_longer(platform, hardware, slot, limits),
        }
    }

    /// Waits for a slot that was not done at first. The deadline counts from here; that a device before it may yet
    /// answer is an excuse.
    #[inline(never)]
    fn wait_longer<P: Platform>(
        &self,
        platform: &P,
        hardware: &Hardware<P::Registers>,
        slot: &OwnedSlot,
        limits: Limits,
    ) -> Waited {
        let mut deadline = Deadline::new(limits, platform.now_ns());
        loop {
            // Before the status: a waiter that was kept from running finds out what the unit did in the meantime.
            let now = platform.now_ns();
            match self.slots.status(platform, slot) {
                Status::Done { refused } => return Waited::Done { refused },
                Status::Dropped(blame) => return Waited::Dropped(blame),
                Status::Waiting => {}
            }
            if hardware.is_stuck() {
                return Waited::Stuck;
            }
            if deadline.unseen_ns(now) > ERROR_CHECK_NS {
                let recovered = self.recover(platform, hardware);
                let behind_device = self.slots.devices_outstanding(platform, self.slots.position(slot));
                if deadline.is_over(now, recovered || behind_device) {
                    return Waited::Expired;
                }
            }
            platform.relax();
        }
    }
}

/// How waiting for one slot came out.
enum Waited {
    Done {
        refused: bool,
    },
    Dropped(Blame),
    /// Past its deadline.
    Expired,
    /// The unit was given up.
    Stuck,
}

fn done(refused: bool) -> Outcome {
    if refused { Outcome::Refused } else { Outcome::Done }
}

impl<P: Platform> Drop for Ticket<'_, P> {
    fn drop(&mut self) {
        let Some(State { queue, pending, .. }) = self.state.take() else { return };
        pending.main.into_iter().chain(pending.devices).for_each(|slot| queue.slots.orphan(slot));
    }
}

impl<P: Platform> fmt::Debug for Ticket<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("done_at_once", &self.state.is_none()).finish_non_exhaustive()
    }
}
