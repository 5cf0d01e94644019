//! Bytes that a test can tell from any others.

use alloc::format;

use harness::{Failure, failure};
use iommu::PageBuffer;

/// Fills `bytes` with what belongs to `seed`: no two seeds agree in any 8 bytes.
pub fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for chunk in bytes.chunks_mut(8) {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}

/// `pages` pages of what belongs to `seed`.
pub fn pages(pages: usize, seed: u64) -> Result<PageBuffer, Failure> {
    let mut buffer = PageBuffer::zeroed(pages).ok_or_else(|| Failure::new("no memory for a buffer"))?;
    fill(&mut buffer, seed);
    Ok(buffer)
}

/// Fails unless `bytes` start with what belongs to `seed`, as long as they are.
pub fn expect(bytes: &[u8], seed: u64, what: &str) -> Result<(), Failure> {
    let mut wanted = [0; 4096];
    for (index, chunk) in bytes.chunks(wanted.len()).enumerate() {
        if index == 0 {
            fill(&mut wanted, seed);
        } else {
            // The pattern runs on: only the first page is needed often.
            return expect_long(bytes, seed, what);
        }
        if let Some(at) = (0..chunk.len()).find(|&at| chunk[at] != wanted[at]) {
            return Err(failure!("{what}: byte {at:#x} is {:#04x}, not {:#04x}", chunk[at], wanted[at]));
        }
    }
    Ok(())
}

fn expect_long(bytes: &[u8], seed: u64, what: &str) -> Result<(), Failure> {
    let mut wanted = alloc::vec![0; bytes.len()];
    fill(&mut wanted, seed);
    match (0..bytes.len()).find(|&at| bytes[at] != wanted[at]) {
        Some(at) => {
            Err(Failure::new(format!("{what}: byte {at:#x} is {:#04x}, not {:#04x}", bytes[at], wanted[at])))
        }
        None => Ok(()),
    }
}
