//! Submission and completion entries.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::virtualization::Resource;

/// Admin opcodes.
mod opcode {
    pub const DELETE_SUBMISSION_QUEUE: u32 = 0x00;
    pub const CREATE_SUBMISSION_QUEUE: u32 = 0x01;
    pub const DELETE_COMPLETION_QUEUE: u32 = 0x04;
    pub const CREATE_COMPLETION_QUEUE: u32 = 0x05;
    pub const IDENTIFY: u32 = 0x06;
    pub const ABORT: u32 = 0x08;
    pub const SET_FEATURES: u32 = 0x09;
    pub const GET_FEATURES: u32 = 0x0a;
    pub const NAMESPACE_ATTACHMENT: u32 = 0x15;
    pub const VIRTUALIZATION_MANAGEMENT: u32 = 0x1c;
}

/// Opcodes of the NVM command set.
mod nvm {
    pub const FLUSH: u32 = 0x00;
    pub const WRITE: u32 = 0x01;
    pub const READ: u32 = 0x02;
    pub const DATASET_MANAGEMENT: u32 = 0x09;
}

/// Identify: the data structure of a namespace.
const IDENTIFY_NAMESPACE: u32 = 0;
/// Identify: the controller's own data structure.
const IDENTIFY_CONTROLLER: u32 = 1;
/// Identify: the list of active namespaces.
const IDENTIFY_ACTIVE_NAMESPACES: u32 = 2;
/// Identify: the list of all namespaces that there are, whoever they are attached to.
const IDENTIFY_ALLOCATED_NAMESPACES: u32 = 0x10;
/// Which structure: the controllers that a namespace is attached to.
const IDENTIFY_ATTACHED_CONTROLLERS: u32 = 0x12;
/// Identify: what a primary controller can give to secondary ones.
const IDENTIFY_PRIMARY: u32 = 0x14;
/// Identify: the list of secondary controllers.
const IDENTIFY_SECONDARIES: u32 = 0x15;
/// Virtualization management: what the primary controller keeps of what is flexible, from its next reset on.
const PRIMARY_FLEXIBLE: u32 = 1;
/// Virtualization management: what a secondary controller, which is offline, gets.
const SECONDARY_ASSIGN: u32 = 8;
/// Virtualization management: a secondary controller can be used.
const SECONDARY_ONLINE: u32 = 9;
/// Feature: how many I/O queues there are.
const FEATURE_QUEUES: u32 = 0x07;
/// Dataset management: the ranges are not needed any more.
const DEALLOCATE: u32 = 1 << 2;
/// Create a queue: it is one contiguous piece.
const CONTIGUOUS: u32 = 1;
/// Create a completion queue: it raises interrupts.
const INTERRUPTS: u32 = 1 << 1;
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
    pub fn identify_controller(to: u64) -> Self {
        Self::with_memory(opcode::IDENTIFY, to, IDENTIFY_CONTROLLER)
    }

    /// Writes the identifiers of the active namespaces, up to 1,024 in ascending order, to the 4 KiB at `to`.
    #[must_use]
    pub fn identify_active_namespaces(to: u64) -> Self {
        Self::with_memory(opcode::IDENTIFY, to, IDENTIFY_ACTIVE_NAMESPACES)
    }

    /// Writes the Identify structure of `namespace`, 4 KiB, to `to`.
    #[must_use]
    pub fn identify_namespace(namespace: u32, to: u64) -> Self {
        Self { namespace, ..Self::with_memory(opcode::IDENTIFY, to, IDENTIFY_NAMESPACE) }
    }

    /// Writes the identifiers of all namespaces, up to 1,024 in ascending order, to the 4 KiB at `to`.
    #[must_use]
    pub fn identify_allocated_namespaces(to: u64) -> Self {
        Self::with_memory(opcode::IDENTIFY, to, IDENTIFY_ALLOCATED_NAMESPACES)
    }

    /// Writes the list of the controllers that `namespace` is attached to, 4 KiB, to `to`.
    #[must_use]
    pub fn identify_attached_controllers(namespace: u32, to: u64) -> Self {
        Self { namespace, ..Self::with_memory(opcode::IDENTIFY, to, IDENTIFY_ATTACHED_CONTROLLERS) }
    }

    /// Writes what a primary controller can give to secondary ones, a structure of 4 KiB, to `to`.
    #[must_use]
    pub fn identify_primary(to: u64) -> Self {
        Self::with_memory(opcode::IDENTIFY, to, IDENTIFY_PRIMARY)
    }

    /// Writes the list of secondary controllers, 4 KiB, to `to`.
    #[must_use]
    pub fn identify_secondaries(to: u64) -> Self {
        Self::with_memory(opcode::IDENTIFY, to, IDENTIFY_SECONDARIES)
    }

    /// Leaves the primary controller nothing of the flexible `resource`, from its next reset of the function on.
    #[must_use]
    pub fn give_up(resource: Resource) -> Self {
        Self::plain(opcode::VIRTUALIZATION_MANAGEMENT, [PRIMARY_FLEXIBLE | resource.bits(), 0])
    }

    /// Gives secondary controller `id`, which is offline, `count` of the flexible `resource`.
    #[must_use]
    pub fn give_to_secondary(id: u16, resource: Resource, count: u16) -> Self {
        let dword10 = SECONDARY_ASSIGN | resource.bits() | u32::from(id) << 16;
        Self::plain(opcode::VIRTUALIZATION_MANAGEMENT, [dword10, count.into()])
    }

    /// Has secondary controller `id` be used with what it was given.
    #[must_use]
    pub fn bring_online(id: u16) -> Self {
        Self::plain(opcode::VIRTUALIZATION_MANAGEMENT, [SECONDARY_ONLINE | u32::from(id) << 16, 0])
    }

    /// Attaches `namespace` to the controllers in the list at `from`, 4 KiB: their number and their ids, two bytes
    /// each.
    #[must_use]
    pub fn attach_namespace(namespace: u32, from: u64) -> Self {
        Self { namespace, ..Self::with_memory(opcode::NAMESPACE_ATTACHMENT, from, 0) }
    }

    /// Asks for `pairs` pairs of I/O queues, at least 1. The result has how many there are.
    #[must_use]
    pub fn set_queue_count(pairs: u16) -> Self {
        let last = u32::from(pairs - 1);
        Self::plain(opcode::SET_FEATURES, [FEATURE_QUEUES, last | last << 16])
    }

    /// Makes completion queue `id` of `size` entries at `at`, which raises MSI-X entry `vector`.
    #[must_use]
    pub fn create_completion_queue(id: u16, size: u16, at: u64, vector: u16) -> Self {
        let dwords = [Self::queue(id, size), CONTIGUOUS | INTERRUPTS | u32::from(vector) << 16];
        Self { prp: [at, 0], ..Self::plain(opcode::CREATE_COMPLETION_QUEUE, dwords) }
    }

    /// Makes submission queue `id` of `size` entries at `at`, for the completion queue of the same number.
    #[must_use]
    pub fn create_submission_queue(id: u16, size: u16, at: u64) -> Self {
        let dwords = [Self::queue(id, size), CONTIGUOUS | u32::from(id) << 16];
        Self { prp: [at, 0], ..Self::plain(opcode::CREATE_SUBMISSION_QUEUE, dwords) }
    }

    /// Forgets submission queue `id`; what is in it is finished or aborted before that.
    #[must_use]
    pub fn delete_submission_queue(id: u16) -> Self {
        Self::plain(opcode::DELETE_SUBMISSION_QUEUE, [id.into(), 0])
    }

    /// Forgets completion queue `id`, which no submission queue uses any more.
    #[must_use]
    pub fn delete_completion_queue(id: u16) -> Self {
        Self::plain(opcode::DELETE_COMPLETION_QUEUE, [id.into(), 0])
    }

    /// Ends command `id` of submission queue `queue`, if that can be. Bit 0 of the result is set if it could not.
    #[must_use]
    pub fn abort(queue: u16, id: u16) -> Self {
        Self::plain(opcode::ABORT, [u32::from(queue) | u32::from(id) << 16, 0])
    }

    /// Reads `blocks` blocks from `first` on to `prp`.
    #[must_use]
    pub fn read(namespace: u32, first: u64, blocks: u16, prp: [u64; 2]) -> Self {
        Self::transfer(nvm::READ, namespace, first, blocks, prp)
    }

    /// Writes `blocks` blocks from `first` on from `prp`.
    #[must_use]
    pub fn write(namespace: u32, first: u64, blocks: u16, prp: [u64; 2]) -> Self {
        Self::transfer(nvm::WRITE, namespace, first, blocks, prp)
    }

    /// Makes what was written durable.
    #[must_use]
    pub fn flush(namespace: u32) -> Self {
        Self { namespace, ..Self::plain(nvm::FLUSH, [0, 0]) }
    }

    /// Forgets the blocks of the one range at `range`.
    #[must_use]
    pub fn deallocate(namespace: u32, range: u64) -> Self {
        let prp = [range, 0];
        Self { namespace, prp, ..Self::plain(nvm::DATASET_MANAGEMENT, [0, DEALLOCATE]) }
    }

    /// At least one block, which is given as one less.
    fn transfer(opcode: u32, namespace: u32, first: u64, blocks: u16, prp: [u64; 2]) -> Self {
        let mut command =
            Self { namespace, prp, ..Self::plain(opcode, [first as u32, (first >> 32) as u32]) };
        command.dwords[2] = u32::from(blocks - 1);
        command
    }

    /// Number and size of a queue, of which the size is given as one less.
    fn queue(id: u16, size: u16) -> u32 {
        u32::from(id) | u32::from(size - 1) << 16
    }

    fn plain(opcode: u32, [dword10, dword11]: [u32; 2]) -> Self {
        let mut command = Self { dword0: opcode, ..Self::default() };
        command.dwords[..2].copy_from_slice(&[dword10, dword11]);
        command
    }

    /// Sets the controller's clock from the 8 bytes at `from`.
    #[must_use]
    pub fn set_timestamp(from: u64) -> Self {
        Self::with_memory(opcode::SET_FEATURES, from, FEATURE_TIMESTAMP)
    }

    /// Writes the controller's clock to the 8 bytes at `to`.
    #[must_use]
    pub fn get_timestamp(to: u64) -> Self {
        Self::with_memory(opcode::GET_FEATURES, to, FEATURE_TIMESTAMP)
    }

    /// A command with one page of memory at most, so that one pointer is enough.
    fn with_memory(opcode: u32, at: u64, dword10: u32) -> Self {
        let mut command = Self { dword0: opcode, prp: [at, 0], ..Self::default() };
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

    /// The command, or a field of it, or its namespace is none that the controller knows.
    #[must_use]
    pub const fn is_refusal(self) -> bool {
        matches!(self.code(), 0x01 | 0x02 | 0x0b)
    }

    /// The command was ended by an abort.
    #[must_use]
    pub const fn is_aborted(self) -> bool {
        self.code() == 0x07
    }

    /// The medium failed, or what is on it is damaged.
    #[must_use]
    pub const fn is_medium_error(self) -> bool {
        self.code() >> 8 == 2
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
