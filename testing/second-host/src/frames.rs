//! The host's frame allocator: nothing of `mm`'s.

use std::collections::VecDeque;

use mm::{PAGE_BYTES, PhysAddr, PhysRange};

/// The frames of one run of memory. Single ones are cut from its start, runs that stay from its end.
pub struct Frames {
    start: u64,
    end: u64,
    /// Frames that came back. Whoever waits longest goes first.
    returned: VecDeque<u64>,
}

impl Frames {
    pub fn new(memory: PhysRange) -> Self {
        let start = memory.start.as_u64();
        // All of them may come back, and nothing is taken from the heap then.
        let returned = VecDeque::with_capacity((memory.bytes / PAGE_BYTES) as usize);
        Self { start, end: start + memory.bytes, returned }
    }

    pub fn allocate(&mut self) -> Option<PhysAddr> {
        let frame = self.returned.pop_front().or_else(|| {
            let frame = self.start;
            (frame < self.end).then(|| self.start += PAGE_BYTES)?;
            Some(frame)
        });
        frame.map(PhysAddr::new)
    }

    /// `pages` frames in a row, aligned to the next power of two.
    pub fn allocate_contiguous(&mut self, pages: usize) -> Option<PhysAddr> {
        let bytes = (pages as u64).checked_mul(PAGE_BYTES)?;
        let below = self.end.checked_sub(bytes)? & !(bytes.checked_next_power_of_two()? - 1);
        (below >= self.start).then(|| self.end = below)?;
        Some(PhysAddr::new(below))
    }

    pub fn free(&mut self, frame: PhysAddr) {
        self.returned.push_back(frame.as_u64());
    }
}
