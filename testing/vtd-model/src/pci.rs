//! Configuration space of the synthetic PCI functions.

use crate::config::{FunctionConfig, FunctionKind};

const COMMAND: u16 = 0x04;
const COMMAND_BUS_MASTER: u32 = 1 << 2;
const CAPABILITY: u16 = 0x40;
const DEVICE_CAPABILITIES: u16 = CAPABILITY + 4;
const DEVICE_CONTROL: u16 = CAPABILITY + 8;
const FUNCTION_LEVEL_RESET: u32 = 1 << 15;
const EXTENDED: u16 = 0x100;
const ATS_CONTROL: u16 = EXTENDED + 4;
const ATS_ENABLE: u32 = 1 << 31;

/// The configuration space of one function: dwords, and which of their bits software may write.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    words: Vec<u32>,
    writable: Vec<u32>,
    ats: bool,
}

/// What a write to configuration space did besides changing bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    None,
    /// A function-level reset.
    Reset,
    /// ATS was turned off: the device's TLB is empty.
    AtsOff,
}

impl ConfigSpace {
    pub fn new(config: &FunctionConfig) -> Self {
        let mut this = Self { words: vec![0; 1024], writable: vec![0; 1024], ats: config.ats };
        this.header(config);
        if config.kind != FunctionKind::Conventional {
            this.express(config);
        }
        match config.kind {
            FunctionKind::RootPort { .. } => this.access_control(),
            _ if config.ats => this.address_translation(config),
            _ => {}
        }
        this
    }

    fn header(&mut self, config: &FunctionConfig) {
        const CAPABILITIES_LIST: u32 = 1 << 20;
        const COMMAND_WRITABLE: u32 = 0x0547;
        self.set(0x00, 0x5a1e_1af4, 0);
        let command = if config.bus_master { COMMAND_BUS_MASTER | 2 } else { 0 };
        self.set(COMMAND, command | CAPABILITIES_LIST, COMMAND_WRITABLE);
        self.set(0x34, CAPABILITY.into(), 0);
        match config.kind.buses() {
            Some((secondary, subordinate)) => {
                self.set(0x08, 0x0604_0000, 0);
                self.set(0x0c, 0x0001_0000, 0);
                self.set(0x18, u32::from(subordinate) << 16 | u32::from(secondary) << 8, !0);
            }
            None => self.set(0x08, 0x00ff_0000, 0),
        }
        if config.kind == FunctionKind::Conventional {
            self.set(COMMAND, command, COMMAND_WRITABLE);
            self.set(0x34, 0, 0);
        }
    }

    fn express(&mut self, config: &FunctionConfig) {
        const EXPRESS: u32 = 0x10;
        const RESETS: u32 = 1 << 28;
        let port = match config.kind {
            FunctionKind::RootPort { .. } => 4,
            FunctionKind::PciBridge { .. } => 7,
            FunctionKind::Endpoint | FunctionKind::Conventional => 0,
        };
        self.set(CAPABILITY, (2 | port << 4) << 16 | EXPRESS, 0);
        self.set(DEVICE_CAPABILITIES, if config.resets { RESETS } else { 0 }, 0);
        self.set(DEVICE_CONTROL, 0, 0x0000_ffff);
    }

    /// Access control services with everything that isolates.
    fn access_control(&mut self) {
        const ACS: u32 = 0x000d | 1 << 16;
        self.set(EXTENDED, ACS, 0);
        self.set(EXTENDED + 4, 0x005f, 0x005f_0000);
    }

    fn address_translation(&mut self, config: &FunctionConfig) {
        const ATS: u32 = 0x000f | 1 << 16;
        const PAGE_ALIGNED: u32 = 1 << 5;
        self.set(EXTENDED, ATS, 0);
        // A virtual function has neither a queue depth nor a translation unit of its own.
        let (depth, writable) = match config.physical {
            Some(_) => (0, ATS_ENABLE),
            None => (u32::from(config.ats_queue_depth), ATS_ENABLE | 0x1f << 16),
        };
        self.set(ATS_CONTROL, PAGE_ALIGNED | depth, writable);
    }

    fn set(&mut self, offset: u16, value: u32, writable: u32) {
        self.words[usize::from(offset) / 4] = value;
        self.writable[usize::from(offset) / 4] = writable;
    }

    fn get(&self, offset: u16) -> u32 {
        self.words[usize::from(offset) / 4]
    }

    pub fn read(&self, offset: u16) -> u32 {
        if offset.is_multiple_of(4) && offset < 4096 { self.get(offset) } else { !0 }
    }

    pub fn write(&mut self, offset: u16, value: u32) -> Effect {
        if !offset.is_multiple_of(4) || offset >= 4096 {
            return Effect::None;
        }
        let ats_before = self.ats_enabled();
        let index = usize::from(offset) / 4;
        self.words[index] = self.words[index] & !self.writable[index] | value & self.writable[index];
        let resets = self.get(DEVICE_CAPABILITIES) >> 28 & 1 != 0 && self.get(CAPABILITY) != 0;
        if offset == DEVICE_CONTROL && value & FUNCTION_LEVEL_RESET != 0 && resets {
            self.reset();
            return Effect::Reset;
        }
        if ats_before && !self.ats_enabled() { Effect::AtsOff } else { Effect::None }
    }

    /// A function-level reset, or a loss of power, clears bus mastering and ATS.
    pub fn reset(&mut self) {
        self.words[usize::from(COMMAND) / 4] &= !0xffff;
        self.words[usize::from(DEVICE_CONTROL) / 4] = 0;
        if self.ats {
            self.words[usize::from(ATS_CONTROL) / 4] &= !ATS_ENABLE;
        }
    }

    pub fn stop_bus_master(&mut self) {
        self.words[usize::from(COMMAND) / 4] &= !COMMAND_BUS_MASTER;
    }

    pub fn bus_master(&self) -> bool {
        self.get(COMMAND) & COMMAND_BUS_MASTER != 0
    }

    pub fn ats_enabled(&self) -> bool {
        self.ats && self.get(ATS_CONTROL) & ATS_ENABLE != 0
    }
}

#[cfg(test)]
mod tests {
    use iommu::PciAddress;

    use super::*;

    fn endpoint() -> ConfigSpace {
        let config = FunctionConfig::endpoint(PciAddress::from_devfn(0, 0, 16), 0);
        ConfigSpace::new(&FunctionConfig { ats: true, bus_master: true, ..config })
    }

    #[test]
    fn bus_mastering_is_a_bit_that_software_writes() {
        let mut space = endpoint();
        assert!(space.bus_master());
        space.write(COMMAND, 0);
        assert!(!space.bus_master());
        assert_eq!(space.read(COMMAND) >> 20 & 1, 1, "status is read-only");
    }

    #[test]
    fn reset_turns_everything_off() {
        let mut space = endpoint();
        space.write(ATS_CONTROL, ATS_ENABLE);
        assert!(space.ats_enabled());
        assert_eq!(space.write(DEVICE_CONTROL, FUNCTION_LEVEL_RESET), Effect::Reset);
        assert!(!space.ats_enabled() && !space.bus_master());
    }

    #[test]
    fn turning_ats_off_is_noticed() {
        let mut space = endpoint();
        space.write(ATS_CONTROL, ATS_ENABLE);
        assert_eq!(space.write(ATS_CONTROL, 0), Effect::AtsOff);
        assert_eq!(space.write(ATS_CONTROL, 0), Effect::None);
    }
}
