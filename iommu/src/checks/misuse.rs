//! What was found, and how it reads.

use core::{fmt, panic::Location};

use mm::{PhysAddr, PhysRange};

use crate::{Iova, PciAddress, dma::Access, platform::Unshareable};

/// Where in the code of a driver a call was made.
pub type Origin = &'static Location<'static>;

/// A buffer, or a piece of a list, in the hands of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lent {
    /// The device.
    pub function: PciAddress,
    /// Where the device finds the first byte.
    pub iova: Iova,
    /// Where the first byte lies in memory.
    pub memory: PhysAddr,
    /// Length in bytes.
    pub bytes: u64,
    /// What the device may do.
    pub access: Access,
    /// Where it was mapped.
    pub origin: Origin,
}

/// Something that a driver did wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Misuse {
    /// It is still mapped, a second after the driver's last handle of the device went.
    Leaked(Lent),
    /// The memory of both is partly the same, and one of the devices may write it.
    Overlap {
        /// What was mapped just now.
        new: Lent,
        /// What was mapped before.
        old: Lent,
    },
    /// Memory that no device may have was to be mapped. It was refused, as always.
    NotForDevices {
        /// The device.
        function: PciAddress,
        /// What lies there.
        kind: Unshareable,
        /// Address of the first byte, as the CPU has it.
        address: usize,
        /// Length in bytes.
        bytes: usize,
        /// Where it was to be mapped.
        origin: Origin,
    },
    /// The device wrote to it while the CPU had it.
    WrittenWhileSynced {
        /// The buffer.
        lent: Lent,
        /// Where it was synced for the CPU.
        synced: Origin,
    },
}

/// A record is of one such stretch of memory at most: whatever overlaps with it lies in the same one.
const STRETCH_BYTES: u64 = 1 << 16;

/// A part of a lent buffer, in bytes from its beginning, that lies in one stretch of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub offset: u64,
    pub memory: PhysRange,
}

impl Piece {
    /// First byte of the stretch that it lies in.
    pub fn stretch(&self) -> PhysAddr {
        PhysAddr::new(self.memory.start.as_u64() & !(STRETCH_BYTES - 1))
    }
}

impl Lent {
    pub(super) fn pieces(&self) -> impl Iterator<Item = Piece> {
        let Self { memory, bytes, .. } = *self;
        let mut offset = 0;
        core::iter::from_fn(move || {
            let start = memory.as_u64() + offset;
            let piece_bytes = (STRETCH_BYTES - start % STRETCH_BYTES).min(bytes - offset);
            let memory = PhysRange::new(PhysAddr::new(start), piece_bytes);
            let piece = Piece { offset, memory };
            offset += piece_bytes;
            (piece_bytes > 0).then_some(piece)
        })
    }
}

impl fmt::Display for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { function, iova, memory, bytes, access, origin } = self;
        let right = |on, letter| if on { letter } else { '-' };
        let (read, write) = (right(access.read, 'r'), right(access.write, 'w'));
        write!(f, "{function}'s {bytes} bytes at {iova} ({read}{write}, memory {memory}), mapped at {origin}")
    }
}

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaked(lent) => write!(f, "leaked: {lent}, and still so although its driver has gone"),
            Self::Overlap { new, old } => write!(f, "mapped twice: {new}; the same memory as {old}"),
            Self::NotForDevices { function, kind, address, bytes, origin } => {
                write!(f, "{function} was to get {bytes} bytes at {address:#x}, {kind}, at {origin}")
            }
            Self::WrittenWhileSynced { lent, synced } => {
                write!(
                    f,
                    "written by the device while the CPU had it: {lent}, synced for the CPU at {synced}"
                )
            }
        }
    }
}
