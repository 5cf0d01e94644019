//! The memory of a queue pair.

use iommu::{Coherent, DmaDevice, DmaError, Iova};
use nvme_spec::{Command, Completion};

/// What a queue pair needs of its memory. Everything read from it is the device's word.
pub trait QueueMemory {
    /// Stores a command in slot `slot` of the submission queue.
    fn write_command(&mut self, slot: u16, command: Command);
    /// Slot `slot` of the completion queue; if its phase is new, so is the rest.
    fn read_completion(&self, slot: u16) -> Completion;
    /// Makes both queues as new. Only while the controller is off.
    fn clear(&mut self);
}

/// A submission and a completion queue in coherent memory.
pub struct Queues {
    submission: Coherent<Command>,
    /// Four dwords an entry, so that the one with the phase can be read first.
    completion: Coherent<u32>,
}

impl Queues {
    /// Queues of `size` entries each that `device` can reach.
    ///
    /// # Errors
    /// No memory, or it cannot be mapped.
    pub fn new(device: &DmaDevice, size: u16) -> Result<Self, DmaError> {
        let size = usize::from(size);
        Ok(Self { submission: device.alloc_coherent(size)?, completion: device.alloc_coherent(4 * size)? })
    }

    /// Where the controller finds the submission and the completion queue.
    #[must_use]
    pub fn addresses(&self) -> [Iova; 2] {
        [self.submission.iova(), self.completion.iova()]
    }
}

impl QueueMemory for Queues {
    fn write_command(&mut self, slot: u16, command: Command) {
        self.submission.write(usize::from(slot), command);
    }

    fn read_completion(&self, slot: u16) -> Completion {
        let at = 4 * usize::from(slot);
        // Volatile loads stay in program order, and x86 does loads in that order.
        let tail = self.completion.read(at + 3);
        let [result, reserved, queue] = [0, 1, 2].map(|dword| self.completion.read(at + dword));
        Completion::decode([result, reserved, queue, tail])
    }

    fn clear(&mut self) {
        for slot in 0..self.submission.len() {
            self.submission.write(slot, Command::default());
        }
        for dword in 0..self.completion.len() {
            self.completion.write(dword, 0);
        }
    }
}
