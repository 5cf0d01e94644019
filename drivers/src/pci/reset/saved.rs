//! What a reset takes from configuration space, and brings back.

use super::{
    super::{
        capability::{extended_id, id},
        config::{Config, ConfigSpace, command, offset},
        function::Layout,
    },
    ResetError,
};

/// Most registers that are kept.
const KEPT_MAX: usize = 16;

/// The header behind its class code but for read-only registers: BARs, or bus numbers and windows; expansion ROM,
/// interrupt line.
const HEADER: [u16; 11] = [0x0c, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x28, 0x2c, 0x30, 0x3c];
/// I/O window and Secondary Status of a bridge: the latter's bits are cleared by ones.
const BRIDGE_STATUS: u16 = 0x1c;

/// Device Control and Device Control 2 of the PCI Express capability, each with its status in the upper half.
const DEVICE_CONTROL: u16 = 0x08;
const DEVICE_CONTROL_2: u16 = 0x28;
const EXPRESS_BYTES: u16 = 0x0c;
const EXPRESS_BYTES_2: u16 = 0x2c;
/// ACS capability, and in the upper half of the same dword its control.
const ACS_REGISTERS: u16 = 4;
const ACS_BYTES: u16 = 8;

const LOWER_HALF: u32 = 0xffff;

/// One dword, as far as it is brought back.
#[derive(Clone, Copy)]
struct Kept {
    register: u16,
    mask: u32,
    value: u32,
}

/// The configuration of one function before its reset.
pub(super) struct Saved {
    kept: [Option<Kept>; KEPT_MAX],
    /// The function's pin interrupt could be turned off: a reset allows it again, and so tells of itself.
    tells: bool,
}

impl Saved {
    /// Reads what has to be brought back, and stops an endpoint from mastering the bus. `None` if nothing answers.
    pub fn take<C: ConfigSpace + ?Sized>(config: Config<'_, C>) -> Option<Self> {
        // A virtual function has no vendor of its own.
        let layout = config.is_present().then(|| Layout::read(config))?;
        let is_bridge = matches!(layout, Layout::Bridge(_) | Layout::CardBus(_));
        let header = HEADER.map(|register| {
            let mask = if is_bridge && register == BRIDGE_STATUS { LOWER_HALF } else { u32::MAX };
            Some((register, mask))
        });
        // A bridge goes on forwarding; a driver turns on itself what an endpoint needs.
        let command = is_bridge.then_some((offset::COMMAND_STATUS, LOWER_HALF));
        let control = |place, bytes| Some((config.find(id::EXPRESS, bytes)? + place, LOWER_HALF));
        let acs = config.find_extended(extended_id::ACS, ACS_BYTES);
        let others = [
            command,
            control(DEVICE_CONTROL, EXPRESS_BYTES),
            control(DEVICE_CONTROL_2, EXPRESS_BYTES_2).filter(|_| has_second_half(config)),
            acs.map(|acs| (acs + ACS_REGISTERS, u32::MAX)),
        ];
        let mut kept = [None; KEPT_MAX];
        for (place, (register, mask)) in kept.iter_mut().zip(header.into_iter().chain(others).flatten()) {
            *place = Some(Kept { register, mask, value: config.read32(register) & mask });
        }
        let stopped = if is_bridge { 0 } else { command::BUS_MASTER };
        config.change_command(command::INTX_DISABLE, stopped);
        let tells = config.command() & command::INTX_DISABLE != 0;
        Some(Self { kept, tells })
    }

    /// Brings everything back after a reset.
    ///
    /// # Errors
    /// The reset changed nothing, or a register does not hold what it held before.
    pub fn restore<C: ConfigSpace + ?Sized>(&self, config: Config<'_, C>) -> Result<(), ResetError> {
        if self.tells && config.command() & command::INTX_DISABLE != 0 {
            return Err(ResetError::NoEffect);
        }
        config.write32(offset::COMMAND_STATUS, 0);
        for Kept { register, value, .. } in self.registers() {
            config.write32(register, value);
        }
        for Kept { register, mask, value: wanted } in self.registers() {
            let found = config.read32(register) & mask;
            if found != wanted {
                return Err(ResetError::NotRestored { register, wanted, found });
            }
        }
        Ok(())
    }

    fn registers(&self) -> impl Iterator<Item = Kept> {
        self.kept.iter().copied().flatten()
    }
}

/// Whether the PCI Express capability has its second set of registers: from version 2 on.
fn has_second_half<C: ConfigSpace + ?Sized>(config: Config<'_, C>) -> bool {
    config.find(id::EXPRESS, EXPRESS_BYTES_2).is_some_and(|express| config.read16(express + 2) & 0xf >= 2)
}
