//! What a program has, read and written by the kernel.

use abi::Error;

use super::{Backing, Region, Space};
use crate::{memory::layout, process::copy};

impl Space {
    /// Copies what the program has at `address`.
    ///
    /// # Errors
    /// It has not all of that.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Error> {
        let (mut at, mut rest) = (address, into);
        while !rest.is_empty() {
            let (from, bytes) = self.piece(at, rest.len(), false)?;
            let (now, later) = rest.split_at_mut(bytes);
            // SAFETY: bytes of the region's pages, which the direct map shows.
            unsafe { copy::from_shared(from, now) };
            (at, rest) = (at + bytes as u64, later);
        }
        Ok(())
    }

    /// Copies `bytes` to what the program has at `address`, and may write itself.
    ///
    /// # Errors
    /// It has not all of that. Some of it may have been written.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let (mut at, mut rest) = (address, bytes);
        while !rest.is_empty() {
            let (to, bytes) = self.piece(at, rest.len(), true)?;
            let (now, later) = rest.split_at(bytes);
            // SAFETY: as in `read`. No Rust value lies there.
            unsafe { copy::to_shared(now, to) };
            (at, rest) = (at + bytes as u64, later);
        }
        Ok(())
    }

    /// The words that the program has at `address`.
    ///
    /// # Errors
    /// It has not all of them.
    pub fn read_words<const N: usize>(&self, address: u64) -> Result<[u64; N], Error> {
        let mut words = [0; N];
        for (word, at) in words.iter_mut().zip((0..).step_by(8)) {
            let mut bytes = [0; 8];
            self.read(address.checked_add(at).ok_or(Error::BadAddress)?, &mut bytes)?;
            *word = u64::from_le_bytes(bytes);
        }
        Ok(words)
    }

    /// Puts words to what the program has at `address`.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub fn write_words(&mut self, address: u64, words: &[u64]) -> Result<(), Error> {
        for (word, at) in words.iter().zip((0..).step_by(8)) {
            self.write(address.checked_add(at).ok_or(Error::BadAddress)?, &word.to_le_bytes())?;
        }
        Ok(())
    }

    /// Where the kernel sees the memory that the program has at `address`, and how much of `bytes` bytes is there in
    /// one piece: at least one.
    fn piece(&self, address: u64, bytes: usize, is_written: bool) -> Result<(*mut u8, usize), Error> {
        let is_memory = |region: &&Region| {
            !matches!(region.backing, Backing::Device) && (region.is_writable || !is_written)
        };
        let region = self.region(address).filter(is_memory).ok_or(Error::BadAddress)?;
        let offset = address - region.start;
        let left = region.range.bytes - offset;
        let at = layout::direct(region.range.start) + offset;
        Ok((at as *mut u8, usize::try_from(left).map_or(bytes, |left| left.min(bytes))))
    }
}
