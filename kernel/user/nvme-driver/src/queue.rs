//! A submission and a completion queue. Who uses it knows what is in flight.

use nvme_spec::{Command, Completion};

use crate::memory::Memory;

/// Bytes of a submission and of a completion entry.
const ENTRY_BYTES: [usize; 2] = [64, 16];

/// A queue pair.
pub struct Queue {
    pub submission: Memory,
    pub completion: Memory,
    pub size: u16,
    /// What the controller is to be told.
    pub tail: u16,
    pub head: u16,
    phase: bool,
}

impl Queue {
    /// Queues of `size` entries in `memory`, each from the start of a page on.
    pub fn new(memory: Memory, size: u16) -> Self {
        let [submission, completion] = ENTRY_BYTES.map(|bytes| bytes * usize::from(size));
        Self {
            submission: memory.part(0, submission),
            completion: memory.part(submission.next_multiple_of(4096), completion),
            size,
            tail: 0,
            head: 0,
            phase: true,
        }
    }

    /// Empties both, while the controller is off.
    pub fn clear(&mut self) {
        self.submission.clear();
        self.completion.clear();
        (self.tail, self.head, self.phase) = (0, 0, true);
    }

    /// Adds a command. There are always fewer in flight than there are entries.
    pub fn push(&mut self, command: Command) {
        self.submission.write(self.tail.into(), command);
        self.tail = (self.tail + 1) % self.size;
    }

    /// The next completion.
    pub fn pop(&mut self) -> Option<Completion> {
        let at = 4 * usize::from(self.head);
        // The dword with the phase first: volatile loads stay in order, and x86 does loads in that order.
        let tail = self.completion.read(at + 3);
        let [result, reserved, queue] = [0, 1, 2].map(|dword| self.completion.read(at + dword));
        let entry = Completion::decode([result, reserved, queue, tail]);
        if entry.phase != self.phase {
            return None;
        }
        self.head += 1;
        if self.head == self.size {
            (self.head, self.phase) = (0, !self.phase);
        }
        Some(entry)
    }
}
