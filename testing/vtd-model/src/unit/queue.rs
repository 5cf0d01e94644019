//! The invalidation queue.

use std::collections::VecDeque;

use super::{Unit, global, invalidation::Drains};
use crate::{
    complaints::Rule, context_cache::ContextScope, entries::bits, faults::status,
    interrupt_cache::InterruptScope, iotlb::IotlbScope, world::World,
};

/// Why a descriptor was refused, as IQERCD says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Refused {
    Tail = 1,
    Fetch = 2,
    Type = 3,
    Reserved = 4,
}

/// What was fetched and has not finished.
#[derive(Clone, Copy, Debug)]
enum Outstanding {
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
struct Wait {
    status: Option<(u64, u32)>,
    interrupt: bool,
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
    outstanding: VecDeque<Outstanding>,
    /// Statuses that misbehaving hardware writes later: when, where, what.
    late: VecDeque<(u64, u64, u32)>,
    /// A context invalidation came since the last wait.
    context_in_batch: bool,
    /// The descriptor before the head was a wait.
    ends_in_wait: bool,
    /// IQERCD.
    error: u64,
}

const DESCRIPTOR_BYTES: u64 = 16;
const ERRORS: u32 = status::QUEUE | status::COMPLETION | status::TIME_OUT;

impl Queue {
    fn entries(&self) -> u32 {
        1 << ((self.address & 7) + 8)
    }

    pub fn head_register(&self) -> u64 {
        u64::from(self.head) * DESCRIPTOR_BYTES
    }

    pub fn tail_register(&self) -> u64 {
        u64::from(self.tail) * DESCRIPTOR_BYTES
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
        const WIDE: u64 = 1 << 11;
        if self.queue.address & (WIDE | bits(10, 3)) != 0 {
            self.complain(world, Rule::ReservedBits, format!("IQA {:#x}", self.queue.address));
        }
        if self.queue.tail != 0 {
            self.complain(world, Rule::QueueTail, "the queue was turned on with a tail that is not 0");
        }
        self.queue = Queue { address: self.queue.address, tail: self.queue.tail, ..Queue::default() };
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
        let tail = (value / DESCRIPTOR_BYTES) as u32;
        if value & !bits(18, 4) != 0 {
            self.complain(world, Rule::ReservedBits, format!("IQT {value:#x}"));
        }
        if !self.is_on(global::QUEUE) {
            self.queue.tail = tail;
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
        let snoop = self.config.coherent;
        let words = (world.memory.word(slot, snoop), world.memory.word(slot + 8, snoop));
        let refused = match words {
            (Some(_), Some(_)) if self.misbehaviour.refused_descriptors > 0 => {
                self.misbehaviour.refused_descriptors -= 1;
                Err(Refused::Type)
            }
            (Some(low), Some(high)) => self.execute(world, low, high),
            _ => Err(Refused::Fetch),
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

    fn execute(&mut self, world: &mut World, low: u64, high: u64) -> Result<(), Refused> {
        let kind = low & 0xf | (low >> 9 & 7) << 4;
        let result = match kind {
            1 => self.context_descriptor(world, low, high),
            2 => self.iotlb_descriptor(world, low, high),
            3 if self.config.device_tlb => self.device_descriptor(world, low, high),
            4 if self.config.interrupt_remapping => self.interrupt_descriptor(world, low, high),
            5 => self.wait_descriptor(world, low, high),
            _ => Err(Refused::Type),
        };
        if let Err(why) = result {
            self.complain(
                world,
                Rule::BadInvalidation,
                format!("descriptor {low:#x} {high:#x} refused: {why:?}"),
            );
        }
        self.queue.ends_in_wait = kind == 5;
        result
    }

    fn context_descriptor(&mut self, world: &mut World, low: u64, high: u64) -> Result<(), Refused> {
        if low & (bits(8, 6) | bits(15, 12) | bits(63, 50)) != 0 || high != 0 {
            return Err(Refused::Reserved);
        }
        let (domain, source) = ((low >> 16) as u16, (low >> 32) as u16);
        self.check_domain(world, domain);
        let scope = match low >> 4 & 3 {
            1 => ContextScope::Global,
            2 => ContextScope::Domain(domain),
            3 => ContextScope::Device { domain, source, function_mask: (low >> 48 & 3) as u8 },
            _ => return Err(Refused::Reserved),
        };
        self.queue.context_in_batch = true;
        self.invalidate_contexts(world, scope);
        Ok(())
    }

    fn iotlb_descriptor(&mut self, world: &mut World, low: u64, high: u64) -> Result<(), Refused> {
        if low & (1 << 8 | bits(15, 12) | bits(63, 32)) != 0 || high & bits(11, 7) != 0 {
            return Err(Refused::Reserved);
        }
        let domain = (low >> 16) as u16;
        self.check_domain(world, domain);
        let scope = match low >> 4 & 3 {
            1 => IotlbScope::Global,
            2 => IotlbScope::Domain(domain),
            3 => self.page_scope(world, domain, high).ok_or(Refused::Reserved)?,
            _ => return Err(Refused::Reserved),
        };
        if self.queue.context_in_batch {
            self.complain(world, Rule::InvalidationOrder, "no wait between context and IOTLB invalidation");
        }
        let drains = Drains { writes: low >> 6 & 1 != 0, reads: low >> 7 & 1 != 0 };
        self.invalidate_iotlb(world, scope, drains);
        Ok(())
    }

    fn device_descriptor(&mut self, world: &mut World, low: u64, high: u64) -> Result<(), Refused> {
        let pfsid = if self.config.names_physical_function { 0 } else { bits(15, 12) | bits(63, 52) };
        if low & (bits(8, 4) | bits(31, 21) | bits(51, 48) | pfsid) != 0 || high & bits(11, 1) != 0 {
            return Err(Refused::Reserved);
        }
        let source = (low >> 32) as u16;
        self.check_device(world, source, low);
        let until_ns = world.now_ns + self.misbehaviour.device_limit_ns;
        let (address, size) = (high & bits(63, 12), high & 1 != 0);
        self.queue.outstanding.push_back(Outstanding::Device { source, address, size, until_ns });
        self.finish_outstanding(world);
        Ok(())
    }

    /// Whether the device exists, and the descriptor says the right things of it.
    fn check_device(&self, world: &World, source: u16, low: u64) {
        let Some(index) = world.functions_of(self.index, source).next() else {
            let text = format!("device TLB of {source:#06x}, which does not exist");
            return self.complain(world, Rule::BadInvalidation, text);
        };
        let (physical, depth) = world.functions[index].physical;
        let named = (low >> 12 & 0xf | low >> 52 << 4) as u16;
        let wanted = if self.config.names_physical_function { physical } else { 0 };
        if named != wanted {
            let text = format!("device TLB of {source:#06x} with physical function {named:#06x}");
            self.complain(world, Rule::BadInvalidation, text);
        }
        if (low >> 16 & 0x1f) as u8 != depth {
            let text = format!("device TLB of {source:#06x} with a queue depth other than its {depth}");
            self.complain(world, Rule::BadInvalidation, text);
        }
    }

    fn interrupt_descriptor(&mut self, world: &mut World, low: u64, high: u64) -> Result<(), Refused> {
        if low & (bits(8, 5) | bits(26, 12) | bits(63, 48)) != 0 || high != 0 {
            return Err(Refused::Reserved);
        }
        let scope = if low >> 4 & 1 == 0 {
            InterruptScope::Global
        } else {
            let (mask, index) = (low >> 27 & 0x1f, (low >> 32) as u32 & 0xffff);
            let count = 1_u32 << mask.min(16);
            if mask > self.config.interrupt_mask.into() || index & (count - 1) != 0 {
                self.complain(
                    world,
                    Rule::BadInvalidation,
                    format!("interrupt entries {index} with mask {mask}"),
                );
                return Err(Refused::Reserved);
            }
            InterruptScope::Entries { first: index, last: index + count - 1 }
        };
        self.invalidate_interrupts(world, scope);
        Ok(())
    }

    fn wait_descriptor(&mut self, world: &mut World, low: u64, high: u64) -> Result<(), Refused> {
        const PAGE_REQUEST_DRAIN: u64 = 1 << 7;
        if low & (PAGE_REQUEST_DRAIN | 1 << 8 | bits(31, 12)) != 0 || high & 3 != 0 {
            return Err(Refused::Reserved);
        }
        self.queue.context_in_batch = false;
        let status = (low >> 5 & 1 != 0).then_some((high & !3, (low >> 32) as u32));
        let wait = Wait { status, interrupt: low >> 4 & 1 != 0 };
        if self.queue.outstanding.is_empty() {
            self.complete(world, wait);
        } else {
            self.queue.outstanding.push_back(Outstanding::Wait(wait));
        }
        Ok(())
    }

    fn complete(&mut self, world: &mut World, wait: Wait) {
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
    fn finish_outstanding(&mut self, world: &mut World) {
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
