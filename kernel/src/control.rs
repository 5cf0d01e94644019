//! The control channel: what the host's tool reads, through QEMU's debug console.
//!
//! One line of ASCII an event: `begin NAME`, `ok NAME`, `fail NAME REASON`, `skip NAME REASON`, `value KEY TEXT`,
//! `bench NAME MIN MEDIAN MAX UNIT`, `done PASSED FAILED`.
//! Where there is no such device the writes go nowhere.

use core::fmt::{self, Write};

use x86::io::outb;

use crate::sync::{IrqMutex, Rank};

const PORT: u16 = 0xe9;

struct Channel;

impl Write for Channel {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the port belongs to the debug console or to nothing.
            unsafe { outb(PORT, byte) };
        }
        Ok(())
    }
}

static CHANNEL: IrqMutex<Channel> = IrqMutex::new(Rank::Control, Channel);

/// Sends one line.
pub fn send(line: fmt::Arguments<'_>) {
    // Writing to the port never fails.
    let _ = writeln!(CHANNEL.lock(), "{line}");
}

/// Sends one line although the channel's owner may have died with the lock: only for the end of the machine.
pub fn send_at_end(line: fmt::Arguments<'_>) {
    const TRIES: usize = 1_000_000;
    let _ = match CHANNEL.try_lock_for(TRIES) {
        Some(mut channel) => writeln!(channel, "{line}"),
        None => writeln!(Channel, "{line}"),
    };
}
