//! Single free frames, close to the CPU that needs them next.

use super::{
    Processor,
    lock::{Lock, LockClass, LockGuard},
};

/// Frames in a full magazine.
const MAGAZINE_FRAMES: usize = 32;

/// A CPU's store of free frames, one magazine for each zone. On cache lines of its own.
#[repr(align(128))]
pub struct CpuCache {
    magazines: Lock<[Magazine; 2]>,
}

impl Default for CpuCache {
    fn default() -> Self {
        Self::new()
    }
}

impl CpuCache {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { magazines: Lock::new(LockClass::Cache, [Magazine::new(), Magazine::new()]) }
    }

    pub(super) fn lock<'a, P: Processor>(&'a self, processor: &'a P) -> LockGuard<'a, [Magazine; 2], P> {
        self.magazines.lock(processor)
    }
}

/// A stack of frame numbers.
pub(super) struct Magazine {
    frames: [u32; MAGAZINE_FRAMES],
    len: usize,
}

impl Magazine {
    const fn new() -> Self {
        Self { frames: [0; MAGAZINE_FRAMES], len: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) const fn is_full(&self) -> bool {
        self.len == MAGAZINE_FRAMES
    }

    /// Adds `frame`. The magazine is not full.
    pub(super) fn push(&mut self, frame: u32) {
        self.frames[self.len] = frame;
        self.len += 1;
    }

    pub(super) fn pop(&mut self) -> Option<u32> {
        self.len = self.len.checked_sub(1)?;
        self.frames.get(self.len).copied()
    }

    /// Adds what `source` has until half of it is full.
    pub(super) fn fill_half(&mut self, mut source: impl FnMut() -> Option<u32>) {
        while self.len < MAGAZINE_FRAMES / 2 {
            let Some(frame) = source() else { return };
            self.push(frame);
        }
    }

    /// Gives the older half of a full magazine to `sink`.
    pub(super) fn take_half(&mut self, mut sink: impl FnMut(u32)) {
        const HALF: usize = MAGAZINE_FRAMES / 2;
        self.frames[..HALF].iter().copied().for_each(&mut sink);
        self.frames.copy_within(HALF.., 0);
        self.len -= HALF;
    }
}
