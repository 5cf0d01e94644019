//! Where things are in the virtual address space.

use core::ops::Range;

use mm::{PhysAddr, PhysRange};

/// All RAM, from here on: physical address 0 would be the first byte. The image of the kernel is left out.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// Registers of devices and tables of the firmware, mapped as they are asked for.
pub const WINDOW: Range<u64> = 0xffff_c000_0000_0000..0xffff_c080_0000_0000;
/// Stacks of threads and of exceptions, each below a page that is not mapped.
pub const STACKS: u64 = 0xffff_d000_0000_0000;
/// The address that physical address 0 would have in the mapping of the kernel's image.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// RAM above this is left alone: the direct map ends where the window begins.
pub const DIRECT_MAP_BYTES: u64 = WINDOW.start - DIRECT_MAP;

/// Where the direct map has physical address `address`.
pub const fn direct(address: PhysAddr) -> u64 {
    DIRECT_MAP + address.as_u64()
}

/// The physical address behind `address`, if that is in the direct map's range. Nothing may be mapped there.
pub fn direct_to_physical(address: u64) -> Option<PhysAddr> {
    // Of an address below the map it is a number beyond it.
    let offset = address.wrapping_sub(DIRECT_MAP);
    if offset < DIRECT_MAP_BYTES { PhysAddr::checked(offset) } else { None }
}

// Defined by the linker script. Only their addresses mean anything.
unsafe extern "C" {
    static __image_start: u8;
    static __image_end: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __rodata_end: u8;
    static __data_start: u8;
    static __data_end: u8;
    static __boot_stack_guard: u8;
    static __boot_stack_start: u8;
    static __boot_stack_end: u8;
}

macro_rules! linked_range {
    ($($(#[$doc:meta])* $name:ident: $first:ident, $end:ident;)+) => {$(
        $(#[$doc])*
        pub fn $name() -> Range<u64> {
            &raw const $first as u64..&raw const $end as u64
        }
    )+};
}

linked_range! {
    /// The whole image, from the first section to the last.
    image: __image_start, __image_end;
    /// Code.
    text: __text_start, __text_end;
    /// Constants.
    rodata: __rodata_start, __rodata_end;
    /// Variables, with the boot stack and its guard page.
    data: __data_start, __data_end;
    /// The page under the boot stack.
    boot_stack_guard: __boot_stack_guard, __boot_stack_start;
    /// The stack that the first CPU starts on.
    boot_stack: __boot_stack_start, __boot_stack_end;
}

/// Physical memory under the image.
pub fn image_physical() -> PhysRange {
    let image = image();
    PhysRange::new(PhysAddr::new(image.start - KERNEL_BASE), image.end - image.start)
}
