//! What a device's own memory holds is not for the next process.
//!
//! A reset is what registers forget by. Memory behind a BAR outlives it: what a display shows is there until somebody
//! writes over it. So zeros are written to a display's before a process gets the device, whoever had it before. What is
//! behind other devices' BARs is taken for registers, and left to the reset (`docs/threats.md`).

use core::arch::asm;

use drivers::pci::{Contents, Lendable};

use super::{BARS, GiveError, Given};
use crate::memory::Alias;

impl Given {
    /// Writes zeros to the memory of a display that a process can see. It answers at its addresses already.
    pub(super) fn clear_memory(&mut self) -> Result<(), GiveError> {
        for index in 0..BARS as u8 {
            let Ok(lendable) = Lendable::of(&self.device, index) else { continue };
            // What is refused, for where it is, no process sees either.
            if lendable.contents != Contents::Memory || self.lendable(index.into()).is_err() {
                continue;
            }
            // SAFETY: it was checked to be no RAM.
            let alias = unsafe { Alias::of_device(lendable.range) }.ok_or(GiveError::OutOfMemory)?;
            clear(&alias, lendable.range.bytes).then_some(()).ok_or(GiveError::NotCleared { index })?;
        }
        Ok(())
    }
}

/// Writes `bytes` bytes of zeros. False if the device does not answer as if it had them.
fn clear(alias: &Alias, bytes: u64) -> bool {
    let first = alias.as_ptr().cast::<u64>();
    let count = bytes as usize / size_of::<u64>();
    for index in 0..count {
        // SAFETY: inside the alias.
        unsafe { first.add(index).write_volatile(0) };
    }
    // SAFETY: a fence touches nothing. What the CPU has combined is on its way then.
    unsafe { asm!("sfence", options(nostack, preserves_flags)) };
    // A read arrives behind the writes: all of them have been carried out when it is answered.
    // SAFETY: inside the alias.
    unsafe { first.add(count - 1).read_volatile() == 0 }
}
