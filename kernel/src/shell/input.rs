//! Keys from the serial line.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};

use iommu::Iommu;

use crate::{
    acpi::Wire,
    arch::clock::{self, NS_PER_S},
    console,
    platform::{self, interrupts::WireError},
    sync::{IrqMutex, Rank},
    threads::Event,
};

/// Keys that nobody has read yet; more than that are lost.
const KEYS_MAX: usize = 256;

struct Ring {
    keys: [u8; KEYS_MAX],
    first: usize,
    len: usize,
}

static RING: IrqMutex<Ring> = IrqMutex::new(Rank::Input, Ring { keys: [0; KEYS_MAX], first: 0, len: 0 });
static ARRIVED: Event = Event::new();

impl Ring {
    fn push(&mut self, key: u8) {
        if self.len < KEYS_MAX {
            self.keys[(self.first + self.len) % KEYS_MAX] = key;
            self.len += 1;
        }
    }

    fn pop(&mut self) -> Option<u8> {
        self.len = self.len.checked_sub(1)?;
        let key = self.keys[self.first];
        self.first = (self.first + 1) % KEYS_MAX;
        Some(key)
    }
}

/// Makes the serial line, whose interrupt comes in by `wire`, fill the ring.
///
/// # Errors
/// It has no way to a CPU: keys are looked for once a second.
pub fn init(iommu: &Iommu, wire: Wire) -> Result<(), WireError> {
    platform::interrupts::connect(iommu, wire, Box::new(handle_interrupt))?;
    console::enable_receive_interrupt();
    Ok(())
}

/// Interrupts of the serial line so far.
static INTERRUPTS: AtomicU64 = AtomicU64::new(0);

/// How often the serial line has interrupted so far.
pub fn interrupts() -> u64 {
    INTERRUPTS.load(Ordering::Relaxed)
}

fn handle_interrupt() {
    INTERRUPTS.fetch_add(1, Ordering::Relaxed);
    take_keys();
}

/// Takes what the port has received.
fn take_keys() {
    // The port's FIFO holds 16.
    const BURST_MAX: usize = 64;
    for _ in 0..BURST_MAX {
        let Some(key) = console::receive() else { break };
        RING.lock().push(key);
    }
    ARRIVED.signal();
}

/// The next key. Waits for ever: nobody has to type. Looks at the port once a second, should its interrupt be lost.
pub fn read_key() -> u8 {
    loop {
        // The lock is released before the wait.
        let key = RING.lock().pop();
        if let Some(key) = key {
            return key;
        }
        if !ARRIVED.wait(clock::now_ns() + NS_PER_S) {
            take_keys();
        }
    }
}
