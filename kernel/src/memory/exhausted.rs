//! Running out of memory on purpose.

use mm::{PhysAddr, frames::MAX_ORDER};

use super::{frames, layout};

/// All free frames, as a list of runs that goes through the runs themselves. Large ones first, so that next to no
/// memory is touched.
pub struct Exhausted {
    newest: Option<Run>,
}

/// A run of frames; the one taken before it is written at its start.
#[derive(Clone, Copy)]
struct Run {
    first: PhysAddr,
    frames: usize,
}

impl Exhausted {
    /// Takes them.
    pub fn new() -> Self {
        let mut taken = Self { newest: None };
        for order in (0..=MAX_ORDER).rev() {
            let frames = 1 << order;
            while let Some(first) = frames::allocate(frames) {
                // SAFETY: the run was just allocated, lies in the direct map, and is nobody else's.
                unsafe { (layout::direct(first) as *mut Option<Run>).write(taken.newest) };
                taken.newest = Some(Run { first, frames });
            }
        }
        taken
    }
}

impl Drop for Exhausted {
    fn drop(&mut self) {
        while let Some(Run { first, frames }) = self.newest {
            // SAFETY: `new` wrote the one before it there; the run was allocated there with this size, and is used no
            // more.
            unsafe {
                self.newest = (layout::direct(first) as *const Option<Run>).read();
                frames::free(first, frames);
            }
        }
    }
}
