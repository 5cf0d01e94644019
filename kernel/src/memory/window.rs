//! The window: which of its addresses show what.

use alloc::vec::Vec;
use core::ops::Range;

use mm::{PAGE_BYTES, PhysRange};

use super::layout;

/// Who has what of [`layout::WINDOW`].
pub struct Window {
    /// What was never given out, or has come back behind all the rest.
    rest: Range<u64>,
    /// What is free in between: no two of them touch.
    returned: Vec<Range<u64>>,
    /// Registers, whole pages, and where they are shown. Whoever asks for them again gets the same addresses.
    registers: Vec<(PhysRange, u64)>,
}

impl Window {
    /// All of it is free.
    pub const fn new() -> Self {
        Self { rest: layout::WINDOW, returned: Vec::new(), registers: Vec::new() }
    }

    /// Addresses for `pages`, the lowest that there are, aligned alike as far as large pages need it.
    pub fn reserve(&mut self, pages: PhysRange) -> Option<u64> {
        const LARGE: u64 = 2 << 20;
        let alignment = if pages.bytes >= LARGE { LARGE } else { PAGE_BYTES };
        // The first address from `first` on that lies in a large page as the memory does.
        let place = |first: u64| first + (pages.start.as_u64().wrapping_sub(first) & (alignment - 1));
        let fits = |free: &Range<u64>| {
            let end = place(free.start).checked_add(pages.bytes);
            end.is_some_and(|end| end <= free.end)
        };
        let fitting = self.returned.iter().enumerate().filter(|(_, free)| fits(free));
        let index = fitting.min_by_key(|(_, free)| free.start).map(|(index, _)| index);
        let free = match index {
            Some(index) => self.returned.swap_remove(index),
            None => Some(self.rest.clone()).filter(fits)?,
        };
        let input = place(free.start);
        let end = input + pages.bytes;
        match index {
            Some(_) => self.keep(end..free.end),
            None => self.rest.start = end,
        }
        self.keep(free.start..input);
        Some(input)
    }

    /// Takes addresses back at which nothing is mapped.
    pub fn give_back(&mut self, input: u64, bytes: u64) {
        let mut free = input..input + bytes;
        let is_apart = |other: &Range<u64>| free.end <= other.start || other.end <= free.start;
        debug_assert!(free.end <= self.rest.start && self.returned.iter().all(is_apart), "given back twice");
        let touches =
            |other: &Range<u64>, free: &Range<u64>| other.end == free.start || free.end == other.start;
        while let Some(index) = self.returned.iter().position(|other| touches(other, &free)) {
            let other = self.returned.swap_remove(index);
            free = free.start.min(other.start)..free.end.max(other.end);
        }
        if self.rest.start == free.end {
            self.rest.start = free.start;
        } else {
            self.keep(free);
        }
    }

    /// Notes that `free` is. Without memory to note it, it is lost.
    fn keep(&mut self, free: Range<u64>) {
        if !free.is_empty() && self.returned.try_reserve(1).is_ok() {
            self.returned.push(free);
        }
    }

    /// How many bytes are in use, or lost.
    pub fn used_bytes(&self) -> u64 {
        let returned: u64 = self.returned.iter().map(|free| free.end - free.start).sum();
        self.rest.start - layout::WINDOW.start - returned
    }

    /// Notes that the registers at `pages` are shown at `input`. False without memory for it.
    pub fn note(&mut self, pages: PhysRange, input: u64) -> bool {
        let has_room = self.registers.try_reserve(1).is_ok();
        if has_room {
            self.registers.push((pages, input));
        }
        has_room
    }

    /// Where the registers at `pages` are shown, if they are.
    pub fn find(&self, pages: PhysRange) -> Option<u64> {
        let offset = |shown: PhysRange| pages.start.as_u64().checked_sub(shown.start.as_u64());
        self.registers.iter().find_map(|&(shown, input)| {
            let offset = offset(shown).filter(|offset| offset + pages.bytes <= shown.bytes)?;
            Some(input + offset)
        })
    }
}
