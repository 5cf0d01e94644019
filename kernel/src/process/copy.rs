//! Copying between the kernel's memory and what programs and devices may be writing at the same time: by volatile
//! accesses, eight bytes at once where both are aligned.

const WORD: usize = size_of::<u64>();

/// Fills `into` from `from`.
///
/// # Safety
/// As many bytes can be read there.
pub unsafe fn from_shared(from: *const u8, into: &mut [u8]) {
    let words = if from.cast::<u64>().is_aligned() { into.len() / WORD } else { 0 };
    let (whole, rest) = into.split_at_mut(words * WORD);
    for (index, bytes) in whole.chunks_exact_mut(WORD).enumerate() {
        // SAFETY: the caller's promise; aligned, as was looked.
        let word = unsafe { from.cast::<u64>().add(index).read_volatile() };
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    for (index, byte) in (words * WORD..).zip(rest) {
        // SAFETY: the caller's promise.
        *byte = unsafe { from.add(index).read_volatile() };
    }
}

/// Puts `bytes` to `to`.
///
/// # Safety
/// As many bytes can be written there, and are nothing that Rust knows of.
pub unsafe fn to_shared(bytes: &[u8], to: *mut u8) {
    let words = if to.cast::<u64>().is_aligned() { bytes.len() / WORD } else { 0 };
    let (whole, rest) = bytes.split_at(words * WORD);
    for (index, bytes) in whole.chunks_exact(WORD).enumerate() {
        let word = u64::from_ne_bytes(core::array::from_fn(|at| bytes[at]));
        // SAFETY: the caller's promise; aligned, as was looked.
        unsafe { to.cast::<u64>().add(index).write_volatile(word) };
    }
    for (index, &byte) in (words * WORD..).zip(rest) {
        // SAFETY: the caller's promise.
        unsafe { to.add(index).write_volatile(byte) };
    }
}
