//! Lists of capabilities, as far as they can be trusted.

use super::config::{Config, ConfigSpace, offset};

/// Standard capability ids that are used here.
pub(super) mod id {
    pub const POWER: u8 = 0x01;
    pub const MSI: u8 = 0x05;
    pub const VENDOR: u8 = 0x09;
    pub const EXPRESS: u8 = 0x10;
    pub const MSIX: u8 = 0x11;
}

/// Extended capability ids that are used here.
pub(super) mod extended_id {
    pub const ACS: u16 = 0x0d;
    pub const ARI: u16 = 0x0e;
    pub const SRIOV: u16 = 0x10;
}

/// Status register: a capability list is there.
const STATUS_CAPABILITIES: u32 = 1 << 20;

/// One capability: its id and where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capability<I> {
    /// Which capability.
    pub id: I,
    /// Offset of its header in configuration space.
    pub offset: u16,
}

/// The standard capabilities of a function, in the order of its list.
///
/// The list ends at a pointer into the header, and after as many steps as there are places for capabilities: a list
/// that loops ends too.
pub struct Capabilities<'a, C: ConfigSpace + ?Sized> {
    config: Config<'a, C>,
    next: u16,
    left: u16,
}

impl<'a, C: ConfigSpace + ?Sized> Capabilities<'a, C> {
    /// The capabilities of `config`'s function.
    pub fn new(config: Config<'a, C>) -> Self {
        let listed = config.is_present() && config.read32(offset::COMMAND_STATUS) & STATUS_CAPABILITIES != 0;
        let next = if listed { u16::from(config.read8(offset::CAPABILITIES) & !3) } else { 0 };
        Self { config, next, left: (offset::EXTENDED - offset::HEADER_END) / 4 }
    }
}

impl<C: ConfigSpace + ?Sized> Iterator for Capabilities<'_, C> {
    type Item = Capability<u8>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next < offset::HEADER_END || self.left == 0 {
            return None;
        }
        self.left -= 1;
        let offset = self.next;
        let header = self.config.read16(offset);
        self.next = header >> 8 & !3;
        // The function went away.
        if header == 0xffff { None } else { Some(Capability { id: header as u8, offset }) }
    }
}

/// The extended capabilities of a function, bounded as [`Capabilities`] is.
pub struct ExtendedCapabilities<'a, C: ConfigSpace + ?Sized> {
    config: Config<'a, C>,
    next: u16,
    left: u16,
}

impl<'a, C: ConfigSpace + ?Sized> ExtendedCapabilities<'a, C> {
    /// The extended capabilities of `config`'s function; none where there is no extended configuration space.
    pub fn new(config: Config<'a, C>) -> Self {
        // A capability has at least two dwords, so there is room for no more of them.
        Self { config, next: offset::EXTENDED, left: (offset::END - offset::EXTENDED) / 8 }
    }
}

impl<C: ConfigSpace + ?Sized> Iterator for ExtendedCapabilities<'_, C> {
    type Item = Capability<u16>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next < offset::EXTENDED || self.left == 0 {
            return None;
        }
        self.left -= 1;
        let offset = self.next;
        let header = self.config.read32(offset);
        self.next = (header >> 20) as u16 & !3;
        // All zeros: no capability. All ones: nothing answers.
        if matches!(header, 0 | u32::MAX) { None } else { Some(Capability { id: header as u16, offset }) }
    }
}

impl<'a, C: ConfigSpace + ?Sized> Config<'a, C> {
    /// The standard capabilities.
    pub fn capabilities(self) -> Capabilities<'a, C> {
        Capabilities::new(self)
    }

    /// Offsets of the vendor-specific capabilities.
    pub fn vendor_capabilities(self) -> impl Iterator<Item = u16> + use<'a, C> {
        self.capabilities()
            .filter(|capability| capability.id == id::VENDOR)
            .map(|capability| capability.offset)
    }

    /// Offset of the first standard capability `id`, if it leaves room for `bytes` bytes.
    pub fn find(self, id: u8, bytes: u16) -> Option<u16> {
        let found = self.capabilities().find(|capability| capability.id == id)?.offset;
        (found + bytes <= offset::EXTENDED).then_some(found)
    }

    /// Offset of the first extended capability `id`, if it leaves room for `bytes` bytes.
    pub fn find_extended(self, id: u16, bytes: u16) -> Option<u16> {
        let found = ExtendedCapabilities::new(self).find(|capability| capability.id == id)?.offset;
        (found + bytes <= offset::END).then_some(found)
    }
}

#[cfg(test)]
#[path = "capability_tests.rs"]
mod tests;
