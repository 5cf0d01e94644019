//! Memory of the machine that a test lends to devices.

use std::{
    fmt,
    ptr::NonNull,
    slice,
    sync::{Arc, Weak},
};

use iommu::dma::{DmaBuffer, RawBuffer};

use crate::{machine::Machine, turn};

/// Whole pages of the machine's memory, at a physical address of its choice.
///
/// The machine knows who holds it. When it comes back from a device, no unit and no device may be able to reach it.
pub struct ModelBuffer {
    machine: Arc<Machine>,
    physical: u64,
    bytes: usize,
}

impl Machine {
    /// A buffer of `pages` pages, aligned to `align_pages` pages, a power of two; `None` if there is no room.
    #[must_use]
    pub fn allocate_buffer(self: &Arc<Self>, pages: u32, align_pages: u32) -> Option<ModelBuffer> {
        let mut state = self.state();
        let physical = self.memory.buffers.allocate(pages, align_pages, &mut state.world.random)?;
        drop(state);
        Some(ModelBuffer { machine: self.clone(), physical, bytes: pages as usize * 4096 })
    }
}

impl ModelBuffer {
    /// Its physical address.
    #[must_use]
    pub fn physical(&self) -> u64 {
        self.physical
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn first(&self) -> NonNull<u8> {
        self.machine.memory.buffers.pointer(self.physical, self.bytes).expect("memory of the machine")
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the buffer owns the memory, and no device reaches it while it is not lent.
        unsafe { slice::from_raw_parts(self.first().as_ptr(), self.bytes) }
    }

    /// The bytes, to be changed.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.first().as_ptr(), self.bytes) }
    }
}

// SAFETY: the memory belongs to the buffer, stays in place, and is plain bytes.
unsafe impl DmaBuffer for ModelBuffer {
    fn into_raw(self) -> RawBuffer {
        let _turn = turn::take();
        self.machine.memory.buffers.set_lent(self.physical, true);
        let (first, bytes) = (self.first(), self.bytes);
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is not dropped, so that this is the only owner of the reference.
        let machine = unsafe { std::ptr::read(&raw const this.machine) };
        // A buffer that stays pinned for ever must not keep its whole machine: long runs make thousands of them.
        let cookie = Arc::downgrade(&machine).into_raw().expose_provenance();
        RawBuffer { first, bytes, cookie }
    }

    unsafe fn from_raw(raw: RawBuffer) -> Self {
        let _turn = turn::take();
        // SAFETY: the cookie is the pointer that `into_raw` made, used once.
        let machine = unsafe { Weak::<Machine>::from_raw(std::ptr::with_exposed_provenance(raw.cookie)) };
        let machine = machine.upgrade().expect("a machine outlives its mappings");
        let physical = machine.memory.buffers.physical(raw.first.as_ptr(), raw.bytes);
        let physical = physical.expect("memory of the machine");
        machine.check_unreachable(physical, raw.bytes as u64);
        machine.memory.buffers.set_lent(physical, false);
        Self { machine, physical, bytes: raw.bytes }
    }
}

impl Drop for ModelBuffer {
    fn drop(&mut self) {
        let _turn = turn::take();
        self.machine.memory.buffers.free(self.physical);
    }
}

impl fmt::Debug for ModelBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelBuffer({:#x}, {} bytes)", self.physical, self.bytes)
    }
}
