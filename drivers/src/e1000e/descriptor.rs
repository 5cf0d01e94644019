//! Descriptors, as values: two 64-bit words each.

use crate::net::Checksum;

/// Bytes of a descriptor.
pub const BYTES: u32 = 16;

/// Bytes that the controller may write into a buffer (RCTL.BSIZE 0).
pub const BUFFER_BYTES: usize = 2048;

/// What the controller has written into a receive descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Filled {
    /// Bytes in the buffer.
    pub bytes: usize,
    /// The frame ends in this buffer.
    pub is_last: bool,
    /// The controller found it damaged.
    pub has_errors: bool,
}

/// Reads the second word of a receive descriptor; `None` if the controller is not done with it.
pub fn filled(word: u64) -> Option<Filled> {
    const DONE: u64 = 1 << 32;
    const LAST: u64 = 1 << 33;
    /// CE, SE, SEQ, CXE, TCPE, IPE, RXE.
    const ERRORS: u64 = 0xf7 << 40;
    (word & DONE != 0).then(|| Filled {
        bytes: usize::from(word as u16),
        is_last: word & LAST != 0,
        has_errors: word & ERRORS != 0,
    })
}

const EXTENDED: u64 = 1 << 29;

/// A descriptor that says which checksum is completed in the frames behind it.
pub fn context(Checksum { start, offset }: Checksum) -> [u64; 2] {
    let field = start.saturating_add(offset);
    // Up to the end of the frame (TUCSE 0).
    [u64::from(start) << 32 | u64::from(field) << 40, EXTENDED]
}

/// The second word of the descriptor of a frame to send.
pub fn frame(bytes: usize, checksum: bool) -> u64 {
    const DATA: u64 = 1 << 20;
    /// The frame ends here, gets its check sequence, and is reported when it is sent.
    const WHOLE: u64 = (1 | 2 | 8) << 24;
    const COMPLETE: u64 = 1 << 41;
    bytes as u64 | DATA | EXTENDED | WHOLE | if checksum { COMPLETE } else { 0 }
}

/// Whether the controller has sent the frame whose descriptor has this second word.
pub fn is_sent(word: u64) -> bool {
    word & 1 << 32 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receive_descriptor_is_read_when_it_is_done() {
        assert_eq!(filled(60), None);
        let good = Filled { bytes: 60, is_last: true, has_errors: false };
        assert_eq!(filled(60 | 3 << 32), Some(good));
        assert_eq!(filled(60 | 1 << 32), Some(Filled { is_last: false, ..good }));
        for bit in [40, 41, 42, 44, 45, 46, 47] {
            assert_eq!(filled(60 | 3 << 32 | 1 << bit), Some(Filled { has_errors: true, ..good }));
        }
    }

    #[test]
    fn a_checksum_is_described_before_its_frame() {
        let checksum = Checksum { start: 34, offset: 16 };
        assert_eq!(context(checksum), [34 << 32 | 50 << 40, 0x2000_0000]);
        assert_eq!(frame(60, false), 0x2b10_003c);
        assert_eq!(frame(60, true), 0x0200_2b10_003c);
        assert!(is_sent(frame(60, true) | 1 << 32) && !is_sent(frame(60, true)));
    }
}
