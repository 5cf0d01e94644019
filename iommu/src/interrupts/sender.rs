//! Who may raise an interrupt.

use core::fmt;

use crate::SourceId;

/// Who may use a remapping entry. There is no way to say anybody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender {
    /// The function with this requester id. For an I/O APIC, the id is what its device scope says.
    Function(SourceId),
    /// The function, whatever the bits of its function number that `ignored` names.
    Functions {
        /// The function.
        source: SourceId,
        /// Which bits are not compared.
        ignored: IgnoredBits,
    },
    /// Any function of these buses, inclusive: devices behind a bridge that puts other ids into their requests.
    Buses {
        /// First bus.
        first: u8,
        /// Last bus.
        last: u8,
    },
}

/// Bits of a function number that need not match, for a device that sends under several of its function numbers
/// (phantom functions).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IgnoredBits {
    /// Bit 2.
    Bit2,
    /// Bits 2 and 1.
    Bits21,
    /// All three.
    Bits210,
}

impl IgnoredBits {
    /// The bits, as a mask of the function number.
    #[must_use]
    pub const fn mask(self) -> u8 {
        match self {
            Self::Bit2 => 0b100,
            Self::Bits21 => 0b110,
            Self::Bits210 => 0b111,
        }
    }

    /// The fewest bits among which those of `mask` are; `None` if `mask` is 0 or has a bit above.
    #[must_use]
    pub const fn covering(mask: u8) -> Option<Self> {
        match mask {
            0b100 => Some(Self::Bit2),
            0b010 | 0b110 => Some(Self::Bits21),
            0b001 | 0b011 | 0b101 | 0b111 => Some(Self::Bits210),
            _ => None,
        }
    }
}

impl Sender {
    /// Whether `source` is one of those whom this lets in.
    #[must_use]
    pub fn includes(self, source: SourceId) -> bool {
        match self {
            Self::Function(one) => one == source,
            Self::Functions { source: one, ignored } => {
                let differing = one.requester ^ source.requester;
                one.segment == source.segment && differing & !u16::from(ignored.mask()) == 0
            }
            Self::Buses { first, last } => (first..=last).contains(&source.bus()),
        }
    }
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function(source) => source.fmt(f),
            Self::Functions { source, ignored } => {
                write!(f, "{source} (function & {:#x})", !ignored.mask() & 7)
            }
            Self::Buses { first, last } => write!(f, "buses {first:02x} to {last:02x}"),
        }
    }
}
