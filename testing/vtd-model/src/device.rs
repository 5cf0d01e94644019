//! What a device does: DMA and interrupts.

use std::{fmt, ptr::NonNull, sync::Arc};

use iommu::{PciAddress, platform::MsiMessage};

use crate::{
    complaints::Rule,
    iotlb::Translation,
    machine::{Machine, State},
    memory::NotForDevices,
    unit::{
        Access, AddressType, Denied, InFlight, InFlightKind, InterruptOutcome, Reach, Request,
        is_interrupt_range,
    },
};

const PAGE: usize = 4096;

/// One function, as the thing that sends requests.
#[derive(Clone)]
pub struct Device {
    machine: Arc<Machine>,
    index: usize,
}

impl Machine {
    /// The function at `address`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn device(self: &Arc<Self>, address: PciAddress) -> Device {
        let index = self.config().functions.iter().position(|f| f.address == address);
        Device { machine: self.clone(), index: index.expect("a function of this machine") }
    }
}

impl Device {
    /// Where the function is.
    pub fn address(&self) -> PciAddress {
        self.machine.config().functions[self.index].address
    }

    /// Whether the function masters the bus.
    pub fn is_bus_master(&self) -> bool {
        self.machine.state().world.functions[self.index].config.bus_master()
    }

    /// Whether the function uses ATS at the moment.
    pub fn uses_ats(&self) -> bool {
        self.machine.state().world.functions[self.index].config.ats_enabled()
    }

    /// Makes the function answer device-TLB invalidations only from some time on; `u64::MAX` is never.
    pub fn set_answers_from_ns(&self, time_ns: u64) {
        self.machine.state().world.functions[self.index].answers_from_ns = time_ns;
    }

    /// Begins a transfer of `bytes` bytes that the unit lets through now and that goes on until the function is reset,
    /// whatever becomes of the translation. `false` if nothing lets it through, or the memory is none that a test has
    /// lent.
    pub fn begin_transfer(&self, address: u64, bytes: u64) -> bool {
        let Ok(first) = self.probe(address, Access::Read).or_else(|_| self.probe(address, Access::Write))
        else {
            return false;
        };
        let mut state = self.machine.state();
        let lent = state.world.memory.buffers.is_lent(first);
        if lent {
            state.world.functions[self.index].busy_with.push((first, bytes));
        }
        lent
    }

    /// A reset by the function's own means: what it had begun ends, and its bus mastering is off. Its TLB stays.
    pub fn reset(&self) {
        let mut state = self.machine.state();
        let function = &mut state.world.functions[self.index];
        function.busy_with.clear();
        function.config.stop_bus_master();
    }

    /// Makes the function try `addresses` at every moment from now on, as far as the IOMMU lets it. They replace those
    /// of before.
    pub fn keep_trying(&self, addresses: &[u64]) {
        let attempts = &mut self.machine.state().world.attempts;
        attempts.retain(|&(index, _)| index != self.index);
        attempts.extend(addresses.iter().map(|&address| (self.index, address)));
    }

    /// Takes the function out of its slot, or puts one like it there. Without power it knows nothing any more, and ends
    /// what it had begun.
    pub fn set_unplugged(&self, unplugged: bool) {
        let mut state = self.machine.state();
        let function = &mut state.world.functions[self.index];
        function.unplugged = unplugged;
        function.config.reset();
        function.tlb.clear();
        function.busy_with.clear();
    }

    /// Reads memory.
    ///
    /// # Errors
    /// The first page that did not let it through; what came before was read.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Denied> {
        self.push_writes();
        for (address, piece) in pieces_mut(address, into) {
            let source = self.reach(address, piece.len(), Access::Read)?;
            // SAFETY: `reach` gives memory of that length, lent to this device.
            unsafe { source.copy_to_nonoverlapping(NonNull::from(&mut piece[0]), piece.len()) }
        }
        Ok(())
    }

    /// Writes memory. Four bytes in the interrupt range are an interrupt.
    ///
    /// # Errors
    /// The first page that did not let it through; what came before was written.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), Denied> {
        if let Ok(word) = data.try_into()
            && is_interrupt_range(address)
        {
            let message = MsiMessage { address, data: u32::from_le_bytes(word) };
            return match self.interrupt(message) {
                InterruptOutcome::Delivered(_) => Ok(()),
                InterruptOutcome::Blocked(reason) => Err(Denied::Fault(reason)),
                InterruptOutcome::NotBusMaster => Err(Denied::NotBusMaster),
            };
        }
        self.push_writes();
        for (address, piece) in pieces(address, data) {
            let target = self.reach(address, piece.len(), Access::Write)?;
            // SAFETY: as in `read`.
            unsafe { target.copy_from_nonoverlapping(NonNull::from(&piece[0]), piece.len()) }
        }
        Ok(())
    }

    /// Sends a write within one page that is translated now and reaches memory some time later: at random, or when an
    /// invalidation drains it.
    ///
    /// # Errors
    /// If it was not let through.
    pub fn post_write(&self, address: u64, data: &[u8]) -> Result<(), Denied> {
        self.post(address, Access::Write, InFlightKind::Write(data.to_vec()))
    }

    /// Sends a read within one page that is translated now and gets to memory some time later, as a write does.
    ///
    /// # Errors
    /// If it was not let through.
    pub fn post_read(&self, address: u64, bytes: usize) -> Result<(), Denied> {
        self.post(address, Access::Read, InFlightKind::Read(bytes))
    }

    fn post(&self, address: u64, access: Access, kind: InFlightKind) -> Result<(), Denied> {
        self.reach(address, kind.bytes(), access)?;
        let mut state = self.machine.state();
        let State { units, world } = &mut *state;
        let translation = translate(units, world, self.index, address, access, true)?;
        let (physical, pass_through) = (translation.at(address), translation.pass_through);
        let unit = world.functions[self.index].unit;
        units[unit].in_flight.push(InFlight { physical, kind, pass_through });
        Ok(())
    }

    /// Where an access to `address` would go, by the IOMMU alone: bus mastering is not looked at, and no fault is
    /// recorded. Caches are used and filled as by any request.
    ///
    /// # Errors
    /// If it would not be let through.
    pub fn probe(&self, address: u64, access: Access) -> Result<u64, Denied> {
        let mut state = self.machine.state();
        let State { units, world } = &mut *state;
        translate(units, world, self.index, address, access, true).map(|translation| translation.at(address))
    }

    /// Everything that the tables let the function reach, sorted; `None` if its addresses pass through.
    pub fn reach_of_tables(&self) -> Option<Vec<Reach>> {
        let state = self.machine.state();
        let function = &state.world.functions[self.index];
        state.units[function.unit].survey(&state.world, function.requester)
    }

    /// What the unit's IOTLB and the function's own TLB hold for it.
    pub fn cached_translations(&self) -> Vec<(u64, Translation)> {
        let state = self.machine.state();
        let function = &state.world.functions[self.index];
        let mut all = state.units[function.unit].cached_for(&state.world, function.requester);
        all.extend(function.tlb.entries());
        all
    }

    /// Sends an interrupt message.
    pub fn interrupt(&self, message: MsiMessage) -> InterruptOutcome {
        let mut state = self.machine.state();
        let State { units, world } = &mut *state;
        let function = &world.functions[self.index];
        if !world.masters_bus(self.index) {
            return InterruptOutcome::NotBusMaster;
        }
        let (unit, source) = (function.unit, function.requester);
        units[unit].interrupt(world, source, message)
    }

    /// A request pushes the posted writes before it to memory.
    fn push_writes(&self) {
        let mut state = self.machine.state();
        let State { units, world } = &mut *state;
        let unit = world.functions[self.index].unit;
        units[unit].land(world, |_| true);
    }

    /// Memory behind `bytes` bytes within one page.
    fn reach(&self, address: u64, bytes: usize, access: Access) -> Result<NonNull<u8>, Denied> {
        let mut state = self.machine.state();
        self.machine.stir(&mut state);
        let State { units, world } = &mut *state;
        if !world.masters_bus(self.index) {
            return Err(Denied::NotBusMaster);
        }
        let translation = translate(units, world, self.index, address, access, false)?;
        let physical = translation.at(address);
        if units[world.functions[self.index].unit].is_protected(physical) {
            return Err(Denied::Protected);
        }
        world.memory.dma_target(physical, bytes).map_err(|why| {
            if !translation.pass_through || why == NotForDevices::Table {
                let who = world.functions[self.index].address;
                let text = format!("{who}: {access:?} of {address:#x} reached {physical:#x} ({why:?})");
                world.complaints.add(Rule::StrayDma, text);
            }
            Denied::NoMemory
        })
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.address())
    }
}

impl Translation {
    /// Where `address`, which lies in the page, goes.
    #[must_use]
    pub fn at(&self, address: u64) -> u64 {
        self.physical | address & ((1 << self.page_shift) - 1)
    }
}

impl Machine {
    /// Sends the interrupt message of an IOAPIC, by its place in the configuration.
    pub fn ioapic_interrupt(&self, ioapic: usize, message: MsiMessage) -> InterruptOutcome {
        let ioapic = self.config().ioapics[ioapic];
        let mut state = self.state();
        let State { units, world } = &mut *state;
        units[ioapic.unit].interrupt(world, ioapic.source, message)
    }

    /// Sends the message of a timer of an HPET, by its place in the configuration, under function number `function`.
    pub fn hpet_interrupt(&self, hpet: usize, function: u8, message: MsiMessage) -> InterruptOutcome {
        let hpet = self.config().hpets[hpet];
        let mut state = self.state();
        let State { units, world } = &mut *state;
        units[hpet.unit].interrupt(world, hpet.source & !7 | u16::from(function & 7), message)
    }
}

/// A request of function `index`, by way of its own TLB if it uses ATS.
fn translate(
    units: &mut [crate::unit::Unit],
    world: &mut crate::world::World,
    index: usize,
    address: u64,
    access: Access,
    silent: bool,
) -> Result<Translation, Denied> {
    const UNTRANSLATED_ONCE_IN: u64 = 8;
    let (unit, source) = (world.functions[index].unit, world.functions[index].requester);
    let unit = &mut units[unit];
    let ats = world.functions[index].config.ats_enabled() && !is_interrupt_range(address);
    if !ats || world.random.once_in(UNTRANSLATED_ONCE_IN) {
        let address_type = AddressType::Untranslated;
        return unit.request(world, &Request { source, address, access, address_type, silent });
    }
    let allows = |t: &Translation| if access == Access::Write { t.write } else { t.read };
    if world.drops() {
        world.functions[index].tlb.remove(address);
    }
    let known = world.functions[index].tlb.get(address).filter(allows);
    let translation = match known {
        Some(translation) => translation,
        None => {
            let got =
                unit.answer_device(world, source, address, access, silent).map_err(
                    |denied| match denied {
                        // The answer says so to the device, and nobody else hears of it.
                        Denied::Fault(reason) if reason.is_no_right() => Denied::NoTranslation,
                        fault => fault,
                    },
                )?;
            if !allows(&got) {
                return Err(Denied::NoTranslation);
            }
            world.functions[index].tlb.insert(address, got);
            got
        }
    };
    let physical = translation.at(address);
    let address_type = AddressType::Translated;
    unit.request(world, &Request { source, address: physical, access, address_type, silent })?;
    Ok(translation)
}

/// One of the addresses that functions go on trying is tried. It fills caches, and leads nowhere but to what is lent.
pub(crate) fn attempt(units: &mut [crate::unit::Unit], world: &mut crate::world::World) {
    if world.attempts.is_empty() {
        return;
    }
    let number = world.random.index(world.attempts.len());
    let (index, address) = world.attempts[number];
    let access = if world.random.once_in(2) { Access::Read } else { Access::Write };
    let unit = &units[world.functions[index].unit];
    // What waits in a write buffer may be seen in any order: before its flush a walk may lead anywhere.
    if unit.misbehaviour.gone || unit.config.write_buffer {
        return;
    }
    let Ok(translation) = translate(units, world, index, address, access, true) else { return };
    let physical = translation.at(address);
    if let Err(why) = world.memory.dma_target(physical, 1) {
        let who = world.functions[index].address;
        let text = format!("{who}: {access:?} of {address:#x} would reach {physical:#x} ({why:?})");
        world.complaints.add(Rule::StrayDma, text);
    }
}

/// Transfers that were let through once go on: their memory must be what it was.
pub(crate) fn go_on(world: &crate::world::World) {
    for function in &world.functions {
        for &(physical, _) in function.busy_with.iter().filter(|&&(at, _)| !world.memory.buffers.is_lent(at))
        {
            let text = format!("{}: a transfer to {physical:#x} that began before goes on", function.address);
            world.complaints.add(Rule::StrayDma, text);
        }
    }
}

/// Whether a request of function `index` for `physical`, said to be translated, would be let through.
pub(crate) fn reaches_translated(
    units: &mut [crate::unit::Unit],
    world: &mut crate::world::World,
    index: usize,
    physical: u64,
) -> bool {
    let (unit, source) = (world.functions[index].unit, world.functions[index].requester);
    let (access, address_type) = (Access::Write, AddressType::Translated);
    let unit = &mut units[unit];
    !unit.misbehaviour.gone
        && unit
            .request(world, &Request { source, address: physical, access, address_type, silent: true })
            .is_ok()
}

/// Cuts `data` at page boundaries.
fn pieces(address: u64, data: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let head = (PAGE - address as usize % PAGE).min(data.len());
    let (first, rest) = data.split_at(head);
    let after = address.wrapping_add(head as u64);
    let rest =
        (0_u64..).zip(rest.chunks(PAGE)).map(move |(i, chunk)| (after.wrapping_add(i * PAGE as u64), chunk));
    std::iter::once((address, first)).filter(|(_, piece)| !piece.is_empty()).chain(rest)
}

/// As [`pieces`], for memory to be filled.
fn pieces_mut(address: u64, data: &mut [u8]) -> impl Iterator<Item = (u64, &mut [u8])> {
    let head = (PAGE - address as usize % PAGE).min(data.len());
    let (first, rest) = data.split_at_mut(head);
    let after = address.wrapping_add(head as u64);
    let rest = (0_u64..)
        .zip(rest.chunks_mut(PAGE))
        .map(move |(i, chunk)| (after.wrapping_add(i * PAGE as u64), chunk));
    std::iter::once((address, first)).filter(|(_, piece)| !piece.is_empty()).chain(rest)
}
