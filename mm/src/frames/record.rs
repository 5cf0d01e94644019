//! What is known about one frame.

use crate::machine::{AtomicU32, Ordering};

/// Tag of a frame that is not the first of anything: inside a block or a run, or not yet given to the allocator.
const INSIDE: u32 = 0;
/// Tag of the first frame of a free block; the value is the block's order.
const FREE: u32 = 1;
/// Tag of the first frame of an allocated run; the value is the number of frames.
const USED: u32 = 2;
/// Tag of a free frame that is in no block: in a CPU's cache, or on its way.
const HELD: u32 = 3;

const TAG_BITS: u32 = 2;

/// No frame: the end of a list.
pub(super) const NONE: u32 = u32::MAX;

/// What a record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Inside,
    Free { order: u8 },
    Used { frames: u32 },
    Held,
}

/// What is known about one frame. A new one is zero bytes throughout, so zeroed memory is an array of them.
#[derive(Default, Debug)]
#[repr(C)]
pub struct FrameRecord {
    /// Tag in the low bits, value above. The first frame of a run changes hands here.
    state: AtomicU32,
    /// Neighbours in the list of free blocks, as frame numbers. Under the zone's lock.
    next: AtomicU32,
    previous: AtomicU32,
}

impl FrameRecord {
    pub(super) fn state(&self) -> State {
        Self::decode(self.state.load(Ordering::Acquire))
    }

    fn decode(raw: u32) -> State {
        let value = raw >> TAG_BITS;
        match raw & ((1 << TAG_BITS) - 1) {
            INSIDE => State::Inside,
            FREE => State::Free { order: value as u8 },
            USED => State::Used { frames: value },
            _ => State::Held,
        }
    }

    pub(super) fn set(&self, state: State) {
        let raw = match state {
            State::Inside => INSIDE,
            State::Free { order } => FREE | u32::from(order) << TAG_BITS,
            State::Used { frames } => USED | frames << TAG_BITS,
            State::Held => HELD,
        };
        self.state.store(raw, Ordering::Release);
    }

    /// Takes the run of `frames` frames that starts here back from whoever had it. Of two that try, one succeeds.
    /// Returns what is here instead if it is not such a run.
    pub(super) fn take_back(&self, frames: u32) -> Result<(), State> {
        let Some(value) = frames.checked_shl(TAG_BITS).filter(|value| value >> TAG_BITS == frames) else {
            return Err(self.state());
        };
        self.state
            .compare_exchange(USED | value, HELD, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
            .map_err(Self::decode)
    }

    pub(super) fn next(&self) -> u32 {
        self.next.load(Ordering::Relaxed)
    }

    pub(super) fn set_next(&self, frame: u32) {
        self.next.store(frame, Ordering::Relaxed);
    }

    pub(super) fn previous(&self) -> u32 {
        self.previous.load(Ordering::Relaxed)
    }

    pub(super) fn set_previous(&self, frame: u32) {
        self.previous.store(frame, Ordering::Relaxed);
    }
}
