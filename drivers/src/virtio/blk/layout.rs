//! What a virtio block device reads and writes: its configuration and its requests.

use iommu::Iova;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::super::Segment;
use crate::{
    block::{BlockInfo, Extent, flight::Kind},
    mmio::{Mmio, OutsideWindow, ReadOnly, Register, Word},
};

/// The device's view of the medium is in units of this, whatever its block size.
pub const SECTOR_BYTES: u32 = 512;

/// Longest request: a length in bytes is 32 bits wide, and nothing is gained by longer ones.
const REQUEST_LIMIT_BYTES: u32 = 4 << 20;

/// Feature bits.
pub mod feature {
    /// Segments have a maximum size.
    pub const SEGMENT_SIZE: u64 = 1 << 1;
    /// The medium cannot be written.
    pub const READ_ONLY: u64 = 1 << 5;
    /// There is a flush request.
    pub const FLUSH: u64 = 1 << 9;
    /// There may be several queues.
    pub const QUEUES: u64 = 1 << 12;
    /// There is a discard request.
    pub const DISCARD: u64 = 1 << 13;
}

/// Offsets in the configuration structure.
mod offset {
    pub const CAPACITY: usize = 0;
    pub const SEGMENT_BYTES: usize = 8;
    pub const QUEUES: usize = 34;
    pub const DISCARD_SECTORS: usize = 36;
}

/// What the device says about its medium.
pub struct Medium {
    pub info: BlockInfo,
    /// Number of request queues.
    pub queues: u16,
}

/// Reads the configuration of a device that has agreed to `features`.
pub fn read_medium(configuration: &Mmio, features: u64) -> Result<Medium, OutsideWindow> {
    fn read<T: Word>(configuration: &Mmio, at: usize) -> Result<T, OutsideWindow> {
        let register: Register<T, ReadOnly> = configuration.register(at)?;
        Ok(register.read())
    }
    let if_agreed = |feature, at, otherwise| {
        if features & feature == 0 { Ok(otherwise) } else { read::<u32>(configuration, at) }
    };
    // The capacity cannot change under us: that takes a configuration change, after which nothing is read again.
    let halves: [u32; 2] =
        [read(configuration, offset::CAPACITY)?, read(configuration, offset::CAPACITY + 4)?];
    let segment_bytes = if_agreed(feature::SEGMENT_SIZE, offset::SEGMENT_BYTES, u32::MAX)?;
    let queues = if features & feature::QUEUES == 0 { 1 } else { read(configuration, offset::QUEUES)? };
    let info = BlockInfo {
        driver: "virtio-blk",
        block_bytes: SECTOR_BYTES,
        blocks: u64::from(halves[0]) | u64::from(halves[1]) << 32,
        blocks_per_request: segment_bytes.min(REQUEST_LIMIT_BYTES) / SECTOR_BYTES,
        blocks_per_deallocation: if_agreed(feature::DISCARD, offset::DISCARD_SECTORS, 0)?,
        read_only: features & feature::READ_ONLY != 0,
    };
    Ok(Medium { info, queues })
}

/// The number of a request type.
fn number(kind: Kind) -> u32 {
    match kind {
        Kind::Read => 0,
        Kind::Write => 1,
        Kind::Flush => 4,
        Kind::Deallocate => 11,
    }
}

/// Header and status of one request, in coherent memory; between them what a discard is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Slot {
    kind: u32,
    reserved: u32,
    sector: u64,
    range_sector: u64,
    range_sectors: u32,
    range_flags: u32,
    /// Written by the device.
    status: u8,
    padding: [u8; 31],
}

const HEADER_BYTES: u32 = 16;
const RANGE_BYTES: u32 = 16;

// The device is told where these are by number.
const _: () = assert!(core::mem::offset_of!(Slot, sector) == 8);
const _: () = assert!(core::mem::offset_of!(Slot, range_sector) == HEADER_BYTES as usize);
const _: () = assert!(core::mem::offset_of!(Slot, status) == (HEADER_BYTES + RANGE_BYTES) as usize);
const _: () = assert!(size_of::<Slot>() == 64);

/// A status that no device writes: what stands there until the device has written its own.
const NO_STATUS: u8 = 0xff;

impl Slot {
    /// Done.
    pub const OK: u8 = 0;
    /// The medium could not be read or written.
    pub const IO_ERROR: u8 = 1;
    /// The device does not know the request.
    pub const UNSUPPORTED: u8 = 2;

    /// A request of `kind` for `extent`, not done yet.
    pub fn new(kind: Kind, extent: Option<Extent>) -> Self {
        let Extent { first, blocks } = extent.unwrap_or(Extent { first: 0, blocks: 0 });
        let request = Self { kind: number(kind), status: NO_STATUS, ..Self::default() };
        match kind {
            Kind::Deallocate => Self { range_sector: first, range_sectors: blocks, ..request },
            _ => Self { sector: first, ..request },
        }
    }

    /// What the device made of the request.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// The segment of the header of a slot at `iova`.
    pub fn header(iova: Iova) -> Segment {
        Segment { iova, bytes: HEADER_BYTES, writable: false }
    }

    /// The segment of the range of a slot at `iova`.
    pub fn range(iova: Iova) -> Segment {
        let iova = Iova::new(iova.as_u64() + u64::from(HEADER_BYTES));
        Segment { iova, bytes: RANGE_BYTES, writable: false }
    }

    /// The segment of the status of a slot at `iova`.
    pub fn status_at(iova: Iova) -> Segment {
        let iova = Iova::new(iova.as_u64() + u64::from(HEADER_BYTES + RANGE_BYTES));
        Segment { iova, bytes: 1, writable: true }
    }
}
