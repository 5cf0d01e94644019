//! The driver's side of a split virtqueue.
//!
//! The descriptor table is in memory that the device can write, so nothing is ever read back from it: free list, chain
//! lengths and tokens are private. What the used ring says is checked against them.

use alloc::{collections::TryReserveError, vec::Vec};
use core::fmt;

use iommu::Iova;

use super::rings::{Descriptor, RingMemory};

/// A run of memory that a chain hands to the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Where the device finds it.
    pub iova: Iova,
    /// Length in bytes.
    pub bytes: u32,
    /// The device writes it; otherwise it reads it.
    pub writable: bool,
}

impl Segment {
    fn descriptor(&self, has_next: bool, next: u16) -> Descriptor {
        let more = if has_next { Descriptor::NEXT } else { 0 };
        let write = if self.writable { Descriptor::WRITE } else { 0 };
        Descriptor { address: self.iova.as_u64(), bytes: self.bytes, flags: more | write, next }
    }
}

/// A split queue whose chains each carry a `T` while the device has them.
pub struct SplitQueue<M, T> {
    memory: M,
    /// Free and used descriptors as lists: the successor of each.
    next: Vec<u16>,
    free_head: u16,
    free: u16,
    /// By head.
    chains: Vec<Option<Chain<T>>>,
    in_flight: u16,
    available_index: u16,
    used_index: u16,
    /// Device and driver tell each other at which index they want to hear of the next chain.
    event_index: bool,
    /// Index of the available ring when it was last asked whether the device must be told.
    asked_index: u16,
}

struct Chain<T> {
    last: u16,
    descriptors: u16,
    writable_bytes: u64,
    token: T,
}

/// A chain that the device has finished.
#[derive(Debug, PartialEq, Eq)]
pub struct Finished<T> {
    /// What was submitted with it.
    pub token: T,
    /// Head of the chain, free again.
    pub head: u16,
    /// Bytes that the device says it wrote: at most the chain's writable ones.
    pub bytes: u32,
}

/// What a device did wrong in its used ring. The queue is of no use until the device is reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueError {
    /// The index moved by more chains than the device had.
    IndexJumped {
        /// Index up to which chains were taken back.
        seen: u16,
        /// Index that the device wrote.
        index: u16,
        /// Chains that the device had.
        in_flight: u16,
    },
    /// The head is no chain that the device has.
    NotInFlight {
        /// What the device wrote.
        head: u32,
    },
    /// The device says that it wrote more than it was given.
    TooLong {
        /// Bytes that the device says it wrote.
        bytes: u32,
        /// Bytes that it was given to write.
        writable: u64,
    },
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IndexJumped { seen, index, in_flight } => {
                write!(f, "used index jumped from {seen} to {index} with {in_flight} chains in flight")
            }
            Self::NotInFlight { head } => write!(f, "used ring names chain {head}, which is not in flight"),
            Self::TooLong { bytes, writable } => {
                write!(f, "device says it wrote {bytes} bytes into a chain of {writable}")
            }
        }
    }
}

impl core::error::Error for QueueError {}

impl<M: RingMemory, T> SplitQueue<M, T> {
    /// A queue of `size` descriptors, a power of two, over new rings of that size.
    ///
    /// # Errors
    /// No memory for the bookkeeping.
    pub fn new(memory: M, size: u16) -> Result<Self, TryReserveError> {
        debug_assert!(size.is_power_of_two());
        let mut next = Vec::new();
        let mut chains = Vec::new();
        next.try_reserve_exact(usize::from(size))?;
        chains.try_reserve_exact(usize::from(size))?;
        next.resize(usize::from(size), 0);
        chains.resize_with(usize::from(size), || None);
        let mut queue = Self {
            memory,
            next,
            free_head: 0,
            free: 0,
            chains,
            in_flight: 0,
            available_index: 0,
            used_index: 0,
            event_index: false,
            asked_index: 0,
        };
        queue.free_all();
        Ok(queue)
    }

    /// States that the device has agreed to `VIRTIO_F_EVENT_IDX`. Before the queue is used.
    #[must_use]
    pub fn with_event_index(self, event_index: bool) -> Self {
        Self { event_index, ..self }
    }

    /// The memory that the rings are in.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.next.len() as u16
    }

    /// Chains that the device has.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Descriptors of the ring that a chain of `segments` segments takes: one if it goes into an indirect table.
    pub fn descriptors_for(&self, segments: u16) -> u16 {
        if (2..=self.memory.indirect_limit()).contains(&segments) { 1 } else { segments }
    }

    /// Head that the next chain will have, if `descriptors` are free.
    pub fn next_head(&self, descriptors: u16) -> Option<u16> {
        (0 < descriptors && descriptors <= self.free).then_some(self.free_head)
    }

    /// Hands a chain of `segments` to the device, in an indirect table if there is one that has room. Whether the
    /// device must be told [`wants_notification`](Self::wants_notification) says.
    ///
    /// # Errors
    /// The token comes back if there are no segments, or too few free descriptors for them.
    pub fn add(&mut self, segments: &[Segment], token: T) -> Result<u16, T> {
        let count = u16::try_from(segments.len()).unwrap_or(u16::MAX);
        let descriptors = self.descriptors_for(count);
        let Some(head) = self.next_head(descriptors) else {
            return Err(token);
        };
        let (first_free, last) = if descriptors < count {
            self.write_indirect(head, segments);
            (self.next[usize::from(head)], head)
        } else {
            self.write_chain(head, segments)
        };
        let writable = segments.iter().filter(|segment| segment.writable);
        let writable_bytes = writable.map(|segment| u64::from(segment.bytes)).sum();
        self.free_head = first_free;
        self.free -= descriptors;
        self.chains[usize::from(head)] = Some(Chain { last, descriptors, writable_bytes, token });
        self.in_flight += 1;
        let slot = self.available_index & (self.size() - 1);
        self.memory.write_available(slot, head);
        self.available_index = self.available_index.wrapping_add(1);
        self.memory.publish_available(self.available_index);
        Ok(head)
    }

    /// Writes `segments` from the free descriptor `head` on. Returns the free one behind them, and the last of them.
    fn write_chain(&mut self, head: u16, segments: &[Segment]) -> (u16, u16) {
        let (mut index, mut last) = (head, head);
        for (position, segment) in segments.iter().enumerate() {
            last = index;
            let next = self.next[usize::from(index)];
            self.memory.write_descriptor(index, segment.descriptor(position + 1 < segments.len(), next));
            index = next;
        }
        (index, last)
    }

    /// Writes `segments` into the table of `head`, and makes the descriptor `head` lead there.
    fn write_indirect(&mut self, head: u16, segments: &[Segment]) {
        let mut table = Iova::new(0);
        for (position, segment) in (0..).zip(segments) {
            let has_next = usize::from(position) + 1 < segments.len();
            table = self.memory.write_indirect(head, position, segment.descriptor(has_next, position + 1));
        }
        let bytes = (size_of::<Descriptor>() * segments.len()) as u32;
        let descriptor = Descriptor { address: table.as_u64(), bytes, flags: Descriptor::INDIRECT, next: 0 };
        self.memory.write_descriptor(head, descriptor);
    }

    /// Asks for an interrupt at the next chain that is finished. True if one has been meanwhile, for which there may be
    /// none.
    pub fn rearm(&mut self) -> bool {
        if self.event_index {
            self.memory.set_used_event(self.used_index);
        }
        self.memory.used_index() != self.used_index
    }

    /// Whether the device must be told of chains added since it was last asked.
    pub fn wants_notification(&mut self) -> bool {
        let asked = core::mem::replace(&mut self.asked_index, self.available_index);
        if !self.event_index {
            return self.memory.wants_notification();
        }
        // The device wants to hear when the index goes past the one it names.
        let added = self.available_index.wrapping_sub(asked);
        let behind = self.available_index.wrapping_sub(self.memory.available_event()).wrapping_sub(1);
        behind < added
    }

    /// Takes back the next chain that the device has finished.
    ///
    /// # Errors
    /// What the device wrote cannot be true. All chains stay with it.
    pub fn take_finished(&mut self) -> Result<Option<Finished<T>>, QueueError> {
        let index = self.memory.used_index();
        let ready = index.wrapping_sub(self.used_index);
        if ready == 0 {
            return Ok(None);
        }
        if ready > self.in_flight {
            let (seen, in_flight) = (self.used_index, self.in_flight);
            return Err(QueueError::IndexJumped { seen, index, in_flight });
        }
        let element = self.memory.used_element(self.used_index & (self.size() - 1));
        let not_in_flight = QueueError::NotInFlight { head: element.head };
        let head = u16::try_from(element.head).map_err(|_| not_in_flight)?;
        let place = self.chains.get_mut(usize::from(head)).ok_or(not_in_flight)?;
        let chain = place.take_if(|chain| u64::from(element.bytes) <= chain.writable_bytes);
        let Some(chain) = chain else {
            return Err(place.as_ref().map_or(not_in_flight, |chain| QueueError::TooLong {
                bytes: element.bytes,
                writable: chain.writable_bytes,
            }));
        };
        self.next[usize::from(chain.last)] = self.free_head;
        self.free_head = head;
        self.free += chain.descriptors;
        self.in_flight -= 1;
        self.used_index = self.used_index.wrapping_add(1);
        Ok(Some(Finished { token: chain.token, head, bytes: element.bytes }))
    }

    /// The tokens of the chains that the device has.
    pub fn tokens(&self) -> impl Iterator<Item = &T> {
        self.chains.iter().flatten().map(|chain| &chain.token)
    }

    /// Takes one chain back from a device that has been reset; `None` when it has no more of them.
    pub fn take_back(&mut self) -> Option<T> {
        let chain = self.chains.iter_mut().find_map(Option::take)?;
        self.in_flight -= 1;
        Some(chain.token)
    }

    /// Makes the queue as new, while the device is reset and every chain has been taken back.
    pub fn restart(&mut self) {
        debug_assert_eq!(self.in_flight, 0, "chains are taken back first");
        self.memory.clear();
        self.free_all();
    }

    fn free_all(&mut self) {
        let size = self.size();
        for (successor, next) in (1..=size).zip(&mut self.next) {
            *next = successor & (size - 1);
        }
        self.free_head = 0;
        self.free = size;
        self.available_index = 0;
        self.used_index = 0;
        self.asked_index = 0;
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
