//! What devices do in a life: DMA that a mapping allows, and DMA that none does.

use vtd_model::Denied;

use super::{
    Function, Group, Life, PAGE,
    memory::{Standing, Touched},
};
use crate::{
    check,
    oracle::{Expected, State},
    step::Step,
};

impl Life {
    /// A mapping whose device reaches it.
    fn pick_reachable(&self, number: u64) -> Option<usize> {
        self.pick_live(number).filter(|&index| self.live[index].standing == Standing::InUse)
    }

    /// The device moves data inside a mapping.
    pub(super) fn transfer(&mut self, step: &Step) -> Result<Touched, String> {
        const LONGEST: u64 = 3 * PAGE;
        let Some(index) = self.pick_reachable(step.a) else { return Ok(None) };
        let live = &mut self.live[index];
        let hardware = &self.functions[live.function].hardware;
        let offset = step.b % live.bytes;
        let bytes = 1 + step.c % LONGEST.min(live.bytes - offset);
        let (read, write) = live.held.rights();
        let mut data: Vec<u8> = (0..bytes).map(|i| (step.c >> (i % 8 * 8)) as u8 ^ i as u8).collect();
        if write {
            hardware.write(live.iova + offset, &data).map_err(|error| format!("write: {error:?}"))?;
            live.written = Some((offset, data));
        } else if read {
            hardware.read(live.iova + offset, &mut data).map_err(|error| format!("read: {error:?}"))?;
            let mut head = [0; 8];
            hardware.read(live.iova, &mut head).map_err(|error| format!("read: {error:?}"))?;
            if head[0] != 0xa5 {
                return Err(format!("the device read {head:x?} at {:#x}", live.iova));
            }
        }
        Ok(Some((self.functions[live.function].group, live.iova, live.bytes)))
    }

    /// A write or a read that reaches memory later: before the buffer is given back, or never.
    pub(super) fn posted(&mut self, step: &Step) -> Result<Touched, String> {
        let Some(index) = self.pick_reachable(step.a) else { return Ok(None) };
        let live = &mut self.live[index];
        let (may_read, may_write) = live.held.rights();
        // It lies in one page, wherever the buffer begins.
        if !live.iova.is_multiple_of(PAGE) {
            return Ok(None);
        }
        let hardware = &self.functions[live.function].hardware;
        let offset = (step.b % live.bytes) & !7;
        let mut data = step.c.to_le_bytes().to_vec();
        data.truncate((live.bytes - offset) as usize);
        let iova = live.iova + offset;
        if may_read && (step.c & 1 != 0 || !may_write) {
            hardware.post_read(iova, data.len()).map_err(|error| format!("posted read: {error:?}"))?;
        } else {
            hardware.post_write(iova, &data).map_err(|error| format!("posted write: {error:?}"))?;
            live.written = Some((offset, data));
        }
        Ok(Some((self.functions[live.function].group, live.iova, live.bytes)))
    }

    /// A request that no mapping allows is blocked, and the device's fault count tells.
    pub(super) fn stray(&mut self, step: &Step) -> Result<(), String> {
        let Some(index) = self.pick_claimed(step.a) else { return Ok(()) };
        let function = &self.functions[index];
        let oracle = &self.groups[function.group].oracle;
        let address = check::some_address(oracle, function.address_bits + 1, &mut self.random) & !7;
        let writes = step.c & 1 != 0;
        if let Expected::Mapped(mapped, _) = oracle.expected(address)
            && (mapped.state != State::InUse || if writes { mapped.write } else { mapped.read })
        {
            return Ok(());
        }
        let handle = function.handle.as_ref().expect("claimed");
        let before = handle.fault_count();
        let hardware = &function.hardware;
        let result =
            if writes { hardware.write(address, &[0; 8]) } else { hardware.read(address, &mut [0; 8]) };
        match result {
            Ok(()) => Err(format!("{:?} reached {address:#x}", hardware)),
            // Not one of the faults that hardware reports.
            Err(Denied::InterruptRange | Denied::NoTranslation) => Ok(()),
            Err(_) if handle.fault_count() > before => Ok(()),
            Err(error) => {
                Err(format!("{hardware:?} at {address:#x}: {error:?}, but the count stays {before}"))
            }
        }
    }

    /// A function that nobody has masters the bus all the same: it is blocked, and that is heard.
    pub(super) fn stray_of_a_free_function(&mut self, step: &Step) -> Result<(), String> {
        let index = step.a as usize % self.functions.len();
        let is_bridge = self.driven.machine.config().functions[index].kind.buses().is_some();
        let Function { address, group, address_bits, gone, .. } = self.functions[index];
        if gone {
            return Ok(());
        }
        let hardware = self.functions[index].hardware.clone();
        let at = self.random.below(1 << address_bits) & !7;
        let is_claimed = self.functions.iter().any(|other| other.group == group && other.handle.is_some());
        let Group { oracle, quarantined, .. } = &self.groups[group];
        let is_mapped = oracle.expected(at) != Expected::Nothing;
        let is_apart = *quarantined || self.lacks_reserved(group)?;
        if is_bridge || is_claimed || is_apart || is_mapped || hardware.uses_ats() {
            return Ok(());
        }
        self.pump();
        let before = self.driven.standing(address).1;
        // What firmware reserved memory for does so anyway.
        let is_master = hardware.is_bus_master();
        self.driven.enable(address);
        let result = hardware.write(at, &[0; 8]);
        if !is_master {
            self.driven.disable(address);
        }
        self.pump();
        match result {
            Ok(()) => Err(format!("{address} reached {at:#x}, and nobody has it")),
            Err(Denied::Fault(_)) if self.driven.standing(address).1 == before => {
                Err(format!("{address} at {at:#x}: the count stays {before}"))
            }
            Err(_) => Ok(()),
        }
    }

    /// More faults than there are records, from every claimed function.
    pub(super) fn storm(&mut self, step: &Step) -> Result<(), String> {
        for _ in 0..step.a % 600 {
            self.stray_quietly();
        }
        self.pump();
        for unit in 0..self.driven.machine.config().units.len() {
            if self.driven.machine.has_pending_faults(unit) {
                return Err(format!("unit {unit} still has faults pending after the storm"));
            }
        }
        Ok(())
    }

    fn stray_quietly(&mut self) {
        let number = self.random.bits();
        let Some(index) = self.pick_claimed(number) else { return };
        let function = &self.functions[index];
        let oracle = &self.groups[function.group].oracle;
        let address = self.random.below(1 << function.address_bits) & !7;
        if oracle.expected(address) == Expected::Nothing {
            // Blocked or not is what the checks after the step look at.
            let _ = function.hardware.write(address, &[0; 8]);
        }
    }
}
