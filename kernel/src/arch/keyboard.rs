//! The keyboard controller, as far as it takes to see that somebody at the machine has pressed a key.

use x86::io::inb;

const DATA: u16 = 0x60;
const STATUS: u16 = 0x64;
const HAS_DATA: u8 = 1 << 0;
/// In what the keyboard says of a key: it was let go.
const RELEASED: u8 = 1 << 7;

/// More than the controller keeps.
const BYTES_MAX: usize = 64;

/// Whether a key was pressed since this was asked last. Its interrupt is masked.
pub fn was_pressed() -> bool {
    let mut pressed = false;
    for _ in 0..BYTES_MAX {
        // SAFETY: reading the controller's status changes nothing.
        if unsafe { inb(STATUS) } & HAS_DATA == 0 {
            break;
        }
        // SAFETY: it takes a byte that nobody else reads.
        pressed |= unsafe { inb(DATA) } & RELEASED == 0;
    }
    pressed
}
