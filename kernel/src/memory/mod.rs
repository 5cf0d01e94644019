//! Physical memory, the kernel's address space, and what is mapped in it.
//!
//! [`init`] goes from the boot tables to the final ones in three steps: find the RAM, build the address space with
//! pages from the largest piece of it, and give the rest to the frame allocator.

mod address_space;
mod exhausted;
pub mod frames;
mod heap;
pub mod layout;
mod own_tables;
mod ranges;
pub mod stacks;
mod user_table;
mod window;

use core::{fmt, ops::Range, ptr::NonNull};

use iommu::platform::Unshareable;
use mm::{PAGE_BYTES, PhysAddr, PhysRange};
use spin::Once;

pub use address_space::{Alias, KernelTables, lookup, root, runs, window_bytes};
pub use exhausted::Exhausted;
pub use heap::small_bytes;
pub use ranges::RangeSet;
pub use user_table::{UserMapError, UserTable};

use crate::boot_info::{BootInfo, Region};

/// Low memory is left alone, but for [`START_PAGE`]: firmware has its data there.
pub const LOW_MEMORY_END: u64 = 1 << 20;

/// Pieces of RAM that are used, if there are more: half of what the frame allocator can hold, as it cuts a piece at
/// 4 GiB, and the first pages are cut off another.
const RAM_PIECES_MAX: usize = 15;

/// RAM that the kernel uses and that the direct map shows.
static RAM: Once<RangeSet> = Once::new();
/// Everything that the memory map speaks of and that is not in [`RAM`].
static FIRMWARE: Once<RangeSet> = Once::new();

/// A page of RAM below 1 MiB, kept for the code that other CPUs start with.
static START_PAGE: Once<Option<PhysAddr>> = Once::new();

/// Why there is no memory to work with.
#[derive(Debug)]
pub enum MemoryError {
    /// The memory map has no usable RAM below 4 GiB.
    NoRam,
    /// The address space could not be built.
    AddressSpace(address_space::BuildError),
    /// The frame allocator could not be set up.
    Frames,
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRam => f.write_str("the memory map has no usable RAM below 4 GiB"),
            Self::AddressSpace(error) => write!(f, "the kernel's address space: {error}"),
            Self::Frames => f.write_str("no memory for the frame allocator"),
        }
    }
}

impl core::error::Error for MemoryError {}

/// Sets up RAM, address space and heap. Returns the bytes of RAM in use.
///
/// # Errors
/// See [`MemoryError`].
///
/// # Safety
/// Called once, on the boot tables, before anything but the loader's structures is in RAM.
pub unsafe fn init(boot: &BootInfo) -> Result<u64, MemoryError> {
    let (ram, mut firmware) = sort_regions(boot.regions());
    if let Some(page) = START_PAGE.call_once(|| find_start_page(boot.regions())) {
        firmware.remove(page.as_u64(), page.as_u64() + PAGE_BYTES);
    }
    let ram = RAM.call_once(|| ram);
    FIRMWARE.call_once(|| firmware);
    // SAFETY: the ranges are RAM that nothing uses yet (the image is not in them), and the boot tables reach the part
    // below 4 GiB.
    unsafe {
        frames::init_early(ram).ok_or(MemoryError::NoRam)?;
        address_space::build(ram).map_err(MemoryError::AddressSpace)?;
        frames::init(ram).ok_or(MemoryError::Frames)?;
    }
    Ok(ram.bytes())
}

/// RAM for the kernel's use, and what else the memory map speaks of.
fn sort_regions(regions: &[Region]) -> (RangeSet, RangeSet) {
    let mut ram = RangeSet::new();
    let mut firmware = RangeSet::new();
    for region in regions.iter().filter(|region| region.is_ram) {
        ram.add(region.start, region.end.min(layout::DIRECT_MAP_BYTES));
    }
    // What one entry reserves is reserved, whatever another one says.
    for region in regions.iter().filter(|region| !region.is_ram) {
        ram.remove(region.start, region.end);
        firmware.add(region.start & !(PAGE_BYTES - 1), region.end.next_multiple_of(PAGE_BYTES));
    }
    ram.remove(0, LOW_MEMORY_END);
    firmware.add(0, LOW_MEMORY_END);
    let image = layout::image_physical();
    ram.remove(image.start.as_u64(), image.start.as_u64() + image.bytes);
    ram.keep_largest(RAM_PIECES_MAX);
    firmware.remove(image.start.as_u64(), image.start.as_u64() + image.bytes);
    (ram, firmware)
}

/// The highest page of RAM that a CPU can start at: below 640 KiB, as what is above belongs to adapters and firmware,
/// and not the first, where the tables of real mode are.
fn find_start_page(regions: &[Region]) -> Option<PhysAddr> {
    const CONVENTIONAL_END: u64 = 640 << 10;
    let mut low = RangeSet::new();
    for region in regions.iter().filter(|region| region.is_ram) {
        low.add(region.start.max(PAGE_BYTES), region.end.min(CONVENTIONAL_END));
    }
    for region in regions.iter().filter(|region| !region.is_ram) {
        low.remove(region.start, region.end);
    }
    let end = low.as_slice().iter().map(|range| range.start.as_u64() + range.bytes).max()?;
    Some(PhysAddr::new(end - PAGE_BYTES))
}

/// The page that other CPUs may start at, which nothing else uses.
pub fn start_page() -> Option<PhysAddr> {
    START_PAGE.get().copied().flatten()
}

/// Maps `bytes` bytes of device registers from `base`, uncached, for good. `None` if the range is RAM, wraps, or there
/// is no memory for tables.
pub fn map_registers(base: PhysAddr, bytes: usize) -> Option<NonNull<u8>> {
    let range = checked_range(base, bytes)?;
    if RAM.get()?.overlaps(range) || range_overlaps_image(range) {
        return None;
    }
    address_space::map_window(range, address_space::Kind::Registers)
}

/// Makes `bytes` bytes of firmware tables at `base` readable, for good. `None` if that is not memory, or there is no
/// memory for tables.
pub fn map_firmware(base: PhysAddr, bytes: usize) -> Option<NonNull<u8>> {
    let range = checked_range(base, bytes)?;
    if RAM.get()?.contains(range) {
        return NonNull::new(layout::direct(base) as *mut u8);
    }
    if !FIRMWARE.get()?.contains(range) {
        return None;
    }
    address_space::map_window(range, address_space::Kind::Firmware)
}

/// The physical address of the `bytes` bytes at `first`, if they lie in RAM that the frame allocator gives out: not in
/// a stack, the kernel's image, or a window.
pub fn physical(first: NonNull<u8>, bytes: usize) -> Option<PhysAddr> {
    let start = layout::direct_to_physical(first.as_ptr() as u64)?;
    // A length beyond the address space is in no range.
    let range = PhysRange::new(start, bytes as u64);
    (bytes > 0 && RAM.get()?.contains(range)).then_some(start)
}

/// What lies in the `bytes` bytes at `first`, which are not for devices.
pub fn unshareable(first: NonNull<u8>, bytes: usize) -> Unshareable {
    let start = first.as_ptr() as u64;
    let last = start.saturating_add(bytes.saturating_sub(1) as u64);
    let touches = |range: Range<u64>| start < range.end && range.start <= last;
    let is_stack = |address| stacks::containing(address).is_some();
    if touches(layout::text()) {
        Unshareable::Code
    } else if touches(layout::rodata()) {
        Unshareable::Constants
    } else if is_stack(start) || is_stack(last) {
        Unshareable::Stack
    } else if touches(layout::data()) {
        Unshareable::Variables
    } else {
        Unshareable::Other
    }
}

/// The RAM that the frame allocator gives out, and what was taken from it before.
pub fn ram() -> impl Iterator<Item = PhysRange> {
    RAM.get().into_iter().flat_map(|ram| ram.as_slice().iter().copied())
}

/// Width in bits of the highest physical address that RAM has.
pub fn ram_bits() -> u8 {
    let last = ram().map(|range| range.start.as_u64() + (range.bytes - 1)).max().unwrap_or(0);
    (u64::BITS - last.leading_zeros()) as u8
}

/// Whether any of `range` is the kernel's: its image, RAM that it uses or hands out, or the page that CPUs start at.
pub fn is_own(range: PhysRange) -> bool {
    let starts_cpus = start_page().is_some_and(|page| {
        range.start.as_u64() < page.as_u64() + PAGE_BYTES
            && page.as_u64() < range.start.as_u64() + range.bytes
    });
    starts_cpus || range_overlaps_image(range) || RAM.get().is_some_and(|ram| ram.overlaps(range))
}

/// Whether the memory map speaks of all of `range`, and not as RAM.
pub fn is_firmwares(range: PhysRange) -> bool {
    FIRMWARE.get().is_some_and(|firmware| firmware.contains(range))
}

fn checked_range(base: PhysAddr, bytes: usize) -> Option<PhysRange> {
    base.checked_add(bytes as u64)?;
    (bytes > 0).then_some(PhysRange::new(base, bytes as u64))
}

fn range_overlaps_image(range: PhysRange) -> bool {
    let image = layout::image_physical();
    let mut set = RangeSet::new();
    set.add(image.start.as_u64(), image.start.as_u64() + image.bytes);
    set.overlaps(range)
}
