//! A table page that lies beyond the addresses that units can put out.

use std::sync::Mutex;

/// Of all pages, one is given out under an address beyond the host address width.
#[derive(Debug)]
pub(crate) struct Beyond {
    /// The bit that makes an address be beyond.
    bit: u64,
    /// Allocations until that one.
    after: Mutex<Option<u64>>,
}

impl Beyond {
    pub fn new(host_address_bits: u8) -> Self {
        Self { bit: 1_u64.unbounded_shl(host_address_bits.into()), after: Mutex::new(None) }
    }

    pub fn set(&self, after: u64) {
        *self.after.lock().unwrap() = Some(after);
    }

    /// The address under which the pages at `physical` are given out.
    pub fn place(&self, physical: u64) -> u64 {
        let mut after = self.after.lock().unwrap();
        let is_this = *after == Some(0);
        *after = after.and_then(|left| left.checked_sub(1));
        if is_this { physical | self.bit } else { physical }
    }

    /// Where the page is that was given out as `address`.
    pub fn real(&self, address: u64) -> u64 {
        address & !self.bit
    }
}
