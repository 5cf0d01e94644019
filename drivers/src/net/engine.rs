//! What network drivers have in common: received frames on their way to the owner, faults, recovery.
//!
//! A frame is handed on if the device says that it has arrived *and* no fault of the device was counted since it got
//! its buffer. A device that breaks its protocol, asks for a reset, or leaves a frame unsent for too long is reset, and
//! what it had is lost; buffers and rings are used again only after it has become quiet, and stay pinned if it does
//! not.

use alloc::{boxed::Box, collections::VecDeque, sync::Arc};
use core::{
    fmt, mem,
    ops::{Deref, DerefMut},
};

use iommu::{DmaDevice, dma::FaultCounts};

use super::{
    Checksum, Counters, HEADER_BYTES, Link, NetDevice, NetInfo, NotQuiet, TransmitError,
    attention::Attention,
    rings::{Arrived, Awaited, Rings},
};
use crate::{
    faults::Doubt,
    host::{Event, Host},
    quiet::is_taken_back,
};

/// How long a device may take to send a frame.
pub const TRANSMIT_DEADLINE_NS: u64 = 5_000_000_000;

/// How often deadlines and the device's status are looked at when nothing happens.
pub const WATCH_INTERVAL_NS: u64 = 1_000_000_000;

/// Resets in a row, with no frame moved in between, after which a device is given up.
pub const FRUITLESS_RESETS: u32 = 4;

/// What a driver has found out and set up, with the device not started yet.
pub struct Setup<R> {
    pub dma: DmaDevice,
    pub info: NetInfo,
    pub wake: Arc<dyn Event>,
    pub attention: Arc<Attention>,
    pub rings: R,
}

/// Why the engine could not be started.
pub enum EngineError<E> {
    /// No memory for bookkeeping.
    OutOfMemory,
    /// The device does not work.
    Rings(E),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Running,
    /// Reset for good.
    Gone,
    /// Out of order, and it may still reach what it has been given.
    NotQuiet,
}

/// A network device in use.
pub struct Engine<R: Rings> {
    host: Arc<dyn Host>,
    dma: DmaDevice,
    info: NetInfo,
    wake: Arc<dyn Event>,
    attention: Arc<Attention>,
    rings: Held<R>,
    phase: Phase,
    link: Link,
    /// Since when the link has been as it is.
    link_since_ns: u64,
    /// Frames that have arrived and that no fault makes doubtful. It never grows.
    arrived: VecDeque<Arrived>,
    /// At the last look.
    faults: FaultCounts,
    fruitless_resets: u32,
    next_watch_ns: u64,
    counters: Counters,
}

impl<R: Rings> Engine<R> {
    /// Starts the device.
    ///
    /// # Errors
    /// See [`EngineError`]. The device is left quiet, and without bus mastering.
    pub fn start(host: &Arc<dyn Host>, setup: Setup<R>) -> Result<Self, EngineError<R::Error>> {
        let Setup { dma, info, wake, attention, rings } = setup;
        let mut arrived = VecDeque::new();
        arrived.try_reserve_exact(info.receive_depth).map_err(|_| EngineError::OutOfMemory)?;
        let mut engine = Self {
            host: host.clone(),
            faults: dma.fault_counts(),
            dma,
            info,
            wake,
            attention,
            rings: Held(Some(rings)),
            phase: Phase::Running,
            link: Link::Down,
            link_since_ns: 0,
            arrived,
            fruitless_resets: 0,
            next_watch_ns: 0,
            counters: Counters::default(),
        };
        engine.attention.watch(&engine.dma);
        // Whatever fails drops the engine, which leaves the device quiet.
        engine.rings.start().map_err(EngineError::Rings)?;
        engine.rings.refill(engine.faults);
        engine.look_at_link(host.now_ns());
        Ok(engine)
    }

    /// Takes what the device has finished. An error is a reason to reset it.
    fn turn(&mut self) -> Result<(), Trouble<R::Error>> {
        let before = self.arrived.len();
        let taken = self.take_received();
        let mut sent = 0;
        while self.rings.take_sent().map_err(Trouble::Protocol)? {
            sent += 1;
        }
        self.counters.sent += sent;
        if before < self.arrived.len() {
            self.drop_doubtful(before);
        }
        if sent > 0 || before < self.arrived.len() {
            self.fruitless_resets = 0;
        }
        taken?;
        self.rings.refill(self.faults);
        let now_ns = self.host.now_ns();
        let is_due = now_ns >= self.next_watch_ns;
        if self.attention.take_wanted() || is_due {
            self.next_watch_ns = now_ns.saturating_add(WATCH_INTERVAL_NS);
            self.watch(now_ns)?;
        }
        Ok(())
    }

    /// Moves filled buffers to `arrived`, as far as there is room; the device has no more buffers than that.
    fn take_received(&mut self) -> Result<(), Trouble<R::Error>> {
        while self.arrived.len() < self.arrived.capacity() {
            let Some(arrived) = self.rings.take_received().map_err(Trouble::Protocol)? else {
                return Ok(());
            };
            let is_frame = (HEADER_BYTES..=self.info.frame_bytes).contains(&arrived.bytes);
            if arrived.is_good && is_frame {
                self.arrived.push_back(arrived);
            } else {
                self.counters.damaged += 1;
            }
        }
        Ok(())
    }

    /// Drops those frames from number `first` on during whose stay with the device an access of it was, or may have
    /// been, blocked. The counts are read after the device's word was taken: a fault that it keeps quiet about is in
    /// them.
    fn drop_doubtful(&mut self, first: usize) {
        self.faults = self.dma.fault_counts();
        let (now, before) = (self.faults, self.arrived.len());
        let mut number = 0;
        self.arrived.retain(|arrived| {
            number += 1;
            number <= first || Doubt::of(arrived.faults, now) == Doubt::None
        });
        self.counters.doubtful += (before - self.arrived.len()) as u64;
    }

    /// Once in a while, and when the device asks for it: its status, its link, and what it should have sent.
    fn watch(&mut self, now_ns: u64) -> Result<(), Trouble<R::Error>> {
        if !self.rings.is_running() {
            return Err(Trouble::AskedForReset);
        }
        self.look_at_link(now_ns);
        // What the device had when the link went down waits until it is up, and has all its time from then on.
        let since_ns = now_ns.saturating_sub(TRANSMIT_DEADLINE_NS);
        if self.link == Link::Up && self.link_since_ns < since_ns && self.rings.has_unsent(since_ns) {
            return Err(Trouble::Overdue);
        }
        Ok(())
    }

    fn look_at_link(&mut self, now_ns: u64) {
        let link = self.rings.link();
        if self.link != link {
            (self.link, self.link_since_ns) = (link, now_ns);
        }
    }

    /// Resets the device and starts it again.
    fn recover(&mut self, cause: Trouble<R::Error>) {
        let function = self.dma.function();
        self.counters.resets += 1;
        let resets = self.counters.resets;
        // A device that misbehaves for ever fills no log.
        if resets.is_power_of_two() {
            log::warn!("{} {function}: {cause}; reset {resets}", R::NAME);
        }
        self.quieten(Phase::Running);
        if self.phase != Phase::Running {
            return;
        }
        if self.attention.is_taken() {
            // Starting it would turn bus mastering on.
            return self.seclude();
        }
        self.fruitless_resets += 1;
        if self.fruitless_resets > FRUITLESS_RESETS {
            log::error!("{} {function}: given up after {resets} resets", R::NAME);
            return self.quieten(Phase::Gone);
        }
        if let Err(error) = self.rings.start() {
            log::error!("{} {function}: {error} after a reset", R::NAME);
            return self.quieten(Phase::Gone);
        }
        self.rings.refill(self.faults);
        self.look_at_link(self.host.now_ns());
    }

    /// The device is in quarantine, or taken away: it is stopped, and not started again. After its release another
    /// driver does that.
    fn seclude(&mut self) {
        // Who does that says so, and not each time that a device comes and goes.
        log::debug!("{} {}: in quarantine or taken away, and stopped", R::NAME, self.dma.function());
        self.quieten(Phase::Gone);
    }

    /// Makes the device quiet and takes back what it has. The phase is `next` afterwards, if it is quiet.
    fn quieten(&mut self, next: Phase) {
        self.link = Link::Down;
        // What had arrived may be what the device was reset for.
        self.counters.lost += self.arrived.drain(..).count() as u64;
        match self.rings.stop() {
            // Whoever took it away in the middle of that has made it quiet.
            Err(error) if !is_taken_back(&*self.host, &self.dma) => {
                log::error!("{} {}: {error}; its memory stays pinned", R::NAME, self.dma.function());
                self.phase = Phase::NotQuiet;
            }
            _ => {
                self.counters.lost += self.rings.clear();
                self.phase = next;
            }
        }
        self.faults = self.dma.fault_counts();
        if self.phase != Phase::Running {
            self.rings.disconnect();
        }
    }
}

impl<R: Rings> NetDevice for Engine<R> {
    fn info(&self) -> NetInfo {
        self.info
    }

    fn link(&self) -> Link {
        self.link
    }

    fn event(&self) -> Arc<dyn Event> {
        self.wake.clone()
    }

    fn service_by_ns(&self) -> u64 {
        if self.phase == Phase::Running { self.next_watch_ns } else { u64::MAX }
    }

    fn service(&mut self) {
        if self.phase != Phase::Running {
            return;
        }
        if self.attention.is_taken() {
            self.seclude();
        } else if let Err(cause) = self.turn() {
            self.recover(cause);
        }
    }

    fn receive(&mut self, frame: &mut [u8]) -> Option<usize> {
        let Arrived { buffer, offset, bytes, .. } = self.arrived.pop_front()?;
        let frame = frame.get_mut(..bytes)?;
        buffer.copy_to(offset, frame);
        self.counters.received += 1;
        self.counters.received_bytes += bytes as u64;
        Some(bytes)
    }

    fn room(&self) -> usize {
        if self.phase == Phase::Running && self.link == Link::Up { self.rings.room() } else { 0 }
    }

    fn transmit(&mut self, frame: &[u8], checksum: Option<Checksum>) -> Result<(), TransmitError> {
        if self.phase != Phase::Running {
            return Err(TransmitError::Gone);
        }
        if self.link == Link::Down {
            return Err(TransmitError::NoLink);
        }
        let bytes = frame.len();
        if !(HEADER_BYTES..=self.info.frame_bytes).contains(&bytes) {
            return Err(TransmitError::BadLength { bytes });
        }
        if checksum.is_some_and(|checksum| !self.info.transmit_checksum || !checksum.fits(bytes)) {
            return Err(TransmitError::BadChecksum);
        }
        if self.rings.queue(frame, checksum, self.host.now_ns()) { Ok(()) } else { Err(TransmitError::Full) }
    }

    fn flush(&mut self) {
        if self.phase == Phase::Running {
            self.rings.flush();
        }
    }

    fn rearm(&mut self) -> bool {
        self.phase == Phase::Running && {
            // What the owner has taken meanwhile is free again.
            self.rings.refill(self.faults);
            // An owner that takes no frames, for want of room to answer them, is not woken by more of them.
            let frames = self.arrived.len() < self.arrived.capacity();
            let room = self.rings.room() == 0;
            self.rings.rearm(Awaited { frames, room })
        }
    }

    fn counters(&self) -> Counters {
        Counters { doorbells: self.rings.doorbells(), ..self.counters }
    }

    fn dma(&self) -> &DmaDevice {
        &self.dma
    }

    fn reset(&mut self) {
        if self.phase == Phase::Running {
            self.recover(Trouble::Requested);
        }
    }

    fn shut_down(mut self: Box<Self>) -> Result<(), NotQuiet> {
        if self.phase == Phase::Running {
            self.quieten(Phase::Gone);
        }
        if self.phase == Phase::Gone { Ok(()) } else { Err(NotQuiet) }
    }
}

impl<R: Rings> Drop for Engine<R> {
    fn drop(&mut self) {
        if self.phase == Phase::Running {
            self.quieten(Phase::Gone);
        }
        if self.phase == Phase::NotQuiet {
            self.rings.pin();
        }
    }
}

/// Rings that outlive their engine if the device may still reach what is in them.
struct Held<R>(Option<R>);

impl<R> Held<R> {
    /// Leaves everything as it is, for ever. The last thing that is done.
    fn pin(&mut self) {
        mem::forget(self.0.take());
    }
}

impl<R> Deref for Held<R> {
    type Target = R;

    fn deref(&self) -> &R {
        match &self.0 {
            Some(rings) => rings,
            None => unreachable!("they are there until the engine is dropped"),
        }
    }
}

impl<R> DerefMut for Held<R> {
    fn deref_mut(&mut self) -> &mut R {
        match &mut self.0 {
            Some(rings) => rings,
            None => unreachable!("they are there until the engine is dropped"),
        }
    }
}

/// Why a device is reset.
enum Trouble<E> {
    /// It broke the protocol of its rings.
    Protocol(E),
    /// It asks for it, or does not answer at all.
    AskedForReset,
    /// It did not send a frame in time.
    Overdue,
    /// Its owner wants it.
    Requested,
}

impl<E: fmt::Display> fmt::Display for Trouble<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(error) => error.fmt(f),
            Self::AskedForReset => f.write_str("the device asks for a reset"),
            Self::Overdue => f.write_str("a frame was not sent in time"),
            Self::Requested => f.write_str("its owner wants it reset"),
        }
    }
}
