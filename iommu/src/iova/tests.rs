//! Tests of the allocator as a whole, on a host whose CPUs are threads.

mod cpus;
mod host;
#[cfg(loom)]
mod interleavings;
mod magazines;
mod memory;
mod places;
mod random;

extern crate self as iommu;

use std::{sync::Arc, vec::Vec};

use super::{IovaSpace, holes::Run};
use host::Host;

/// Highest address of a device with a 32-bit mask.
const MASK_32: u64 = u32::MAX as u64;

/// Highest address of a domain with four levels of tables.
const MASK_48: u64 = (1 << 48) - 1;

/// Random numbers that are the same each time (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// Both kinds of space.
fn spaces(host: &Arc<Host>, last: u64) -> [IovaSpace<Host>; 2] {
    let unchecked = IovaSpace::new(host.clone(), last).expect("there is memory");
    let checked = IovaSpace::new_checked(host.clone(), last).expect("there is memory");
    [unchecked, checked]
}

/// The holes of `space`, after everything in its magazines has come back.
fn holes(space: &IovaSpace<Host>) -> Vec<Run> {
    space.trim();
    space.central.lock(&*space.platform).look().iter().collect()
}
