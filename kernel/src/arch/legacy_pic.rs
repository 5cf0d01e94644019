//! The two 8259 interrupt controllers, which are never used.

use x86::io::outb;

use super::interrupts::LEGACY_BASE;

const COMMAND: [u16; 2] = [0x20, 0xa0];
const DATA: [u16; 2] = [0x21, 0xa1];

/// Masks all their inputs, and moves the spurious interrupts that they can still raise off the exceptions' vectors.
pub fn disable() {
    const INITIALISE: u8 = 0x11;
    const MODE_8086: u8 = 0x01;
    const ALL: u8 = 0xff;
    // The second controller hangs on input 2 of the first.
    let cascade = [1 << 2, 2];
    for (chip, cascade) in cascade.into_iter().enumerate() {
        // SAFETY: the ports belong to the controllers; no interrupt is expected through them.
        unsafe {
            outb(COMMAND[chip], INITIALISE);
            outb(DATA[chip], LEGACY_BASE + 8 * chip as u8);
            outb(DATA[chip], cascade);
            outb(DATA[chip], MODE_8086);
            outb(DATA[chip], ALL);
        }
    }
}
