//! Stacks, each above a guard page.
//!
//! The addresses are divided into slots, the upper part of a slot being the stack. A slot once mapped stays mapped and
//! is used again, so that starting and ending threads neither maps nor flushes.

use core::ops::Range;

use mm::PAGE_BYTES;

use super::{address_space, layout};
use crate::sync::{IrqMutex, Rank};

/// Most stacks at a time.
const SLOTS: usize = 512;
/// Pages of one stack.
pub const STACK_PAGES: usize = 16;
const STACK_BYTES: u64 = STACK_PAGES as u64 * PAGE_BYTES;
/// As much again is left unmapped below each stack.
const SLOT_BYTES: u64 = 2 * STACK_BYTES;

struct Slots {
    used: [bool; SLOTS],
    mapped: [bool; SLOTS],
}

static STACKS: IrqMutex<Slots> =
    IrqMutex::new(Rank::Stacks, Slots { used: [false; SLOTS], mapped: [false; SLOTS] });

/// How many stacks are in use, and how many are mapped: those that were ever in use at the same time.
pub fn count() -> (usize, usize) {
    let slots = STACKS.lock();
    let number = |slots: &[bool]| slots.iter().filter(|&&slot| slot).count();
    (number(&slots.used), number(&slots.mapped))
}

/// A stack that nothing else uses.
#[derive(Debug)]
pub struct Stack(usize);

impl Stack {
    /// A free stack; `None` if all are in use or there is no memory for a new one.
    pub fn new() -> Option<Self> {
        let mut slots = STACKS.lock();
        let free =
            |mapped| move |slot: &usize, slots: &Slots| !slots.used[*slot] && slots.mapped[*slot] == mapped;
        let slot = (0..SLOTS)
            .find(|slot| free(true)(slot, &slots))
            .or_else(|| (0..SLOTS).find(|slot| free(false)(slot, &slots)))?;
        if !slots.mapped[slot] {
            // SAFETY: the slot's addresses are used by nothing else, and the lock is held.
            slots.mapped[slot] = unsafe { address_space::map_stack(stack_range(slot).start, STACK_PAGES) };
        }
        slots.used[slot] = slots.mapped[slot];
        // Made only if it is true: dropping one takes the lock that is held here.
        slots.used[slot].then(|| Self(slot))
    }

    /// The top of a new stack that is never given back.
    pub fn leak_new() -> Option<u64> {
        let stack = core::mem::ManuallyDrop::new(Self::new()?);
        Some(stack.top())
    }

    /// One past its highest address.
    pub fn top(&self) -> u64 {
        stack_range(self.0).end
    }

    /// The guard page under it.
    pub fn guard_page(&self) -> u64 {
        stack_range(self.0).start - PAGE_BYTES
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        STACKS.lock().used[self.0] = false;
    }
}

fn stack_range(slot: usize) -> Range<u64> {
    let start = layout::STACKS + slot as u64 * SLOT_BYTES + STACK_BYTES;
    start..start + STACK_BYTES
}

/// The slot that `address` is in.
fn slot_of(address: u64) -> Option<usize> {
    let slot = (address.checked_sub(layout::STACKS)? / SLOT_BYTES) as usize;
    (slot < SLOTS).then_some(slot)
}

/// The mapped stack that `address` is in.
pub fn containing(address: u64) -> Option<Range<u64>> {
    let stack = match slot_of(address) {
        // A dead CPU may hold the lock when a backtrace is made; what is mapped stays so.
        Some(slot) => super::lookup(stack_range(slot).start).map(|_| stack_range(slot))?,
        None => layout::boot_stack(),
    };
    stack.contains(&address).then_some(stack)
}

/// Whether `address` is in the gap under a stack.
pub fn is_guard(address: u64) -> bool {
    match slot_of(address) {
        Some(slot) => address < stack_range(slot).start,
        None => layout::boot_stack_guard().contains(&address),
    }
}
