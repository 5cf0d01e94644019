//! Free blocks of one zone: 2^order frames each, aligned to their size.

use super::MAX_ORDER;
use super::map::MemoryMap;
use super::record::{FrameRecord, NONE, State};

const ORDERS: usize = MAX_ORDER as usize + 1;

/// The free blocks of a zone, in one list for each order. The lists run through the records of the blocks' first
/// frames.
pub(super) struct Buddy {
    heads: [u32; ORDERS],
    blocks: [usize; ORDERS],
}

impl Buddy {
    pub(super) const fn new() -> Self {
        Self { heads: [NONE; ORDERS], blocks: [0; ORDERS] }
    }

    /// Frames in all blocks.
    pub(super) fn free(&self) -> usize {
        self.blocks.iter().enumerate().map(|(order, blocks)| blocks << order).sum()
    }

    /// Frames in the largest block.
    pub(super) fn largest(&self) -> usize {
        self.blocks.iter().rposition(|blocks| *blocks != 0).map_or(0, |order| 1 << order)
    }

    /// Takes a block of `order` out, split from a larger one if need be. Its record says [`State::Held`].
    pub(super) fn allocate(&mut self, map: &MemoryMap<'_>, order: u8) -> Option<u32> {
        let mut from = (order..=MAX_ORDER).find(|from| self.heads[usize::from(*from)] != NONE)?;
        let frame = self.heads[usize::from(from)];
        let record = map.record_of(frame)?;
        self.unlink(map, frame, record, from);
        record.set(State::Held);
        while from > order {
            from -= 1;
            self.link(map, frame + (1 << from), from);
        }
        Some(frame)
    }

    /// Adds `frames` frames from `first` on, in blocks as large as they and their free neighbours make.
    pub(super) fn free_frames(&mut self, map: &MemoryMap<'_>, mut first: u32, mut frames: u32) {
        while frames != 0 {
            // 32 bits set at most: `ilog2` and `trailing_zeros` fit.
            let order = (frames.ilog2().min(first.trailing_zeros()) as u8).min(MAX_ORDER);
            self.free_block(map, first, order);
            first += 1 << order;
            frames -= 1 << order;
        }
    }

    fn free_block(&mut self, map: &MemoryMap<'_>, mut frame: u32, mut order: u8) {
        while order < MAX_ORDER {
            let buddy = frame ^ (1 << order);
            // A buddy in another zone cannot be met: the border is aligned to the largest block.
            let Some(record) = map.record_of(buddy).filter(|record| record.state() == State::Free { order })
            else {
                break;
            };
            self.unlink(map, buddy, record, order);
            let upper = frame.max(buddy);
            if let Some(record) = map.record_of(upper) {
                record.set(State::Inside);
            }
            frame = frame.min(buddy);
            order += 1;
        }
        self.link(map, frame, order);
    }

    fn link(&mut self, map: &MemoryMap<'_>, frame: u32, order: u8) {
        let Some(record) = map.record_of(frame) else { return };
        let slot = usize::from(order);
        let head = core::mem::replace(&mut self.heads[slot], frame);
        record.set_next(head);
        record.set_previous(NONE);
        if let Some(next) = map.record_of(head) {
            next.set_previous(frame);
        }
        record.set(State::Free { order });
        self.blocks[slot] += 1;
    }

    fn unlink(&mut self, map: &MemoryMap<'_>, frame: u32, record: &FrameRecord, order: u8) {
        let slot = usize::from(order);
        let (next, previous) = (record.next(), record.previous());
        if let Some(next) = map.record_of(next) {
            next.set_previous(previous);
        }
        match map.record_of(previous) {
            Some(previous) => previous.set_next(next),
            None => {
                debug_assert_eq!(self.heads[slot], frame);
                self.heads[slot] = next;
            }
        }
        self.blocks[slot] -= 1;
    }
}
