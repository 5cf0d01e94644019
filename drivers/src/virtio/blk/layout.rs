//! What a virtio block device reads and writes: its configuration and its requests.

use iommu::Iova;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::super::Segment;
use crate::{
    block::BlockInfo,
    mmio::{Mmio, OutsideWindow, ReadOnly, Register},
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
}

/// What the device says about its medium.
pub fn read_info(configuration: &Mmio, features: u64) -> Result<BlockInfo, OutsideWindow> {
    let dword = |at| -> Result<u32, OutsideWindow> {
        let register: Register<u32, ReadOnly> = configuration.register(at)?;
        Ok(register.read())
    };
    // The capacity cannot change under us: that takes a configuration change, after which nothing is read again.
    let blocks = u64::from(dword(0)?) | u64::from(dword(4)?) << 32;
    let segment_bytes = if features & feature::SEGMENT_SIZE != 0 { dword(8)? } else { u32::MAX };
    Ok(BlockInfo {
        block_bytes: SECTOR_BYTES,
        blocks,
        blocks_per_request: segment_bytes.min(REQUEST_LIMIT_BYTES) / SECTOR_BYTES,
        read_only: features & feature::READ_ONLY != 0,
    })
}

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    Read = 0,
    Write = 1,
    Flush = 4,
}

/// Header and status of one request, in coherent memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Slot {
    kind: u32,
    reserved: u32,
    sector: u64,
    /// Written by the device.
    status: u8,
    padding: [u8; 15],
}

const HEADER_BYTES: u32 = 16;

// The device is told where these are by number.
const _: () = assert!(core::mem::offset_of!(Slot, sector) == 8);
const _: () = assert!(core::mem::offset_of!(Slot, status) == HEADER_BYTES as usize);
const _: () = assert!(size_of::<Slot>() == 32);

/// A status that no device writes: what stands there until the device has written its own.
const NO_STATUS: u8 = 0xff;
const STATUS_OK: u8 = 0;

impl Slot {
    /// A request of `kind` at `sector`, not done yet.
    pub fn new(kind: Kind, sector: u64) -> Self {
        Self { kind: kind as u32, sector, status: NO_STATUS, ..Self::default() }
    }

    /// What the device made of the request.
    pub fn result(&self) -> Result<(), u8> {
        if self.status == STATUS_OK { Ok(()) } else { Err(self.status) }
    }

    /// The segment of the header of a slot at `iova`.
    pub fn header(iova: Iova) -> Segment {
        Segment { iova, bytes: HEADER_BYTES, writable: false }
    }

    /// The segment of the status of a slot at `iova`.
    pub fn status(iova: Iova) -> Segment {
        let iova = Iova::new(iova.as_u64() + u64::from(HEADER_BYTES));
        Segment { iova, bytes: 1, writable: true }
    }
}
