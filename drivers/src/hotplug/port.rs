//! One port with a slot, and what is in it.

use alloc::{collections::TryReserveError, sync::Arc, vec::Vec};
use core::fmt;

use iommu::{HotplugError, PciAddress, topology};

use super::{Attempts, Hotplug, Turn};
use crate::{
    host::{Event, Host, InterruptError},
    pci::{
        Apertures, Bridge, BusRange, Changes, Config, Function, Msi, MsiError, Msix, MsixError,
        ResourceError, Slot, SlotError, assign, enumerate, number_buses, place_virtual,
    },
    quiet::{Target, quieten},
};

/// How long what is in the slot may take to come back from a reset.
const RESET_DEADLINE_NS: u64 = 2_000_000_000;
/// After what time it is tried again to take back what is gone. Each attempt may take some deadlines.
pub(super) const RETRY_LOST_NS: u64 = 10_000_000_000;

/// A port with a slot.
pub(super) struct Port {
    slot: Slot,
    buses: BusRange,
    /// The bridge right above it; `None` on a root bus.
    parent: Option<PciAddress>,
    /// Empty if nothing is in use in the slot.
    occupants: Vec<Occupant>,
    interrupt: PortInterrupt,
    /// When it is tried again to take back what is gone, after that has failed. What is in the slot is nobody's
    /// meanwhile.
    retry_lost_ns: Option<u64>,
    said: Said,
}

/// How often there was something to say of a slot, by what it was. A device that comes and goes for ever fills no log.
#[derive(Default)]
struct Said {
    plugged_in: u64,
    gone: u64,
    taken_out: u64,
    failed: u64,
    no_interrupt: u64,
}

/// Counts something that happens, and returns how often it has, if that is to be said: the first time, the second,
/// the fourth.
fn count(times: &mut u64) -> Option<u64> {
    *times += 1;
    Some(*times).filter(|times| times.is_power_of_two())
}

/// What has become of what is in a slot.
#[derive(Clone, Copy, Debug)]
enum Fate {
    PluggedIn,
    Gone,
    TakenOut,
}

/// The port's interrupt, on while it lives.
enum PortInterrupt {
    Msi(Msi),
    Msix(Msix),
}

/// A function in the slot, and the address registers that tell it from another one that was put in its place.
struct Occupant {
    function: PciAddress,
    registers: [u32; 6],
}

/// Why something is not done in a slot.
#[derive(Debug)]
pub(super) enum PortError {
    Slot(SlotError),
    Msi(MsiError),
    Msix(MsixError),
    Resources(ResourceError),
    Iommu(HotplugError),
    /// Nothing answers behind the port.
    Nothing,
    /// Functions answer behind the port, while the slot says that it is empty: somebody else, as a rule firmware by
    /// ACPI, runs it.
    NotReported,
    /// Others are changing which functions there are, all the time.
    Busy,
    OutOfMemory,
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slot(error) => error.fmt(f),
            Self::Msi(error) => error.fmt(f),
            Self::Msix(error) => error.fmt(f),
            Self::Resources(error) => error.fmt(f),
            Self::Iommu(error) => error.fmt(f),
            Self::Nothing => f.write_str("nothing answers"),
            Self::NotReported => f.write_str("it says that it is empty, but functions answer behind it"),
            Self::Busy => f.write_str("others are changing which functions there are"),
            Self::OutOfMemory => f.write_str("no memory"),
        }
    }
}

impl From<SlotError> for PortError {
    fn from(error: SlotError) -> Self {
        Self::Slot(error)
    }
}

impl From<MsiError> for PortError {
    fn from(error: MsiError) -> Self {
        Self::Msi(error)
    }
}

impl From<MsixError> for PortError {
    fn from(error: MsixError) -> Self {
        Self::Msix(error)
    }
}

impl From<InterruptError> for PortError {
    fn from(error: InterruptError) -> Self {
        Self::Msi(MsiError::Interrupt(error))
    }
}

impl From<ResourceError> for PortError {
    fn from(error: ResourceError) -> Self {
        Self::Resources(error)
    }
}

impl From<HotplugError> for PortError {
    fn from(error: HotplugError) -> Self {
        Self::Iommu(error)
    }
}

impl From<TryReserveError> for PortError {
    fn from(_: TryReserveError) -> Self {
        Self::OutOfMemory
    }
}

impl PortInterrupt {
    /// By MSI-X if the port has it, else by MSI.
    fn enable(host: &Arc<dyn Host>, slot: &Slot, event: &Arc<dyn Event>) -> Result<Self, PortError> {
        let interrupt = || host.allocate_interrupt(slot.port(), event.clone());
        match Msix::open(slot.device()) {
            Ok(mut msix) => {
                msix.set(slot.interrupt_number(), interrupt()?)?;
                Ok(Self::Msix(msix))
            }
            Err(MsixError::NoCapability) => Ok(Self::Msi(Msi::enable(slot.device(), interrupt()?)?)),
            Err(error) => Err(error.into()),
        }
    }

    /// Another one in its place. What is behind the port may be in use: nothing else of it changes.
    fn renew(&mut self, host: &Arc<dyn Host>, slot: &Slot, event: &Arc<dyn Event>) -> Result<(), PortError> {
        let interrupt = host.allocate_interrupt(slot.port(), event.clone())?;
        match self {
            Self::Msi(msi) => msi.replace(interrupt)?,
            Self::Msix(msix) => msix.replace(slot.interrupt_number(), interrupt)?,
        }
        Ok(())
    }
}

impl Port {
    /// The port that `function` is, if it has a slot. Changes signal `event`.
    pub fn open(
        hotplug: &Hotplug,
        function: &Function,
        event: &Arc<dyn Event>,
    ) -> Result<Option<Self>, PortError> {
        let host = &hotplug.host;
        let Some(Bridge { secondary, subordinate }) = function.bridge() else { return Ok(None) };
        if secondary <= function.address.bus || subordinate < secondary {
            return Ok(None);
        }
        let Some(slot) = Slot::open(host, function) else { return Ok(None) };
        let buses = BusRange { segment: function.address.segment, first: secondary, last: subordinate };
        let mut occupants = Vec::new();
        for behind in hotplug.each().filter(|function| is_on(buses, function.address)) {
            occupants.try_reserve(1)?;
            occupants.push(Occupant::read(&**host, behind.address));
        }
        let answers = |occupant: &Occupant| Config::new(&**host, occupant.function).is_present();
        if !slot.is_occupied() && occupants.iter().any(answers) {
            return Err(PortError::NotReported);
        }
        let interrupt = PortInterrupt::enable(host, &slot, event)?;
        slot.device().enable_bus_master();
        slot.enable_events(true)?;
        let (parent, said) = (function.parent, Said::default());
        Ok(Some(Self { slot, buses, parent, occupants, interrupt, retry_lost_ns: None, said }))
    }

    /// The port's address.
    pub fn address(&self) -> PciAddress {
        self.slot.port()
    }

    /// When it has to be [served](Self::serve) at the latest, whatever happens.
    pub fn due_ns(&self) -> u64 {
        self.retry_lost_ns.unwrap_or(u64::MAX)
    }

    /// Takes a new interrupt for the port: where its group is that of what is behind it, the last one is gone with
    /// that.
    pub fn renew_interrupt(&mut self, host: &Arc<dyn Host>, event: &Arc<dyn Event>) {
        if let Err(error) = self.interrupt.renew(host, &self.slot, event)
            && count(&mut self.said.no_interrupt).is_some()
        {
            log::warn!("pci: the slot of {} has no interrupt: {error}", self.address());
        }
    }

    /// Takes in what has changed in the slot because `other`, a port that may be behind this one, was served: what came
    /// and went there, and the windows of `other`.
    pub fn follow(&mut self, hotplug: &Hotplug, other: PciAddress) {
        let host = &*hotplug.host;
        self.occupants.retain(|occupant| hotplug.function(occupant.function).is_some());
        let buses = self.buses;
        for function in hotplug.each().filter(|function| is_on(buses, function.address)) {
            let known = self.occupants.iter().position(|occupant| occupant.function == function.address);
            match known {
                Some(index) if function.address == other => {
                    self.occupants[index] = Occupant::read(host, other)
                }
                None if function.physical.is_none() && self.occupants.try_reserve(1).is_ok() => {
                    self.occupants.push(Occupant::read(host, function.address));
                }
                _ => {}
            }
        }
    }

    /// Looks at what has happened to the slot, and does what it takes. The `turn` is over before a driver is called.
    /// Returns whether anything may have come or gone.
    pub fn serve(&mut self, hotplug: &Hotplug, apertures: &mut Apertures, turn: Turn<'_>) -> bool {
        let changes = self.slot.take_changes();
        let is_occupied = self.slot.is_occupied();
        if self.occupants.is_empty() {
            if !is_occupied || !changes.button && !changes.occupant {
                return false;
            }
            self.welcome(hotplug, apertures, turn);
        } else if let Some(retry_ns) = self.retry_lost_ns {
            if hotplug.host.now_ns() < retry_ns {
                return false;
            }
            self.replace(hotplug, apertures, turn);
        } else if !is_occupied || changes.occupant && !self.is_as_it_was(hotplug) {
            self.replace(hotplug, apertures, turn);
        } else if changes.button {
            drop(turn);
            let result = self.let_go(hotplug);
            self.report(Fate::TakenOut, result);
        } else {
            return false;
        }
        true
    }

    /// Takes back what is gone, and has drivers take what is in its place. If it cannot be taken back, that is said
    /// once, and tried again later.
    fn replace(&mut self, hotplug: &Hotplug, apertures: &mut Apertures, turn: Turn<'_>) {
        let result = self.lose(hotplug, turn);
        let had_failed = self.retry_lost_ns.take().is_some();
        if result.is_err() {
            self.retry_lost_ns = Some(hotplug.host.now_ns().saturating_add(RETRY_LOST_NS));
            if had_failed {
                return;
            }
        }
        self.report(Fate::Gone, result);
        if self.occupants.is_empty() && self.slot.is_occupied() {
            match hotplug.turn() {
                Some(turn) => self.welcome(hotplug, apertures, turn),
                None => self.report(Fate::PluggedIn, Err(PortError::Busy)),
            }
        }
    }

    /// Has drivers take what is in the slot, unless somebody wants it back meanwhile.
    fn welcome(&mut self, hotplug: &Hotplug, apertures: &mut Apertures, turn: Turn<'_>) {
        let result = self.take_in(hotplug, apertures, turn);
        if result.is_err() {
            // Without power it harms nobody, and the next press of the button tries again.
            let _ = self.slot.power_off();
        }
        let is_pressed_again = matches!(result, Ok(Changes { button: true, .. }));
        self.report(Fate::PluggedIn, result.map(drop));
        if is_pressed_again {
            let result = self.let_go(hotplug);
            self.report(Fate::TakenOut, result);
        }
    }

    /// Whether what is in the slot still is what was put to use there. A reset, in which its link may go down and its
    /// registers are lost for a while, is waited out.
    fn is_as_it_was(&self, hotplug: &Hotplug) -> bool {
        let host = &*hotplug.host;
        let is_same = |known: &Occupant| {
            let now = Occupant::read(host, known.function);
            Config::new(host, known.function).is_present() && now.registers == known.registers
        };
        let deadline_ns = host.now_ns().saturating_add(RESET_DEADLINE_NS);
        while self.slot.is_occupied() && host.now_ns() < deadline_ns {
            if self.occupants.iter().all(is_same) {
                return true;
            }
            host.relax();
        }
        false
    }

    /// Makes what is in the slot ready for drivers, and has them take it. What has changed while it got power is
    /// returned: that its link came up is no news, that somebody wants it back is.
    fn take_in(
        &mut self,
        hotplug: &Hotplug,
        apertures: &mut Apertures,
        turn: Turn<'_>,
    ) -> Result<Changes, PortError> {
        let host = &*hotplug.host;
        self.slot.power_on()?;
        let meanwhile = self.slot.take_changes();
        let port = self.slot.port();
        // The last occupant may have had more functions than the next one has, which might answer for all of them.
        Config::new(host, port).forward_all_functions(false);
        number_buses(host, self.buses)?;
        let mut found = enumerate(host, self.buses)?;
        if found.is_empty() {
            return Err(PortError::Nothing);
        }
        for function in &mut found {
            function.enable_isolation(host);
            function.parent = function.parent.or(Some(port));
        }
        match self.parent {
            None => assign(host, port, &found, apertures)?,
            Some(parent) => {
                assign(host, port, &found, &mut Apertures::left_by(host, parent, &hotplug.functions()?)?)?;
            }
        }
        place_virtual(host, &mut found, &mut Apertures::nothing());
        found.iter_mut().for_each(|function| function.measure(host));
        let mut list: Vec<topology::Function> = Vec::new();
        list.try_reserve_exact(found.len())?;
        list.extend(found.iter().map(Function::topology));
        self.occupants.try_reserve(found.len())?;
        let room = hotplug.room(found.len(), &turn)?;
        hotplug.iommu.functions_appeared(&list)?;
        self.occupants.extend(found.iter().map(|function| Occupant::read(host, function.address)));
        hotplug.enter(&mut found, room, &turn);
        drop(turn);
        found.iter().for_each(|function| hotplug.drivers.bind(function));
        Ok(meanwhile)
    }

    /// Ends the drivers of what is in the slot, then takes it from them and switches it off.
    fn let_go(&mut self, hotplug: &Hotplug) -> Result<(), PortError> {
        for occupant in &self.occupants {
            hotplug.drivers.unbind(occupant.function, false);
        }
        let turn = hotplug.turn().ok_or(PortError::Busy)?;
        self.lose(hotplug, turn)
    }

    /// Takes what is gone from its drivers, and then ends them: they get all their memory back.
    fn lose(&mut self, hotplug: &Hotplug, turn: Turn<'_>) -> Result<(), PortError> {
        let gone = self.take_back(hotplug, &turn)?;
        drop(turn);
        hotplug.end_drivers(&gone);
        Ok(())
    }

    /// Takes the slot's functions out, with the virtual ones: blocked, without power, and only then their memory back.
    fn take_back(&mut self, hotplug: &Hotplug, turn: &Turn<'_>) -> Result<Vec<PciAddress>, PortError> {
        let host = &hotplug.host;
        let mut functions = Vec::new();
        for occupant in &self.occupants {
            functions.try_reserve(1)?;
            functions.push(occupant.function);
            hotplug.virtual_functions(occupant.function, &mut functions)?;
        }
        let slot = &self.slot;
        let mut off = Attempts::new();
        let mut is_quiet = |function: PciAddress| {
            let is_off = off.succeed(|| slot.power_off().is_ok() && slot.has_power_controller());
            let is_behind = functions.contains(&function);
            let quieten = |function: &Function| {
                quieten(host, Target { function, bridge: Some(slot.port()), group: &functions }).is_ok()
            };
            is_behind && (is_off || !slot.is_occupied())
                || hotplug.function(function).is_some_and(|found| quieten(&found))
        };
        hotplug.take_out(&functions, &mut is_quiet, turn)?;
        self.occupants.clear();
        Ok(functions)
    }
}

impl Port {
    /// Says what has become of what is in the slot, as often as [`count`] lets it.
    fn report(&mut self, fate: Fate, result: Result<(), PortError>) {
        let port = self.slot.port();
        let (times, what) = match (result, fate) {
            (Err(error), _) => {
                if let Some(times) = count(&mut self.said.failed) {
                    log::warn!("pci: behind {port}: {error} ({times} failures so far)");
                }
                return;
            }
            (Ok(()), Fate::PluggedIn) => (&mut self.said.plugged_in, "was plugged in"),
            (Ok(()), Fate::Gone) => (&mut self.said.gone, "is gone"),
            (Ok(()), Fate::TakenOut) => (&mut self.said.taken_out, "was taken out"),
        };
        if let Some(times) = count(times) {
            log::info!("pci: what is behind {port} {what} ({times} times so far)");
        }
    }
}

fn is_on(buses: BusRange, PciAddress { segment, bus, .. }: PciAddress) -> bool {
    segment == buses.segment && (buses.first..=buses.last).contains(&bus)
}

impl Occupant {
    fn read(host: &dyn Host, function: PciAddress) -> Self {
        const BARS: u16 = 0x10;
        let config = Config::new(host, function);
        Self { function, registers: core::array::from_fn(|index| config.read32(BARS + 4 * index as u16)) }
    }
}

#[cfg(test)]
#[path = "port_tests.rs"]
mod tests;
