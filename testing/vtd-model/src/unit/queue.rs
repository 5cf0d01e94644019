//! The invalidation queue.

use std::collections::VecDeque;

use super::{Unit, descriptors::Stage, global};
use crate::{complaints::Rule, entries::bits, faults::status, world::World};

/// Why a descriptor was refused, as IQERCD says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refused {
    Tail = 1,
    Fetch = 2,
    Type = 3,
    Reserved = 4,
    Width = 5,
    Alignment = 6,
    Mode = 7,
}

/// What was fetched and has not finished.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outstanding {
    /// An invalidation that a device has not answered; it has until then.
    Device {
        source: u16,
        address: u64,
        size: bool,
        until_ns: u64,
    },
    Wait(Wait),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    pub status: Option<(u64, u32)>,
    pub interrupt: bool,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// IQA.
    pub address: u64,
    head: u32,
    tail: u32,
    /// No fetch before this time.
    due_ns: u64,
    /// After an IQE, until the tail is written.
    wants_tail: bool,
    pub(super) outstanding: VecDeque<Outstanding>,
    /// Statuses that misbehaving hardware writes later: when, where, what.
    late: VecDeque<(u64, u64, u32)>,
    /// The last cache but the IOTLB that was invalidated since the last wait.
    pub(super) in_batch: Option<Stage>,
    /// The descriptor before the head was a wait.
    pub(super) ends_in_wait: bool,
    /// IQERCD.
    error: u64,
}

/// IQA.DW: descriptors of 256 bits.
const WIDE: u64 = 1 << 11;
const ERRORS: u32 = status::QUEUE | status::COMPLETION | status::TIME_OUT;

impl Queue {
    fn entries(&self) -> u32 {
        1 << ((self.address & 7) + 8 - u64::from(self.is_wide()))
    }

    pub fn is_wide(&self) -> bool {
        self.address & WIDE != 0
    }

    fn descriptor_bytes(&self) -> u64 {
        if self.is_wide() { 32 } else { 16 }
    }

    pub fn head_register(&self) -> u64 {
        u64::from(self.head) * self.descriptor_bytes()
    }

    pub fn tail_register(&self) -> u64 {
        u64::from(self.tail) * self.descriptor_bytes()
    }

    pub fn error_register(&self) -> u64 {
        self.error
    }

    /// Descriptors between head and tail.
    fn length_to(&self, tail: u32) -> u32 {
        tail.wrapping_sub(self.head) & (self.entries() - 1)
    }

    pub fn scramble(&mut self, random: &mut crate::random::Random) {
        self.address = random.bits() & bits(45, 12) | random.below(8);
        self.tail = random.below(self.entries().into()) as u32;
    }
}

impl Unit {
    /// The queue as firmware leaves it: on and empty.
    pub(super) fn leave_queue_on(&mut self, address: u64) {
        self.queue = Queue { address, ..Queue::default() };
    }

    pub(super) fn turn_queue_on(&mut self, world: &World) {
        let width = if self.config.scalable { 0 } else { WIDE };
        if self.queue.address & (width | bits(10, 3)) != 0 {
            self.complain(world, Rule::ReservedBits, format!("IQA {:#x}", self.queue.address));
        }
        if self.queue.tail != 0 {
            self.complain(world, Rule::QueueTail, "the queue was turned on with a tail that is not 0");
        }
        self.queue = Queue { address: self.queue.address, tail: self.queue.tail, ..Queue::default() };
    }

    pub(super) fn has_wide_queue(&self) -> bool {
        self.is_on(global::QUEUE) && self.queue.is_wide()
    }

    pub(super) fn turn_queue_off(&mut self, world: &World) {
        let queue = &self.queue;
        let idle = queue.head == queue.tail && queue.outstanding.is_empty() && queue.late.is_empty();
        let used = queue.head != 0 || queue.tail != 0;
        if !self.has_queue_trouble() && (!idle || used && !queue.ends_in_wait) {
            let text =
                format!("head {} tail {}, last a wait: {}", queue.head, queue.tail, queue.ends_in_wait);
            self.complain(world, Rule::QueueOff, text);
        }
        self.queue = Queue { address: self.queue.address, tail: self.queue.tail, ..Queue::default() };
    }

    /// Whether the queue does not work as it should, so that software has no orderly way out.
    fn has_queue_trouble(&self) -> bool {
        let hardware = &self.misbehaviour;
        hardware.queue_stalled
            || hardware.statuses_lost
            || hardware.status_delay_ns != 0
            || self.faults.has(ERRORS)
            || !self.queue.outstanding.is_empty()
    }

    pub(super) fn write_tail(&mut self, world: &mut World, value: u64) {
        let tail = (value / self.queue.descriptor_bytes()) as u32;
        if value & !bits(18, 4) != 0 {
            self.complain(world, Rule::ReservedBits, format!("IQT {value:#x}"));
        }
        if !self.is_on(global::QUEUE) {
            self.queue.tail = tail;
            return;
        }
        if !value.is_multiple_of(self.queue.descriptor_bytes()) {
            self.complain(world, Rule::QueueTail, format!("tail {value:#x} within a descriptor"));
            self.refuse(world, Refused::Alignment);
            return;
        }
        let entries = self.queue.entries();
        if tail >= entries {
            self.complain(world, Rule::QueueTail, format!("tail {tail} of {entries}"));
            self.refuse(world, Refused::Tail);
            return;
        }
        if self.queue.length_to(tail) < self.queue.length_to(self.queue.tail) {
            let Queue { head, tail: before, .. } = self.queue;
            self.complain(world, Rule::QueueTail, format!("tail {before} -> {tail} with head {head}"));
        }
        if self.queue.head == self.queue.tail {
            self.queue.due_ns = world.now_ns + self.config.descriptor_ns;
        }
        self.queue.tail = tail;
        self.queue.wants_tail = false;
        self.advance_queue(world);
    }

    /// Fetches and finishes what is due.
    pub(super) fn advance_queue(&mut self, world: &mut World) {
        if !self.is_on(global::QUEUE) {
            return;
        }
        self.write_late_statuses(world);
        self.finish_outstanding(world);
        const BURST: u32 = 64;
        for _ in 0..BURST {
            let idle = self.queue.head == self.queue.tail || self.queue.due_ns > world.now_ns;
            if idle || self.queue.wants_tail || self.misbehaviour.queue_stalled || self.faults.has(ERRORS) {
                return;
            }
            self.fetch(world);
            self.queue.due_ns =
                self.queue.due_ns.max(world.now_ns.saturating_sub(1_000)) + self.config.descriptor_ns;
        }
    }

    fn fetch(&mut self, world: &mut World) {
        let slot = (self.queue.address & bits(63, 12)) + self.queue.head_register();
        let words = self.fetch_descriptor(world, slot);
        let refused = match words {
            Some(_) if self.misbehaviour.refused_descriptors > 0 => {
                self.misbehaviour.refused_descriptors -= 1;
                Err(Refused::Type)
            }
            Some([low, high, 0, 0]) => self.execute(world, low, high),
            Some(_) => Err(Refused::Reserved),
            None => Err(Refused::Fetch),
        };
        match refused {
            Ok(()) => {
                self.descriptors += 1;
                self.queue.head = (self.queue.head + 1) & (self.queue.entries() - 1);
                if self.misbehaviour.completion_error {
                    self.misbehaviour.completion_error = false;
                    self.raise_error(world, status::COMPLETION);
                }
            }
            Err(why) => self.refuse(world, why),
        }
    }

    /// The four words of a descriptor, the upper two of a narrow one 0.
    fn fetch_descriptor(&self, world: &World, slot: u64) -> Option<[u64; 4]> {
        let snoop = self.config.coherent;
        if self.queue.is_wide() {
            return world.memory.words(slot, snoop);
        }
        let [low, high] = world.memory.words(slot, snoop)?;
        Some([low, high, 0, 0])
    }

    fn refuse(&mut self, world: &mut World, why: Refused) {
        self.queue.error = self.queue.error & !0xf | why as u64;
        self.queue.wants_tail = self.config.tail_restarts;
        self.raise_error(world, status::QUEUE);
    }

    fn raise_error(&mut self, world: &mut World, bit: u32) {
        if self.faults.raise(bit) {
            let message = self.fault_event.raise();
            Self::send(world, message);
        }
    }

    pub(super) fn complete(&mut self, world: &mut World, wait: Wait) {
        if let Some((address, value)) = wait.status
            && !self.misbehaviour.statuses_lost
        {
            // In order even if the delay changes in between.
            let after = self.queue.late.back().map_or(0, |late| late.0);
            let due = (world.now_ns + self.misbehaviour.status_delay_ns).max(after);
            self.queue.late.push_back((due, address, value));
            self.write_late_statuses(world);
        }
        if wait.interrupt && !std::mem::replace(&mut self.completed, true) {
            let message = self.completion_event.raise();
            Self::send(world, message);
        }
    }

    fn write_late_statuses(&mut self, world: &World) {
        while let Some(&(due, address, value)) = self.queue.late.front()
            && due <= world.now_ns
        {
            self.queue.late.pop_front();
            if !world.memory.store32(address, value) {
                self.complain(
                    world,
                    Rule::BadInvalidation,
                    format!("no memory for a status at {address:#x}"),
                );
            }
        }
    }

    /// Lets waits pass that nothing holds back, and times out devices that do not answer.
    pub(super) fn finish_outstanding(&mut self, world: &mut World) {
        while let Some(&front) = self.queue.outstanding.front() {
            match front {
                Outstanding::Wait(wait) => {
                    self.queue.outstanding.pop_front();
                    self.complete(world, wait);
                }
                Outstanding::Device { source, address, size, .. }
                    if world.device_answers(self.index, source) =>
                {
                    self.queue.outstanding.pop_front();
                    self.invalidate_device_tlb(world, source, address, size);
                }
                Outstanding::Device { source, until_ns, .. } if until_ns <= world.now_ns => {
                    // Waits that have not finished are dropped without a status.
                    self.queue.outstanding.clear();
                    self.queue.error = u64::from(source) << 32;
                    self.raise_error(world, status::TIME_OUT);
                }
                Outstanding::Device { .. } => return,
            }
        }
    }
}
