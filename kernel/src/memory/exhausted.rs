//! Running out of memory on purpose.

use mm::PhysAddr;

use super::{frames, layout};

/// All free frames, in a list that runs through the frames themselves.
pub struct Exhausted {
    newest: Option<PhysAddr>,
}

impl Exhausted {
    /// Takes them.
    pub fn new() -> Self {
        let mut taken = Self { newest: None };
        while let Some(frame) = frames::allocate(1) {
            let next = taken.newest.map_or(0, PhysAddr::as_u64);
            // SAFETY: the frame was just allocated, lies in the direct map, and is nobody else's.
            unsafe { (layout::direct(frame) as *mut u64).write(next) };
            taken.newest = Some(frame);
        }
        taken
    }
}

impl Drop for Exhausted {
    fn drop(&mut self) {
        while let Some(frame) = self.newest {
            // SAFETY: `new` wrote the address of the one before it there; 0 ends the list.
            let next = unsafe { (layout::direct(frame) as *const u64).read() };
            self.newest = (next != 0).then(|| PhysAddr::new(next));
            // SAFETY: the frame was allocated in `new`, and is used no more.
            unsafe { frames::free(frame, 1) };
        }
    }
}
