//! Submission and completion entries.

use core::fmt;

use iommu::Iova;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Admin opcodes.
mod opcode {
    pub const IDENTIFY: u32 = 0x06;
    pub const SET_FEATURES: u32 = 0x09;
    pub const GET_FEATURES: u32 = 0x0a;
}

/// Identify: the controller's own data structure.
const IDENTIFY_CONTROLLER: u32 = 1;
/// Feature: the controller's clock, 8 bytes in memory.
const FEATURE_TIMESTAMP: u32 = 0x0e;

/// A submission entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Command {
    /// Opcode in bits 7:0, command identifier in 31:16.
    dword0: u32,
    namespace: u32,
    reserved: [u32; 2],
    metadata: u64,
    prp: [u64; 2],
    dwords: [u32; 6],
}

const _: () = assert!(size_of::<Command>() == 64);
const _: () = assert!(core::mem::offset_of!(Command, prp) == 24);
const _: () = assert!(core::mem::offset_of!(Command, dwords) == 40);

impl Command {
    /// Writes the controller's Identify structure, 4 KiB, to `to`.
    #[must_use]
    pub fn identify_controller(to: Iova) -> Self {
        Self::with_memory(opcode::IDENTIFY, to, IDENTIFY_CONTROLLER)
    }

    /// Sets the controller's clock from the 8 bytes at `from`.
    #[must_use]
    pub fn set_timestamp(from: Iova) -> Self {
        Self::with_memory(opcode::SET_FEATURES, from, FEATURE_TIMESTAMP)
    }

    /// Writes the controller's clock to the 8 bytes at `to`.
    #[must_use]
    pub fn get_timestamp(to: Iova) -> Self {
        Self::with_memory(opcode::GET_FEATURES, to, FEATURE_TIMESTAMP)
    }

    /// A command with one page of memory at most, so that one pointer is enough.
    fn with_memory(opcode: u32, iova: Iova, dword10: u32) -> Self {
        let mut command = Self { dword0: opcode, prp: [iova.as_u64(), 0], ..Self::default() };
        command.dwords[0] = dword10;
        command
    }

    /// The command under the identifier `id`.
    #[must_use]
    pub fn identified(self, id: u16) -> Self {
        Self { dword0: self.dword0 & 0xffff | u32::from(id) << 16, ..self }
    }

    /// The identifier.
    #[must_use]
    pub fn id(&self) -> u16 {
        (self.dword0 >> 16) as u16
    }
}

/// A completion entry, as the controller wrote it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// What the command returns.
    pub result: u32,
    /// Queue that the command was in.
    pub queue: u16,
    /// Identifier of the command.
    pub id: u16,
    /// Bit that tells a new entry from one of the lap before.
    pub phase: bool,
    /// How the command ended.
    pub status: Status,
}

impl Completion {
    /// Decodes the four dwords of an entry.
    #[must_use]
    pub fn decode(dwords: [u32; 4]) -> Self {
        let [result, _, queue, tail] = dwords;
        Self {
            result,
            queue: (queue >> 16) as u16,
            id: tail as u16,
            phase: tail & 1 << 16 != 0,
            status: Status((tail >> 17) as u16),
        }
    }
}

/// The status field of a completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status(u16);

impl Status {
    /// Whether the controller calls the command a success. It may do so for one that the IOMMU blocked.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }

    /// Status code type in bits 10:8, status code in 7:0.
    #[must_use]
    pub const fn code(self) -> u16 {
        self.0 & 0x7ff
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status type {} code {:#04x}", self.0 >> 8 & 7, self.0 & 0xff)
    }
}
