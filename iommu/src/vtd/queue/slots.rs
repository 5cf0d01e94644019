//! Status slots: where the unit writes that a wait is done.
//!
//! Each wait has a slot of its own and a value that the slot never had before. A slot is handed out again only when no
//! write to it can be outstanding any more:
//!
//! - its completion was seen; or
//! - nobody waits for it any more, and it completed, or a later wait did, which proves that everything before it is
//!   over.
//!
//! A slot whose wait missed its deadline is never handed out again: the unit may yet write to it. The CPU never writes
//! to the slots' memory, so that it cannot undo a completion.

use alloc::{boxed::Box, vec::Vec};
use mm::{
    PAGE_BYTES, PhysAddr,
    table::{TABLE_ENTRIES, Table, TableMemory},
};

use crate::{
    Platform,
    reach::{HostWidth, TableError, TableKind},
    sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering},
    vtd::spec::{Completion, Wait},
};

/// One page of slots, a 64-bit word each, of which the unit writes the low half. Under `loom` so few that they are soon
/// used again.
const SLOTS: usize = if cfg!(loom) { 4 } else { TABLE_ENTRIES };
const SLOT_BYTES: u64 = PAGE_BYTES / TABLE_ENTRIES as u64;
const WORDS: usize = SLOTS.div_ceil(64);

/// The slot that is written for order's sake and never read.
const SCRAP: u16 = 0;

pub(super) struct Slots {
    page: PhysAddr,
    /// The number of an owned slot is below [`SLOTS`]: the remainder, wherever one is looked up, only says so to the
    /// compiler.
    slots: Box<[Slot; SLOTS]>,
    /// One bit a slot, set while it may be handed out.
    free: [AtomicU64; WORDS],
    /// Everything below this position is known to be over.
    over_below: AtomicU64,
}

/// What software knows of a slot. Written under the queue's lock; a waiter reads its own at any time.
struct Slot {
    /// What the unit writes when the wait is done.
    value: AtomicU32,
    /// Position of the wait descriptor.
    end: AtomicU64,
    state: AtomicU8,
    /// The wait is for device TLBs.
    devices: AtomicBool,
    /// The unit refused a descriptor that the wait is about.
    refused: AtomicBool,
    /// The device that did not answer, once the state is [`DROPPED`].
    source: AtomicU16,
    /// As in [`Blame`].
    is_own: AtomicBool,
}

/// Not handed out.
const FREE: u8 = 0;
/// Handed out: somebody waits.
const PENDING: u8 = 1;
/// The unit dropped the wait when a device did not answer. Nothing will be written.
const DROPPED: u8 = 2;
/// Nobody waits any more.
const ORPHANED: u8 = 3;
/// The wait missed its deadline.
const LATE: u8 = 4;
/// Nobody waits any more, and the unit dropped the wait.
const DISUSED: u8 = 5;
/// The wait missed its deadline, and the unit dropped it.
const LOST: u8 = 6;

/// What a slot in `state` is when the unit dropped its wait.
fn dropped(state: u8) -> Option<u8> {
    match state {
        PENDING => Some(DROPPED),
        ORPHANED => Some(DISUSED),
        LATE => Some(LOST),
        _ => None,
    }
}

/// A slot handed out. Dropping it loses the slot for good.
#[derive(Debug)]
#[must_use]
pub(super) struct OwnedSlot(u16);

/// How a wait stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Status {
    /// Not done.
    Waiting,
    /// Done.
    Done {
        /// Something that it is about was refused, and not carried out.
        refused: bool,
    },
    /// It will never be done, because a device did not answer.
    Dropped(Blame),
}

/// Whom the unit blames for a wait that it dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Blame {
    /// Requester id, as far as the unit says: older ones leave 0, which no device with a TLB has.
    pub source: u16,
    /// It is a device that this wait was for, whatever its id.
    pub is_own: bool,
}

impl Slots {
    pub fn new<P: Platform>(platform: &P, width: HostWidth, coherent: bool) -> Result<Self, TableError> {
        let page = width.run(platform, TableKind::Status, 1)?;
        let mut slots = Vec::new();
        slots.try_reserve_exact(SLOTS).map_err(|_| TableError::OutOfMemory)?;
        slots.resize_with(SLOTS, Slot::new);
        let slots = slots.into_boxed_slice().try_into().map_err(|_| TableError::OutOfMemory)?;
        let free = core::array::from_fn(|_| AtomicU64::new(u64::MAX >> (64 - SLOTS.min(64))));
        let free: [AtomicU64; WORDS] = free;
        free[usize::from(SCRAP) / 64].fetch_and(!(1 << (SCRAP % 64)), Ordering::Relaxed);
        let slots = Self { page, slots, free, over_below: AtomicU64::new(0) };
        if !coherent {
            slots.with_memory(platform, |words| {
                platform.tables().write_back(words.as_ptr().cast(), size_of_val(words));
            });
        }
        Ok(slots)
    }

    /// A free slot, near those that this CPU used before.
    #[inline(always)]
    pub fn take<P: Platform>(&self, platform: &P) -> Option<OwnedSlot> {
        let near = platform.cpu() % WORDS;
        self.take_from(near).or_else(|| self.take_elsewhere(platform, near))
    }

    /// A free slot of one word.
    #[inline(always)]
    fn take_from(&self, word: usize) -> Option<OwnedSlot> {
        let free = self.free[word].fetch_update(Ordering::Acquire, Ordering::Relaxed, |free| {
            (free != 0).then_some(free & free.wrapping_sub(1))
        });
        let bit = free.ok()?.trailing_zeros() as usize;
        Some(OwnedSlot((word * 64 + bit) as u16))
    }

    /// A free slot of any word, of those from `near` on the first, if need be after looking for orphans.
    #[cold]
    #[inline(never)]
    fn take_elsewhere<P: Platform>(&self, platform: &P, near: usize) -> Option<OwnedSlot> {
        let take_any = || (0..WORDS).find_map(|offset| self.take_from((near + offset) % WORDS));
        take_any().or_else(|| {
            self.reclaim(platform);
            take_any()
        })
    }

    /// Takes back a slot that was not armed, or whose completion was seen.
    #[inline(always)]
    pub fn put_back(&self, slot: OwnedSlot) {
        self.free_slot(usize::from(slot.0));
    }

    #[inline(always)]
    fn free_slot(&self, index: usize) {
        self.slots[index % SLOTS].state.store(FREE, Ordering::Relaxed);
        self.free[index / 64 % WORDS].fetch_or(1 << (index % 64), Ordering::Release);
    }

    /// Nobody will wait for `slot` any more.
    pub fn orphan(&self, slot: OwnedSlot) {
        self.leave(&slot, ORPHANED, DISUSED);
    }

    /// The deadline of `slot` is over. It is never handed out again.
    pub fn pin(&self, slot: OwnedSlot) {
        self.leave(&slot, LATE, LOST);
    }

    /// The slot is `unfinished` from here on, or `over` if the unit dropped its wait, which may happen at this moment.
    fn leave(&self, slot: &OwnedSlot, unfinished: u8, over: u8) {
        let next = |state| Some(if state == DROPPED { over } else { unfinished });
        let _always_some = self.slot(slot).state.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
    }

    /// The wait descriptor, to be written at `position`, that completes `slot`.
    #[inline(always)]
    pub fn arm(&self, slot: &OwnedSlot, position: u64, devices: bool, fence: bool) -> Wait {
        let state = self.slot(slot);
        let value = state.value.load(Ordering::Relaxed).wrapping_add(1);
        state.value.store(value, Ordering::Relaxed);
        state.end.store(position, Ordering::Relaxed);
        state.devices.store(devices, Ordering::Relaxed);
        state.refused.store(false, Ordering::Relaxed);
        state.state.store(PENDING, Ordering::Release);
        self.wait(usize::from(slot.0), value, fence)
    }

    /// A wait whose completion nobody looks at.
    pub fn scrap_wait(&self, fence: bool) -> Wait {
        self.wait(usize::from(SCRAP), 0, fence)
    }

    #[inline(always)]
    fn wait(&self, index: usize, value: u32, fence: bool) -> Wait {
        let address = PhysAddr::new(self.page.as_u64() + index as u64 * SLOT_BYTES);
        Wait { completion: Completion::Status { address, value }, fence }
    }

    /// How the wait of `slot` stands.
    #[inline(always)]
    pub fn status<P: Platform>(&self, platform: &P, slot: &OwnedSlot) -> Status {
        let state = self.slot(slot);
        if self.is_done(platform, usize::from(slot.0)) {
            self.raise_over_below(state.end.load(Ordering::Relaxed) + 1);
            return Status::Done { refused: state.refused.load(Ordering::Acquire) };
        }
        match state.state.load(Ordering::Acquire) {
            DROPPED => Status::Dropped(Blame {
                source: state.source.load(Ordering::Relaxed),
                is_own: state.is_own.load(Ordering::Relaxed),
            }),
            _ => Status::Waiting,
        }
    }

    /// Notes that everything below `position` is over. Of two CPUs that do so at once the one with less to say may come
    /// last, so that the position goes back until the next completion: whoever reads it meanwhile waits longer, or asks
    /// the register.
    #[inline]
    fn raise_over_below(&self, position: u64) {
        if position > self.over_below() {
            self.over_below.store(position, Ordering::Relaxed);
        }
    }

    /// Everything below this position is over: the unit has fetched it, and carried it out or dropped it.
    #[inline]
    pub fn over_below(&self) -> u64 {
        self.over_below.load(Ordering::Relaxed)
    }

    /// Position of the wait descriptor of `slot`.
    pub fn position(&self, slot: &OwnedSlot) -> u64 {
        self.slot(slot).end.load(Ordering::Relaxed)
    }

    /// Whether a wait for device TLBs below `position` is neither done nor given up.
    pub fn devices_outstanding<P: Platform>(&self, platform: &P, position: u64) -> bool {
        self.outstanding(platform).any(|(_, slot)| {
            slot.devices.load(Ordering::Relaxed) && slot.end.load(Ordering::Relaxed) < position
        })
    }

    /// A descriptor at `position` was refused: tells the wait that is about it. If it is that wait itself, returns
    /// what to write in its place.
    pub fn refuse<P: Platform>(&self, platform: &P, position: u64) -> Wait {
        let concerned = self
            .outstanding(platform)
            .map(|(index, slot)| (slot.end.load(Ordering::Relaxed), index, slot))
            .filter(|&(end, ..)| end >= position)
            .min_by_key(|&(end, ..)| end);
        let Some((end, index, slot)) = concerned else { return self.scrap_wait(false) };
        slot.refused.store(true, Ordering::Release);
        if end == position {
            return self.wait(index, slot.value.load(Ordering::Relaxed), false);
        }
        self.scrap_wait(false)
    }

    /// The device `source` did not answer, and the unit dropped every unfinished wait below `head`.
    ///
    /// Where the unit does not say which device it was, it is one of those that the first unfinished wait is for: a
    /// wait before it would be done otherwise. What is behind it was only held up.
    pub fn drop_below<P: Platform>(&self, platform: &P, head: u64, source: u16) {
        let unfinished = self.unfinished(platform, |state| dropped(state).is_some());
        let first = unfinished.map(|(_, slot)| slot.end.load(Ordering::Relaxed)).min();
        for (_, slot) in self.unfinished(platform, |state| dropped(state).is_some()) {
            let end = slot.end.load(Ordering::Relaxed);
            if end < head {
                let is_own = source == 0 && first == Some(end) && slot.devices.load(Ordering::Relaxed);
                slot.source.store(source, Ordering::Relaxed);
                slot.is_own.store(is_own, Ordering::Relaxed);
                let _free_meanwhile = slot.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, dropped);
            }
        }
    }

    /// Waits in flight, those that nobody waits for included.
    fn outstanding<P: Platform>(&self, platform: &P) -> impl Iterator<Item = (usize, &Slot)> {
        self.unfinished(platform, |state| matches!(state, PENDING | ORPHANED))
    }

    /// Slots in a state that `wanted` says yes to, whose waits are not known to be over.
    fn unfinished<P: Platform>(
        &self,
        platform: &P,
        wanted: impl Fn(u8) -> bool,
    ) -> impl Iterator<Item = (usize, &Slot)> {
        let over_below = self.over_below();
        self.slots.iter().enumerate().filter(move |&(index, slot)| {
            wanted(slot.state.load(Ordering::Acquire))
                && slot.end.load(Ordering::Relaxed) >= over_below
                && !self.is_done(platform, index)
        })
    }

    /// Frees orphans that nothing can be written to any more. Under the queue's lock.
    #[cold]
    fn reclaim<P: Platform>(&self, platform: &P) {
        let over_below = self.over_below();
        for (index, slot) in self.slots.iter().enumerate() {
            let over = || slot.end.load(Ordering::Relaxed) < over_below || self.is_done(platform, index);
            if matches!(slot.state.load(Ordering::Acquire), ORPHANED | DISUSED) && over() {
                self.free_slot(index);
            }
        }
    }

    #[inline]
    fn slot(&self, slot: &OwnedSlot) -> &Slot {
        &self.slots[usize::from(slot.0) % SLOTS]
    }

    /// Whether the unit has written the value that slot `index` waits for.
    #[inline]
    fn is_done<P: Platform>(&self, platform: &P, index: usize) -> bool {
        let written = self.with_memory(platform, |words| words[index % SLOTS].load(Ordering::Acquire));
        // The unit writes 32 bits: the low half.
        written as u32 == self.slots[index % SLOTS].value.load(Ordering::Relaxed)
    }

    #[inline]
    fn with_memory<P: Platform, T>(&self, platform: &P, access: impl FnOnce(&Table) -> T) -> T {
        // SAFETY: the page is the one that `allocate_contiguous` returned for these slots, which is never freed.
        access(unsafe { platform.tables().table(self.page) })
    }
}

impl Slot {
    fn new() -> Self {
        Self {
            value: AtomicU32::new(0),
            end: AtomicU64::new(0),
            state: AtomicU8::new(FREE),
            devices: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            source: AtomicU16::new(0),
            is_own: AtomicBool::new(false),
        }
    }
}
