//! Why a request was blocked, as fault records say it.

use crate::iotlb::Stage;

/// A fault reason of either mode or of interrupt remapping.
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
    ScalableRootNotAccessible = 0x38,
    ScalableRootNotPresent = 0x39,
    ScalableRootReserved = 0x3a,
    ScalableContextNotAccessible = 0x40,
    ScalableContextNotPresent = 0x41,
    ScalableContextReserved = 0x42,
    ScalableContextInvalid = 0x43,
    DeviceTlbNotEnabled = 0x44,
    RequestPasid = 0x48,
    PasidDirectoryNotAccessible = 0x50,
    PasidDirectoryNotPresent = 0x51,
    PasidDirectoryReserved = 0x52,
    PasidTableNotAccessible = 0x58,
    PasidNotPresent = 0x59,
    PasidReserved = 0x5a,
    PasidInvalid = 0x5b,
    FirstStageNotAccessible = 0x70,
    FirstStageNotPresent = 0x71,
    FirstStageReserved = 0x72,
    SecondStageNotAccessible = 0x78,
    SecondStageReserved = 0x7a,
    NotCanonical = 0x80,
    Supervisors = 0x81,
    BeyondSecondStage = 0x84,
    ScalableNoWrite = 0x85,
    ScalableNoRead = 0x86,
    ScalableOutputIsInterrupt = 0x87,
}

impl Reason {
    /// Whether the FPD bit of the entry that was used mutes the fault.
    #[must_use]
    pub fn can_be_muted(self) -> bool {
        matches!(
            self as u8,
            0x2..=0x7 | 0xb..=0xe | 0x22 | 0x24 | 0x26 | 0x41..=0x48 | 0x51..=0x52 | 0x59..=0x5d | 0x70..=0x7c | 0x80..=0x87
        )
    }

    /// What scalable mode calls a reason of legacy mode that a request meets below its context entry, in tables of
    /// `stage`.
    pub(crate) fn in_scalable_mode(self, stage: Stage) -> Self {
        match self {
            Self::PageEntryNotAccessible if stage == Stage::First => Self::FirstStageNotAccessible,
            Self::PageEntryReserved if stage == Stage::First => Self::FirstStageReserved,
            Self::AddressTooLarge => Self::BeyondSecondStage,
            Self::NoWrite => Self::ScalableNoWrite,
            Self::NoRead => Self::ScalableNoRead,
            Self::PageEntryNotAccessible => Self::SecondStageNotAccessible,
            Self::PageEntryReserved => Self::SecondStageReserved,
            Self::RequestBlocked => Self::DeviceTlbNotEnabled,
            Self::OutputIsInterrupt => Self::ScalableOutputIsInterrupt,
            other => other,
        }
    }

    /// Whether the tables deny just this access.
    pub(crate) fn is_no_right(self) -> bool {
        matches!(
            self,
            Self::NoRead
                | Self::NoWrite
                | Self::ScalableNoRead
                | Self::ScalableNoWrite
                | Self::FirstStageNotPresent
                | Self::Supervisors
        )
    }
}
