//! The memory windows of a bridge: which addresses it passes on to what is behind it.

use super::super::config::{Config, ConfigSpace};

/// Granularity of windows.
pub const WINDOW_BYTES: u64 = 1 << 20;

/// One of a bridge's windows for memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Window {
    /// For registers: below 4 GiB.
    Memory,
    /// For what can be read ahead. Bridges may lack it.
    Prefetchable,
}

impl Window {
    /// Both of them.
    pub const BOTH: [Self; 2] = [Self::Memory, Self::Prefetchable];

    /// Offset of the dword with base in the lower and limit in the upper half: their upper 12 bits are address bits
    /// 31:20.
    const fn register(self) -> u16 {
        match self {
            Self::Memory => 0x20,
            Self::Prefetchable => 0x24,
        }
    }

    /// First and last address of the window, if it is open.
    pub fn read<C: ConfigSpace + ?Sized>(self, config: Config<'_, C>) -> Option<(u64, u64)> {
        let value = config.read32(self.register());
        let (mut first, mut last) = (u64::from(value & 0xfff0) << 16, u64::from(value >> 16 & 0xfff0) << 16);
        if self == Self::Prefetchable && is_wide(value) {
            first |= u64::from(config.read32(BASE_HIGH)) << 32;
            last |= u64::from(config.read32(LIMIT_HIGH)) << 32;
        }
        (first <= last && value != 0).then_some((first, last | (WINDOW_BYTES - 1)))
    }

    /// Opens the window from `first` to `last`, whole multiples of 1 MiB below 4 GiB, or closes it. Whether the bridge
    /// has taken that.
    pub fn write<C: ConfigSpace + ?Sized>(self, config: Config<'_, C>, range: Option<(u64, u64)>) -> bool {
        // A base above the limit closes it.
        let (first, last) = range.unwrap_or((WINDOW_BYTES, 0));
        if first.max(last) > u64::from(u32::MAX) {
            return false;
        }
        if self == Self::Prefetchable && is_wide(config.read32(self.register())) {
            config.write32(BASE_HIGH, 0);
            config.write32(LIMIT_HIGH, 0);
        }
        let value = (first >> 16 & 0xfff0) as u32 | (last as u32 & 0xfff0_0000);
        config.write32(self.register(), value);
        self.read(config) == range
    }
}

/// Closes the window for I/O ports.
pub fn close_ports<C: ConfigSpace + ?Sized>(config: Config<'_, C>) {
    const IO_WINDOW: u16 = 0x1c;
    /// A base in the lower byte above the limit in the upper one; the next word is a status whose bits are cleared by
    /// ones.
    const CLOSED: u16 = 0x00f0;
    config.write_word(IO_WINDOW, CLOSED);
}

const BASE_HIGH: u16 = 0x28;
const LIMIT_HIGH: u16 = 0x2c;

/// Whether a prefetchable window has 64 address bits.
const fn is_wide(value: u32) -> bool {
    value & 0xf == 1
}
