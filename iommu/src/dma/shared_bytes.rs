//! Bytes that the CPU and a device may access at the same time: copied by volatile access, never borrowed.

use core::ptr::NonNull;

/// What is copied at a time where alignment allows it.
type Word = u64;

const WORD_BYTES: usize = size_of::<Word>();

/// Copies the bytes at `from` into `to`.
///
/// # Safety
/// `from` is valid for reads of `to.len()` bytes, and nothing on this side borrows them.
pub(crate) unsafe fn copy_out(from: NonNull<u8>, to: &mut [u8]) {
    let from = from.as_ptr().cast_const();
    let (head, words) = parts(from.addr(), to.len());
    // SAFETY: the caller lends the bytes; `parts` cuts what is inside, the middle on word boundaries.
    unsafe {
        for (index, byte) in to[..head].iter_mut().enumerate() {
            *byte = from.add(index).read_volatile();
        }
        let middle = from.add(head).cast::<Word>();
        for (index, word) in to[head..][..words * WORD_BYTES].chunks_exact_mut(WORD_BYTES).enumerate() {
            word.copy_from_slice(&middle.add(index).read_volatile().to_ne_bytes());
        }
        let tail = head + words * WORD_BYTES;
        for (index, byte) in to[tail..].iter_mut().enumerate() {
            *byte = from.add(tail + index).read_volatile();
        }
    }
}

/// Copies `from` to the bytes at `to`.
///
/// # Safety
/// `to` is valid for writes of `from.len()` bytes, nothing on this side borrows them, and no other CPU writes them.
pub(crate) unsafe fn copy_in(from: &[u8], to: NonNull<u8>) {
    let to = to.as_ptr();
    let (head, words) = parts(to.addr(), from.len());
    // SAFETY: as in `copy_out`.
    unsafe {
        for (index, &byte) in from[..head].iter().enumerate() {
            to.add(index).write_volatile(byte);
        }
        let middle = to.add(head).cast::<Word>();
        let (chunks, _) = from[head..][..words * WORD_BYTES].as_chunks::<WORD_BYTES>();
        for (index, &word) in chunks.iter().enumerate() {
            middle.add(index).write_volatile(Word::from_ne_bytes(word));
        }
        let tail = head + words * WORD_BYTES;
        for (index, &byte) in from[tail..].iter().enumerate() {
            to.add(tail + index).write_volatile(byte);
        }
    }
}

/// Bytes before the first word boundary at or after `address`, and whole words from there, in a run of `bytes`.
fn parts(address: usize, bytes: usize) -> (usize, usize) {
    let head = (address.next_multiple_of(WORD_BYTES) - address).min(bytes);
    (head, (bytes - head) / WORD_BYTES)
}

#[cfg(test)]
mod tests {
    use std::{vec, vec::Vec};

    use super::*;

    #[test]
    fn every_length_at_every_alignment_is_copied_whole_and_nothing_beside_it() {
        for start in 0..2 * WORD_BYTES {
            for bytes in 0..5 * WORD_BYTES {
                let data: Vec<u8> = (1..).take(bytes).collect();
                let mut memory = vec![0xee_u8; start + bytes + WORD_BYTES];
                let mut read = vec![0_u8; bytes];
                let place = NonNull::from(&mut memory[..]).cast::<u8>();
                // SAFETY: the bytes lie inside `memory`, which nobody else uses meanwhile.
                unsafe {
                    copy_in(&data, place.add(start));
                    copy_out(place.add(start), &mut read);
                }
                assert_eq!(read, data, "{bytes} bytes at {start}");
                assert_eq!(memory[start..][..bytes], data);
                let beside = memory[..start].iter().chain(&memory[start + bytes..]);
                assert!(beside.copied().all(|byte| byte == 0xee), "{bytes} bytes at {start}");
            }
        }
    }
}
