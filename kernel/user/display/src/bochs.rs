//! A display whose picture lies in its own memory, as QEMU's `bochs-display`: by the registers of Bochs' VBE
//! extensions, in a BAR of memory.

use core::sync::atomic::{Ordering::SeqCst, fence};

use display::{HEIGHT, WIDTH, pixel};

use super::{DISPLAY, Failure, Never, window::Window};

/// Device and vendor.
pub const ID: u32 = 0x1111_1234;
const MEMORY: u8 = 0;
const REGISTERS: u8 = 2;

/// Where the registers are, each of 16 bits.
const DISPI: usize = 0x500;
const INDEX_ID: usize = 0;
const INDEX_X_RESOLUTION: usize = 1;
const INDEX_Y_RESOLUTION: usize = 2;
const INDEX_BITS: usize = 3;
const INDEX_ENABLE: usize = 4;
const INDEX_VIRTUAL_WIDTH: usize = 6;
const INDEX_X_OFFSET: usize = 8;
const INDEX_Y_OFFSET: usize = 9;

/// All versions of the registers have an id that begins so.
const ID_FAMILY: u16 = 0xb0c0;
const ENABLED: u16 = 1 << 0;
const LINEAR: u16 = 1 << 6;
/// What is in memory stays there when the mode is set.
const NO_CLEAR: u16 = 1 << 7;

pub fn show(picture: u32) -> Result<Never, Failure> {
    let registers = map(REGISTERS)?;
    let memory = map(MEMORY)?;
    let register = |index: usize| DISPI + 2 * index;
    if registers.read::<u16>(register(INDEX_ID)) & 0xfff0 != ID_FAMILY {
        return Err(Failure::Device("it has other registers"));
    }
    memory.must_be_empty()?;
    for (index, value) in [
        (INDEX_ENABLE, 0),
        (INDEX_X_RESOLUTION, WIDTH as u16),
        (INDEX_Y_RESOLUTION, HEIGHT as u16),
        (INDEX_BITS, 32),
        (INDEX_VIRTUAL_WIDTH, WIDTH as u16),
        (INDEX_X_OFFSET, 0),
        (INDEX_Y_OFFSET, 0),
        (INDEX_ENABLE, ENABLED | LINEAR | NO_CLEAR),
    ] {
        registers.write(register(index), value);
    }
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            memory.write(4 * (y * WIDTH + x) as usize, pixel(picture, x, y));
        }
    }
    // The CPU may have combined writes, and keeps them until then.
    fence(SeqCst);
    runtime::log(format_args!("picture {picture} is in the display's memory"));
    loop {
        runtime::sleep_until(u64::MAX);
    }
}

fn map(bar: u8) -> Result<Window, Failure> {
    let bytes = DISPLAY.bar_bytes(bar)? as usize;
    // SAFETY: a BAR stays mapped, and it is mapped once.
    Ok(unsafe { Window::new(DISPLAY.map_bar(bar)?, bytes) })
}
