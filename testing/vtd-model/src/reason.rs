//! Why a request was blocked, as fault records say it.

/// A fault reason of legacy mode or of interrupt remapping.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Reason {
    RootNotPresent = 0x1,
    ContextNotPresent = 0x2,
    ContextInvalid = 0x3,
    AddressTooLarge = 0x4,
    NoWrite = 0x5,
    NoRead = 0x6,
    PageEntryNotAccessible = 0x7,
    RootNotAccessible = 0x8,
    ContextNotAccessible = 0x9,
    RootReserved = 0xa,
    ContextReserved = 0xb,
    PageEntryReserved = 0xc,
    RequestBlocked = 0xd,
    OutputIsInterrupt = 0xe,
    InterruptRequestReserved = 0x20,
    InterruptIndexTooLarge = 0x21,
    InterruptNotPresent = 0x22,
    InterruptNotAccessible = 0x23,
    InterruptReserved = 0x24,
    CompatibilityBlocked = 0x25,
    InterruptSourceRefused = 0x26,
}

impl Reason {
    /// Whether the FPD bit of the entry that was used mutes the fault.
    #[must_use]
    pub fn can_be_muted(self) -> bool {
        matches!(self as u8, 0x2..=0x7 | 0xb..=0xe | 0x22 | 0x24 | 0x26)
    }
}
