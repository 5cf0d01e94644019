//! Bus numbers for bridges that firmware has given none.

use super::{
    super::{
        config::{Config, ConfigSpace, offset},
        enumerate::{BusRange, on_bus},
        function::{Function, Layout},
    },
    ResourceError,
};

/// How many bridges may be behind each other.
const MAX_DEPTH: u8 = 8;

/// Gives every bridge that can be reached from the first bus of `buses` the bus behind it and the range of what is
/// behind that, all out of `buses`: the range of a port behind which nobody uses anything. The bridges pass on
/// configuration cycles then, and [`enumerate`](crate::pci::enumerate) finds what is behind them.
///
/// Bridges to CardBus get none: nothing is found behind them.
///
/// # Errors
/// The first bridge that gets no bus, or that does not take its numbers. Those before it have theirs.
pub fn number_buses<C: ConfigSpace + ?Sized>(space: &C, buses: BusRange) -> Result<(), ResourceError> {
    Numbering { space, buses, highest: buses.first }.behind(buses.first, MAX_DEPTH)
}

/// Has `bridge` lead to buses out of `buses`, of which it gets as many as what is behind it takes. Returns the last of
/// them.
///
/// # Errors
/// As [`number_buses`]. The bridge leads nowhere then.
pub(super) fn number_behind<C: ConfigSpace + ?Sized>(
    space: &C,
    bridge: &Function,
    buses: BusRange,
) -> Result<u8, ResourceError> {
    let mut numbering = Numbering { space, buses, highest: buses.first };
    let numbered = numbering.write(bridge, bridge.address.bus, buses.first, buses.last).and_then(|()| {
        numbering.behind(buses.first, MAX_DEPTH)?;
        numbering.write(bridge, bridge.address.bus, buses.first, numbering.highest)
    });
    match numbered {
        Ok(()) => Ok(numbering.highest),
        Err(error) => {
            // It takes no numbers, or leads nowhere now.
            let _ = numbering.write(bridge, 0, 0, 0);
            Err(error)
        }
    }
}

struct Numbering<'a, C: ConfigSpace + ?Sized> {
    space: &'a C,
    buses: BusRange,
    /// The highest number that is given out. Each bridge takes one, which bounds their count.
    highest: u8,
}

impl<'a, C: ConfigSpace + ?Sized> Numbering<'a, C> {
    fn behind(&mut self, bus: u8, depth_left: u8) -> Result<(), ResourceError> {
        // What they had before may lead to the same buses.
        for bridge in self.bridges(bus) {
            self.write(&bridge, 0, 0, 0)?;
        }
        for bridge in self.bridges(bus).filter(|bridge| matches!(bridge.layout, Layout::Bridge(_))) {
            let Some(depth_left) = depth_left.checked_sub(1) else {
                return Err(ResourceError::TooDeep { bridge: bridge.address });
            };
            let Some(secondary) = self.highest.checked_add(1).filter(|&bus| bus <= self.buses.last) else {
                return Err(ResourceError::NoBus { bridge: bridge.address, last: self.buses.last });
            };
            self.highest = secondary;
            // How many buses are behind it shows only when it leads to all that are left.
            self.write(&bridge, bus, secondary, self.buses.last)?;
            self.behind(secondary, depth_left)?;
            self.write(&bridge, bus, secondary, self.highest)?;
        }
        Ok(())
    }

    fn bridges(&self, bus: u8) -> impl Iterator<Item = Function> + use<'a, C> {
        on_bus(self.space, self.buses.segment, bus)
            .filter(|function| matches!(function.layout, Layout::Bridge(_) | Layout::CardBus(_)))
    }

    fn write(
        &self,
        bridge: &Function,
        primary: u8,
        secondary: u8,
        subordinate: u8,
    ) -> Result<(), ResourceError> {
        const NUMBERS: u32 = 0x00ff_ffff;
        /// A bridge of PCI Express does not use its primary bus.
        const CHECKED: u32 = 0x00ff_ff00;
        let config = Config::new(self.space, bridge.address);
        let numbers = u32::from_le_bytes([primary, secondary, subordinate, 0]);
        config.write32(offset::BUS_NUMBERS, config.read32(offset::BUS_NUMBERS) & !NUMBERS | numbers);
        if (config.read32(offset::BUS_NUMBERS) ^ numbers) & CHECKED != 0 {
            return Err(ResourceError::NotNumbered { bridge: bridge.address });
        }
        Ok(())
    }
}
