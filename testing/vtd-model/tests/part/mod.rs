//! Buffers of any length and alignment, with something beside them that is nobody's business.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::ptr::NonNull;

use iommu::dma::{DmaBuffer, RawBuffer};

/// What lies beside a part.
pub const BESIDE: u8 = 0xee;

const PAGE: usize = 4096;

/// Some bytes of pages that hold [`BESIDE`] otherwise.
#[derive(Debug)]
pub struct Part {
    memory: Vec<u8>,
    first: usize,
    bytes: usize,
}

impl Part {
    /// `bytes` bytes that begin `offset` bytes into a page.
    pub fn new(offset: usize, bytes: usize) -> Self {
        let memory = vec![BESIDE; bytes + 3 * PAGE];
        let to_page = memory.as_ptr().addr().next_multiple_of(PAGE) - memory.as_ptr().addr();
        Self { memory, first: to_page + offset, bytes }
    }

    /// The same, with content.
    pub fn holding(offset: usize, content: &[u8]) -> Self {
        let mut part = Self::new(offset, content.len());
        part.bytes_mut().copy_from_slice(content);
        part
    }

    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.first..][..self.bytes]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.first..][..self.bytes]
    }

    /// Whether nobody wrote beside it.
    pub fn is_intact(&self) -> bool {
        let (before, rest) = self.memory.split_at(self.first);
        before.iter().chain(&rest[self.bytes..]).all(|&byte| byte == BESIDE)
    }
}

// SAFETY: the part owns its memory, which does not move with it; bytes have no invalid values.
unsafe impl DmaBuffer for Part {
    fn into_raw(self) -> RawBuffer {
        let mut part = Box::new(self);
        let (first, bytes) = (NonNull::from(&mut part.memory[..]).cast::<u8>(), part.bytes);
        // SAFETY: the part lies inside its memory.
        let first = unsafe { first.add(part.first) };
        RawBuffer { first, bytes, cookie: Box::into_raw(part).expose_provenance() }
    }

    unsafe fn from_raw(raw: RawBuffer) -> Self {
        // SAFETY: the cookie is the box that `into_raw` made, used once.
        *unsafe { Box::from_raw(std::ptr::with_exposed_provenance_mut(raw.cookie)) }
    }
}
