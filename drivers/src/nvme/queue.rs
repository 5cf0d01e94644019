//! A submission and a completion queue, and what is in flight between them.

use alloc::{collections::TryReserveError, vec::Vec};
use core::fmt;

use nvme_spec::{Command, Status};

use super::memory::QueueMemory;

/// A queue pair whose commands each carry a `T` while the controller has them.
///
/// It knows no doorbell: after [`submit`](Self::submit) and [`take_finished`](Self::take_finished) the owner writes
/// [`tail`](Self::tail) and [`head`](Self::head) to the controller, once for as many of them as it likes.
pub struct QueuePair<M, T> {
    id: u16,
    memory: M,
    /// By command identifier.
    in_flight: Vec<Option<T>>,
    free: Vec<u16>,
    size: u16,
    tail: u16,
    head: u16,
    phase: bool,
}

/// A command that the controller has finished.
#[derive(PartialEq, Eq, Debug)]
pub struct Finished<T> {
    /// What was submitted with it.
    pub token: T,
    /// What the command returns.
    pub result: u32,
    /// How the controller says that it ended.
    pub status: Status,
}

/// What a controller did wrong in its completion queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PairError {
    /// The entry names a command that the controller does not have.
    NotInFlight {
        /// Identifier in the entry.
        id: u16,
    },
    /// The entry belongs to another submission queue.
    OtherQueue {
        /// Queue in the entry.
        queue: u16,
    },
}

impl fmt::Display for PairError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInFlight { id } => write!(f, "completion of command {id}, which is not in flight"),
            Self::OtherQueue { queue } => write!(f, "completion of a command in queue {queue}"),
        }
    }
}

impl core::error::Error for PairError {}

impl<M: QueueMemory, T> QueuePair<M, T> {
    /// Pair `id` of new queues of `size` entries each, at least 2.
    ///
    /// # Errors
    /// No memory for the bookkeeping.
    pub fn new(id: u16, memory: M, size: u16) -> Result<Self, TryReserveError> {
        debug_assert!(size >= 2);
        // A submission queue is full with one entry free. A finished command has left it, so that many in flight
        // never overrun it, whatever the controller says about its head.
        let room = usize::from(size) - 1;
        let (mut in_flight, mut free) = (Vec::new(), Vec::new());
        in_flight.try_reserve_exact(room)?;
        free.try_reserve_exact(room)?;
        in_flight.resize_with(room, || None);
        let mut pair = Self { id, memory, in_flight, free, size, tail: 0, head: 0, phase: true };
        pair.free.extend((0..size - 1).rev());
        Ok(pair)
    }

    /// The memory that the queues are in.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Entries of each queue.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// What the controller is to be told of the submission queue.
    pub fn tail(&self) -> u16 {
        self.tail
    }

    /// What the controller is to be told of the completion queue.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Number of commands that the controller has.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len() - self.free.len()
    }

    /// Most commands that the controller can have.
    pub fn depth(&self) -> usize {
        self.in_flight.len()
    }

    /// The commands that the controller has, by their identifiers.
    pub fn tokens(&self) -> impl Iterator<Item = (u16, &T)> {
        (0..).zip(&self.in_flight).filter_map(|(id, token)| Some((id, token.as_ref()?)))
    }

    /// Identifier of the next command, if there is room for one.
    pub fn next_id(&self) -> Option<u16> {
        self.free.last().copied()
    }

    /// Takes one command back from a controller that is off; `None` when it has no more of them.
    pub fn take_back(&mut self) -> Option<T> {
        let (id, token) = (0..).zip(&mut self.in_flight).find_map(|(id, place)| Some((id, place.take()?)))?;
        self.free.push(id);
        Some(token)
    }

    /// Puts a command into the submission queue, under the [next](Self::next_id) identifier. The controller sees it
    /// when it is told the new tail.
    ///
    /// # Errors
    /// The token comes back if the queue is full.
    pub fn submit(&mut self, command: Command, token: T) -> Result<(), T> {
        let Some(id) = self.free.pop() else {
            return Err(token);
        };
        self.memory.write_command(self.tail, command.identified(id));
        self.tail = (self.tail + 1) % self.size;
        self.in_flight[usize::from(id)] = Some(token);
        Ok(())
    }

    /// Takes back the next command that the controller has finished.
    ///
    /// # Errors
    /// What the controller wrote cannot be true. The pair is of no use until the controller is reset.
    pub fn take_finished(&mut self) -> Result<Option<Finished<T>>, PairError> {
        let entry = self.memory.read_completion(self.head);
        if entry.phase != self.phase {
            return Ok(None);
        }
        if entry.queue != self.id {
            return Err(PairError::OtherQueue { queue: entry.queue });
        }
        let place = self.in_flight.get_mut(usize::from(entry.id));
        let token = place.and_then(Option::take).ok_or(PairError::NotInFlight { id: entry.id })?;
        // Never more than there is room for: each identifier is taken from the list and given back once.
        self.free.push(entry.id);
        self.head += 1;
        if self.head == self.size {
            self.head = 0;
            self.phase = !self.phase;
        }
        Ok(Some(Finished { token, result: entry.result, status: entry.status }))
    }

    /// Makes the pair as new and drops what was in flight. Only while the controller is off.
    pub fn restart(&mut self) {
        self.memory.clear();
        self.in_flight.fill_with(|| None);
        self.free.clear();
        self.free.extend((0..self.size - 1).rev());
        (self.tail, self.head, self.phase) = (0, 0, true);
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
