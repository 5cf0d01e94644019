//! Base address registers.

use core::fmt;

use mm::PhysAddr;

use super::{
    config::{Config, ConfigSpace, command, offset},
    function::Layout,
    resources::Misplaced,
};

/// Most base address registers of a function.
pub const BARS: u8 = 6;

/// The registers of a function that make sense, by the index of their first dword.
pub type Bars = [Option<Bar>; BARS as usize];

/// One base address register, decoded and sized.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bar {
    /// Index of its (first) dword.
    pub index: u8,
    /// What it decodes.
    pub kind: BarKind,
    /// Where firmware put it; 0 if it did not.
    pub base: u64,
    /// Length in bytes: a power of two.
    pub bytes: u64,
}

/// What a base address register decodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BarKind {
    /// I/O ports.
    Port,
    /// Memory.
    Memory {
        /// It takes two dwords.
        wide: bool,
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

impl BarKind {
    /// Whether it decodes memory that reads do nothing to.
    #[must_use]
    pub fn is_prefetchable(self) -> bool {
        matches!(self, Self::Memory { prefetchable: true, .. })
    }
}

/// Why a base address register cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BarError {
    /// The function's header has no register of this index, or it is the upper half of another one.
    NoSuchBar(u8),
    /// The register is not implemented.
    Absent(u8),
    /// A memory type that is not defined, a wide register without its upper half, or no single run of size bits.
    Malformed {
        /// Index of the register.
        index: u8,
        /// What it reads.
        value: u32,
    },
    /// The register decodes I/O ports.
    NotMemory(u8),
    /// Firmware gave it no address, or one that wraps or is beyond 52 bits.
    NoAddress {
        /// Index of the register.
        index: u8,
        /// What it holds.
        base: u64,
        /// Its length.
        bytes: u64,
    },
    /// The host could not map it.
    NotMapped {
        /// Index of the register.
        index: u8,
        /// Where it is.
        base: u64,
        /// Its length.
        bytes: u64,
    },
    /// Somebody else may answer there, or nobody has compared it with what others have.
    Misplaced {
        /// Index of the register.
        index: u8,
        /// What is in the way.
        why: Misplaced,
    },
}

impl fmt::Display for BarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoSuchBar(index) => write!(f, "there is no BAR {index}"),
            Self::Absent(index) => write!(f, "BAR {index} is not implemented"),
            Self::Malformed { index, value } => write!(f, "BAR {index} is malformed: {value:#x}"),
            Self::NotMemory(index) => write!(f, "BAR {index} decodes I/O ports, not memory"),
            Self::NoAddress { index, base, bytes } => {
                write!(f, "BAR {index} of {bytes:#x} bytes has no usable address ({base:#x})")
            }
            Self::NotMapped { index, base, bytes } => {
                write!(f, "BAR {index}, {bytes:#x} bytes at {base:#x}, could not be mapped")
            }
            Self::Misplaced { index, why } => write!(f, "BAR {index}: {why}"),
        }
    }
}

impl core::error::Error for BarError {}

const PORT: u32 = 1;
const PREFETCHABLE: u32 = 1 << 3;
const PORT_FLAGS: u32 = 0x3;
const MEMORY_FLAGS: u32 = 0xf;

impl Bar {
    /// Decodes and sizes register `index` of a function with header `layout`.
    ///
    /// Decoding is off while all ones stand in the register, so that the function answers at no stray address; the
    /// register and the command are as before when this returns.
    ///
    /// # Errors
    /// There is no such register, or what it reads makes no sense.
    pub(super) fn read<C: ConfigSpace + ?Sized>(
        config: Config<'_, C>,
        layout: Layout,
        index: u8,
    ) -> Result<Self, BarError> {
        if index >= layout.bars() {
            return Err(BarError::NoSuchBar(index));
        }
        let at = offset::BARS + 4 * u16::from(index);
        let before = config.command();
        config.change_command(0, command::MEMORY | PORT as u16);
        let probe = Probe::take(config, at, index + 1 < layout.bars());
        config.change_command(before & (command::MEMORY | PORT as u16), 0);
        probe.decode(index)
    }

    /// All BARs of a function that make sense, those in ports included.
    pub(super) fn all<C: ConfigSpace + ?Sized>(
        config: Config<'_, C>,
        layout: Layout,
    ) -> impl Iterator<Item = Self> {
        // The upper half of a wide one is none.
        let mut next = 0;
        core::iter::from_fn(move || {
            while next < layout.bars() {
                let read = Self::read(config, layout, next);
                next += 1;
                if let Ok(bar) = read {
                    let is_wide = matches!(bar.kind, BarKind::Memory { wide: true, .. });
                    next += u8::from(is_wide);
                    return Some(bar);
                }
            }
            None
        })
    }

    /// Decodes and sizes register `index` of `count` ones from `registers` on. Nothing may be decoded by them.
    pub(super) fn read_quiet<C: ConfigSpace + ?Sized>(
        config: Config<'_, C>,
        registers: u16,
        index: u8,
        count: u8,
    ) -> Result<Self, BarError> {
        Probe::take(config, registers + 4 * u16::from(index), index + 1 < count).decode(index)
    }

    /// Puts a register in memory at `base`, a multiple of its size. Whether it is there then.
    pub(super) fn place<C: ConfigSpace + ?Sized>(&self, config: Config<'_, C>, base: u64) -> bool {
        self.place_in(config, offset::BARS, base)
    }

    /// The same where the registers are from `registers` on.
    pub(super) fn place_in<C: ConfigSpace + ?Sized>(
        &self,
        config: Config<'_, C>,
        registers: u16,
        base: u64,
    ) -> bool {
        let at = registers + 4 * u16::from(self.index);
        let BarKind::Memory { wide, .. } = self.kind else { return false };
        if !wide && base > u64::from(u32::MAX) {
            return false;
        }
        config.write32(at, base as u32);
        let mut found = u64::from(config.read32(at) & !MEMORY_FLAGS);
        if wide {
            config.write32(at + 4, (base >> 32) as u32);
            found |= u64::from(config.read32(at + 4)) << 32;
        }
        found == base
    }

    /// The physical range of a memory register.
    ///
    /// # Errors
    /// It decodes ports, or firmware gave it no address that it can be reached at.
    pub fn memory(&self) -> Result<(PhysAddr, usize), BarError> {
        let Self { index, base, bytes, .. } = *self;
        if self.kind == BarKind::Port {
            return Err(BarError::NotMemory(index));
        }
        let no_address = BarError::NoAddress { index, base, bytes };
        let start = PhysAddr::checked(base).filter(|_| base != 0).ok_or(no_address)?;
        start.checked_add(bytes - 1).ok_or(no_address)?;
        let bytes = usize::try_from(bytes).map_err(|_| no_address)?;
        Ok((start, bytes))
    }
}

/// A register's value, and what it reads after all ones were written.
struct Probe {
    low: u32,
    low_mask: u32,
    /// Value and mask of the next dword, where this one says that it is wide and there is a next one.
    high: Option<(u32, u32)>,
}

impl Probe {
    fn take<C: ConfigSpace + ?Sized>(config: Config<'_, C>, at: u16, has_next: bool) -> Self {
        let (low, low_mask) = Self::dword(config, at);
        let high = (is_wide(low) && has_next).then(|| Self::dword(config, at + 4));
        Self { low, low_mask, high }
    }

    fn dword<C: ConfigSpace + ?Sized>(config: Config<'_, C>, at: u16) -> (u32, u32) {
        let value = config.read32(at);
        config.write32(at, u32::MAX);
        let mask = config.read32(at);
        config.write32(at, value);
        (value, mask)
    }

    fn decode(&self, index: u8) -> Result<Bar, BarError> {
        let malformed = BarError::Malformed { index, value: self.low };
        if self.low_mask == 0 {
            return Err(BarError::Absent(index));
        }
        if self.low_mask == u32::MAX && self.low == u32::MAX {
            // Nothing answers.
            return Err(malformed);
        }
        if self.low & PORT != 0 {
            // Ports above 64 Ki do not exist; devices may leave the upper half of the mask 0.
            let mask = self.low_mask & !PORT_FLAGS | 0xffff_0000;
            let bytes = size(u64::from(mask) | u64::from(u32::MAX) << 32).ok_or(malformed)?;
            return Ok(Bar { index, kind: BarKind::Port, base: u64::from(self.low & !PORT_FLAGS), bytes });
        }
        let wide = is_wide(self.low);
        let (high, high_mask) = match (wide, self.high) {
            (true, None) => return Err(malformed),
            (true, Some(high)) => high,
            (false, _) if self.low & 0x6 != 0 => return Err(malformed),
            (false, _) => (0, u32::MAX),
        };
        let base = u64::from(self.low & !MEMORY_FLAGS) | u64::from(high) << 32;
        let mask = u64::from(self.low_mask & !MEMORY_FLAGS) | u64::from(high_mask) << 32;
        let bytes = size(mask).ok_or(malformed)?;
        let kind = BarKind::Memory { wide, prefetchable: self.low & PREFETCHABLE != 0 };
        Ok(Bar { index, kind, base, bytes })
    }
}

/// Whether bits 2:1 of a memory register say that it has 64 bits.
const fn is_wide(low: u32) -> bool {
    low & 0x7 == 0x4
}

/// The size that an address mask stands for: its writable bits must be one run up to bit 63.
fn size(mask: u64) -> Option<u64> {
    let bytes = 1_u64.checked_shl(mask.trailing_zeros())?;
    (mask == !(bytes - 1)).then_some(bytes)
}

#[cfg(test)]
#[path = "bar_tests.rs"]
mod tests;
