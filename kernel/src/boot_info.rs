//! What the loader passes: `hvm_start_info`, copied out before its memory is given to anyone else.

use core::{fmt, mem::size_of, ops::Range};

use mm::PhysAddr;

use crate::memory::layout;

const MAGIC: u32 = 0x336e_c578;
const COMMAND_LINE_MAX: usize = 2048;
/// More entries than any firmware reports; the rest is ignored, which loses memory but nothing else.
pub const REGIONS_MAX: usize = 128;
/// What the boot tables map.
const BOOT_MAPPED: Range<u64> = 0..4 << 30;

/// `hvm_start_info`, version 1.
#[derive(Clone, Copy)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// `hvm_memmap_table_entry`.
#[derive(Clone, Copy)]
#[repr(C)]
struct MapEntry {
    address: u64,
    bytes: u64,
    kind: u32,
    reserved: u32,
}

/// A region of the memory map, as reported.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Ordinary memory, to be used by the kernel.
    pub is_ram: bool,
}

/// Copies of everything that the loader said.
pub struct BootInfo {
    regions: [Region; REGIONS_MAX],
    region_count: usize,
    /// Regions that did not fit, or made no sense.
    pub regions_ignored: usize,
    command_line: [u8; COMMAND_LINE_MAX],
    command_line_bytes: usize,
    /// The ACPI root pointer, if there is one.
    pub rsdp: Option<PhysAddr>,
}

/// Why the kernel cannot start.
#[derive(Clone, Copy, Debug)]
pub enum BootError {
    /// The structure lies where the boot tables do not reach.
    Unreachable { address: u64 },
    /// Not the structure's magic number.
    BadMagic { found: u32 },
    /// A version without a memory map.
    OldVersion { version: u32 },
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { address } => write!(f, "start info at {address:#x}, above 4 GiB"),
            Self::BadMagic { found } => write!(f, "start info has magic {found:#x}, not {MAGIC:#x}"),
            Self::OldVersion { version } => write!(f, "start info version {version} has no memory map"),
        }
    }
}

impl core::error::Error for BootError {}

impl BootInfo {
    const EMPTY: Self = Self {
        regions: [Region { start: 0, end: 0, is_ram: false }; REGIONS_MAX],
        region_count: 0,
        regions_ignored: 0,
        command_line: [0; COMMAND_LINE_MAX],
        command_line_bytes: 0,
        rsdp: None,
    };

    /// Copies what `hvm_start_info` at physical address `start_info` says.
    ///
    /// # Errors
    /// It is not such a structure.
    ///
    /// # Safety
    /// The boot tables are active, and the loader's memory is not reused yet.
    pub unsafe fn read(start_info: u64) -> Result<Self, BootError> {
        let unreachable = BootError::Unreachable { address: start_info };
        // SAFETY: the caller vouches for the mapping; any bytes are a valid `StartInfo`.
        let info: StartInfo = unsafe { read_physical(start_info) }.ok_or(unreachable)?;
        if info.magic != MAGIC {
            return Err(BootError::BadMagic { found: info.magic });
        }
        if info.version < 1 {
            return Err(BootError::OldVersion { version: info.version });
        }
        let mut boot = Self { rsdp: PhysAddr::checked(info.rsdp).filter(|a| a.as_u64() != 0), ..Self::EMPTY };
        // SAFETY: as above.
        unsafe {
            boot.read_memory_map(info.memory_map, info.memory_map_entries as usize);
            boot.read_command_line(info.command_line);
        }
        Ok(boot)
    }

    /// # Safety
    /// As for [`read`](Self::read).
    unsafe fn read_memory_map(&mut self, address: u64, entries: usize) {
        self.regions_ignored = entries.saturating_sub(REGIONS_MAX);
        for index in 0..entries.min(REGIONS_MAX) {
            let at = address.saturating_add((index * size_of::<MapEntry>()) as u64);
            // SAFETY: the caller vouches for the mapping; any bytes are a valid `MapEntry`.
            let entry: Option<MapEntry> = unsafe { read_physical(at) };
            let region = entry.and_then(|MapEntry { address, bytes, kind, .. }| {
                let end = address.checked_add(bytes).filter(|&end| end <= PhysAddr::LIMIT)?;
                (end > address).then_some(Region { start: address, end, is_ram: kind == 1 })
            });
            match region {
                Some(region) => {
                    self.regions[self.region_count] = region;
                    self.region_count += 1;
                }
                None => self.regions_ignored += 1,
            }
        }
    }

    /// # Safety
    /// As for [`read`](Self::read).
    unsafe fn read_command_line(&mut self, address: u64) {
        if address == 0 {
            return;
        }
        for (index, byte) in self.command_line.iter_mut().enumerate() {
            // SAFETY: the caller vouches for the mapping.
            match unsafe { read_physical::<u8>(address + index as u64) } {
                Some(0) | None => return,
                Some(character) => *byte = character,
            }
            self.command_line_bytes = index + 1;
        }
    }

    /// The memory map, in the loader's order.
    pub fn regions(&self) -> &[Region] {
        &self.regions[..self.region_count]
    }

    /// The command line; whatever is not UTF-8 ends it.
    pub fn command_line(&self) -> &str {
        let bytes = &self.command_line[..self.command_line_bytes];
        bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())
    }
}

/// A copy of the `T` at `address`, or `None` where the boot tables do not reach.
///
/// # Safety
/// The boot tables are active, and any bytes are a valid `T`.
unsafe fn read_physical<T: Copy>(address: u64) -> Option<T> {
    let end = address.checked_add(size_of::<T>() as u64)?;
    if end > BOOT_MAPPED.end {
        return None;
    }
    let at = (layout::DIRECT_MAP + address) as *const T;
    // SAFETY: inside what the boot tables map; the caller vouches for the rest.
    Some(unsafe { at.read_unaligned() })
}
