//! Bytes that a test can tell from any others.

use harness::{Failure, failure};
use iommu::PageBuffer;

const WORD: usize = 8;

/// What belongs to `seed`, without an end: no two seeds have a word in common within anything that a test compares.
fn words(seed: u64) -> impl Iterator<Item = [u8; WORD]> {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    // SplitMix64, started far apart for each seed.
    let start = seed.wrapping_mul(0xd134_2543_de82_ef95);
    (1..).map(move |index: u64| {
        let mut word = start.wrapping_add(index.wrapping_mul(STEP));
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ word >> 31).to_le_bytes()
    })
}

/// Fills `bytes` with what belongs to `seed`.
pub fn fill(bytes: &mut [u8], seed: u64) {
    for (chunk, word) in bytes.chunks_mut(WORD).zip(words(seed)) {
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// `pages` pages of what belongs to `seed`.
pub fn pages(pages: usize, seed: u64) -> Result<PageBuffer, Failure> {
    let mut buffer = PageBuffer::zeroed(pages).ok_or_else(|| Failure::new("no memory for a buffer"))?;
    fill(&mut buffer, seed);
    Ok(buffer)
}

/// Whether `bytes` are what belongs to `seed`, as long as they are.
pub fn matches(bytes: &[u8], seed: u64) -> bool {
    first_difference(bytes, seed).is_none()
}

/// Fails unless `bytes`, which are `what`, are what belongs to `seed`.
pub fn expect(bytes: &[u8], seed: u64, what: &str) -> Result<(), Failure> {
    match first_difference(bytes, seed) {
        Some(at) => Err(failure!("{what}: not what was put there, from byte {at:#x} on")),
        None => Ok(()),
    }
}

/// Offset of the first word that is not what belongs to `seed`.
fn first_difference(bytes: &[u8], seed: u64) -> Option<usize> {
    let mut compared = bytes.chunks(WORD).zip(words(seed));
    compared.position(|(chunk, word)| *chunk != word[..chunk.len()]).map(|index| index * WORD)
}
