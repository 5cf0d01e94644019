//! Registers that are code: how a device in software sees each access as it happens.

use core::ptr::NonNull;
use std::{boxed::Box, sync::Arc};

use super::Mmio;

/// The registers of a device in software.
pub trait Registers: Send + Sync {
    /// Reads `width` bytes at `offset`.
    fn read(&self, offset: usize, width: usize) -> u64;
    /// Writes `width` bytes at `offset`.
    fn write(&self, offset: usize, width: usize, value: u64);
}

/// A place in such registers.
#[derive(Clone)]
pub struct Trap {
    device: Arc<dyn Registers>,
    offset: usize,
}

impl Trap {
    pub(super) fn further(&self, bytes: usize) -> Self {
        Self { device: self.device.clone(), offset: self.offset + bytes }
    }

    pub(super) fn read(&self, width: usize) -> u64 {
        self.device.read(self.offset, width)
    }

    pub(super) fn write(&self, width: usize, value: u64) {
        self.device.write(self.offset, width, value);
    }
}

impl Mmio {
    /// The first `bytes` bytes of the registers of `device`.
    pub fn trapped(device: Arc<dyn Registers>, bytes: usize) -> Self {
        // Never accessed, but a window of it must be a real address.
        let memory = Box::leak(std::vec![0_u64; bytes.div_ceil(8)].into_boxed_slice());
        Self { base: NonNull::from(memory).cast(), bytes, trap: Some(Trap { device, offset: 0 }) }
    }
}
