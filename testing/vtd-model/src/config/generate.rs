//! Machines drawn at random from everything that the registers can describe.

use iommu::PciAddress;

use super::{
    FunctionConfig, FunctionKind, IoApicConfig, Leftovers, MachineConfig, ReservedMemory, UnitConfig,
};
use crate::{memory::MemoryMap, random::Random};

const GIB: u64 = 1 << 30;

impl MachineConfig {
    /// The machine that `seed` stands for.
    #[must_use]
    pub fn random(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let host_address_bits = random.pick(&[36, 39, 42, 46, 52]);
        let segments = random.pick(&[1, 1, 1, 2, 3]);
        let unit_count = usize::from(segments) + random.index(3);
        let version = random.pick(&[0x10, 0x10, 0x40, 0x50, 0x60]);
        let mut units: Vec<_> = (0..unit_count)
            .map(|index| UnitConfig::random(&mut random, index, segments, version, host_address_bits))
            .collect();
        let mut modes = Random::new(seed ^ 0x5ca1_ab1e);
        units.iter_mut().for_each(|unit| unit.draw_scalable_mode(&mut modes));
        let memory = MemoryMap::random(&mut random, host_address_bits);
        let mut functions = random_functions(&mut random, &units);
        let reserved = random_reserved(&mut random, &functions, &units, &memory);
        for function in &mut functions {
            let needs_memory = reserved.iter().any(|reserved| reserved.function == function.address);
            function.bus_master |= needs_memory || function.kind.buses().is_some();
        }
        let interrupts = units.iter().all(|unit| unit.interrupt_remapping);
        let ioapics =
            (0..u8::from(random.once_in(2))).map(|id| IoApicConfig { id, unit: 0, source: 0xf0f8 }).collect();
        Self {
            seed: random.bits(),
            host_address_bits,
            memory,
            units,
            functions,
            reserved,
            registers: Vec::new(),
            ioapics,
            hpets: Vec::new(),
            dmar_flags: u8::from(interrupts) | u8::from(interrupts && random.once_in(4)) << 1,
            queue_order: random.pick(&[0, 0, 0, 1, 3]),
            drop_once_in: random.pick(&[0, 64, 512]),
            prefetch_once_in: 8,
            evict_once_in: random.pick(&[0, 16, 64]),
            audit_once_in: 64,
            relax_ns: random.pick(&[200, 1_000, 5_000]),
        }
    }
}

impl UnitConfig {
    fn random(random: &mut Random, index: usize, segments: u16, version: u8, host_bits: u8) -> Self {
        // Every segment has a unit; the others go anywhere.
        let segment =
            if index < usize::from(segments) { index as u16 } else { random.below(segments.into()) as u16 };
        let queued = version >= 0x60 || !random.once_in(5);
        let sagaw = random.pick(&[0b0010, 0b0100, 0b0110, 0b0110, 0b1100, 0b1110, 0b1000]);
        let widest = 30 + 9 * (7 - u8::leading_zeros(sagaw) as u8);
        let page_selective = (!random.once_in(5)).then(|| random.pick(&[0, 1, 6, 9, 18, 18, 48]));
        let superpages_2m = !random.once_in(3);
        let interrupt_remapping = queued && !random.once_in(4);
        // Gone since version 4.
        let advanced_fault_log = version < 0x40 && random.once_in(3);
        let (fault_offset, fault_records, iotlb_offset) = random_offsets(random);
        Self {
            segment,
            base: 0xfe80_0000 + index as u64 * 0x1_0000,
            version,
            nd: random.pick(&[0, 0, 2, 4, 6]),
            advanced_fault_log,
            write_buffer: random.once_in(4),
            caching_mode: random.once_in(3),
            sagaw,
            mgaw: random.pick(&[widest, widest, widest - 1, widest - 3]).min(host_bits.max(39)),
            zero_length_reads: random.once_in(2),
            fault_offset,
            fault_records,
            superpages_2m,
            superpages_1g: superpages_2m && random.once_in(2),
            page_selective,
            drains_writes: !random.once_in(4),
            drains_reads: !random.once_in(4),
            esrtps: random.once_in(3),
            esirtps: random.once_in(3),
            protected_low: random.once_in(2),
            protected_high: random.once_in(2),
            coherent: random.once_in(2),
            queued,
            device_tlb: queued && !random.once_in(3),
            names_physical_function: random.once_in(2),
            interrupt_remapping,
            eim: interrupt_remapping && random.once_in(2),
            page_requests: random.once_in(3),
            pass_through: !random.once_in(4),
            snoop_control: random.once_in(2),
            scalable: false,
            scalable_second_stage: false,
            first_stage: false,
            first_stage_1g: false,
            scalable_coherent: false,
            iotlb_offset,
            interrupt_mask: random.pick(&[0, 4, 15]),
            command_ns: random.pick(&[0, 300, 20_000]),
            descriptor_ns: random.pick(&[0, 50, 1_000]),
            tail_restarts: random.once_in(2),
            leftovers: Leftovers {
                fault_log: advanced_fault_log && random.once_in(2),
                ..Leftovers::random(random, queued, interrupt_remapping)
            },
        }
    }
}

impl UnitConfig {
    /// Most units with a queue have scalable mode, and a stage or two in it.
    fn draw_scalable_mode(&mut self, random: &mut Random) {
        self.scalable = self.queued && !random.once_in(4);
        self.scalable_second_stage = self.scalable && !random.once_in(3);
        self.first_stage = self.scalable && !random.once_in(4);
        self.first_stage_1g = self.first_stage && random.once_in(2);
        self.scalable_coherent = self.scalable && random.once_in(2);
    }
}

impl Leftovers {
    fn random(random: &mut Random, queued: bool, interrupt_remapping: bool) -> Self {
        let used = random.once_in(3);
        let queue = used && queued && random.once_in(2);
        Self {
            translation: used && random.once_in(2),
            queue,
            interrupts: queue && interrupt_remapping && random.once_in(2),
            fault_log: false,
            protection: random.once_in(3),
            garbage: random.once_in(2),
        }
    }
}

/// FRO, number of records and IRO, anywhere that does not overlap other registers.
fn random_offsets(random: &mut Random) -> (u16, u16, u16) {
    // The fixed registers end at 0xe38; below 0x100 there is no room, above there is if nothing else is reported.
    const FIRST: u64 = 0x10;
    const LAST: u64 = 0x3ff;
    loop {
        let records = random.pick(&[1, 1, 2, 3, 8, 32, 255, 256]);
        let faults = random.between(FIRST, LAST);
        let iotlb = random.between(FIRST, LAST);
        if iotlb < faults || iotlb >= faults + records {
            return (faults as u16, records as u16, iotlb as u16);
        }
    }
}

impl MemoryMap {
    fn random(random: &mut Random, host_address_bits: u8) -> Self {
        let slots = 1 << (host_address_bits - 30);
        // Six slots of 1 GiB above 4 GiB; now and then the very last ones.
        let first = if random.once_in(3) { slots - 6 } else { random.between(4, slots - 6) };
        let tables = if random.once_in(2) { 0x1000_0000 } else { (first + 4) * GIB };
        Self {
            tables,
            table_pages: 4096,
            firmware: 0x7000_0000,
            firmware_bytes: 256 * 4096,
            buffers: first * GIB,
            buffer_bytes: 4 << 30,
            foreign: (first + 5) * GIB,
        }
    }
}

/// A few functions for each segment, on bus 0, behind a root port, and behind a conventional bridge.
fn random_functions(random: &mut Random, units: &[UnitConfig]) -> Vec<FunctionConfig> {
    let mut functions = Vec::new();
    let segments = units.iter().map(|unit| unit.segment).max().unwrap_or(0);
    for segment in 0..=segments {
        let behind: Vec<usize> = (0..units.len()).filter(|&index| units[index].segment == segment).collect();
        for device in 2..3 + random.below(3) as u8 {
            let unit = random.pick(&behind);
            let mut endpoint =
                FunctionConfig::endpoint(PciAddress::from_devfn(segment, 0, device << 3), unit);
            endpoint.ats = units[unit].device_tlb && random.once_in(2);
            functions.push(endpoint);
        }
        if random.once_in(3) {
            // Two functions of one device, maybe behind different units, which nothing keeps apart.
            let (one, other) = (random.pick(&behind), random.pick(&behind));
            let share_a_width = units[one].sagaw & units[other].sagaw != 0;
            for (function, unit) in [one, if share_a_width { other } else { one }].into_iter().enumerate() {
                let address = PciAddress::from_devfn(segment, 0, (8 << 3) | function as u8);
                functions.push(FunctionConfig::endpoint(address, unit));
            }
        }
        if random.once_in(2) {
            let kind = FunctionKind::RootPort { secondary: 1, subordinate: 1 };
            push_bridge(&mut functions, segment, 0x1c << 3, kind, random.pick(&behind));
            let unit = functions.last().map_or(0, |bridge| bridge.unit);
            let mut below = FunctionConfig::endpoint(PciAddress::from_devfn(segment, 1, 0), unit);
            below.ats = units[unit].device_tlb && random.once_in(2);
            let virtual_functions = if below.ats { random.below(3) as u8 } else { 0 };
            let physical = Some(below.address);
            functions.push(below.clone());
            for devfn in 1..=virtual_functions {
                let address = PciAddress::from_devfn(segment, 1, devfn);
                let ats = !random.once_in(4);
                functions.push(FunctionConfig { ats, physical, ..FunctionConfig::endpoint(address, unit) });
            }
        }
        if random.once_in(3) {
            let kind = FunctionKind::PciBridge { secondary: 2, subordinate: 2 };
            push_bridge(&mut functions, segment, 0x1d << 3, kind, random.pick(&behind));
            let unit = functions.last().map_or(0, |bridge| bridge.unit);
            for device in 0..2 {
                let address = PciAddress::from_devfn(segment, 2, device << 3);
                let below = FunctionConfig::endpoint(address, unit);
                // The bridge puts in its own id: the secondary bus, function 0.
                functions.push(FunctionConfig {
                    kind: FunctionKind::Conventional,
                    requester: 0x200,
                    ..below
                });
            }
        }
    }
    for function in &mut functions {
        function.bus_master = random.once_in(3);
        function.resets = !random.once_in(4);
        function.ats_queue_depth = if function.physical.is_none() { random.below(32) as u8 } else { 0 };
    }
    functions
}

fn push_bridge(
    functions: &mut Vec<FunctionConfig>,
    segment: u16,
    devfn: u8,
    kind: FunctionKind,
    unit: usize,
) {
    let endpoint = FunctionConfig::endpoint(PciAddress::from_devfn(segment, 0, devfn), unit);
    functions.push(FunctionConfig { kind, resets: false, ..endpoint });
}

/// Reserved memory for some endpoints, in the upper half of the firmware's memory.
fn random_reserved(
    random: &mut Random,
    functions: &[FunctionConfig],
    units: &[UnitConfig],
    memory: &MemoryMap,
) -> Vec<ReservedMemory> {
    let endpoints = functions.iter().filter(|f| f.kind == FunctionKind::Endpoint && f.physical.is_none());
    let mut base = memory.firmware + memory.firmware_bytes as u64 / 2;
    let mut reserved = Vec::new();
    for function in endpoints {
        if !random.once_in(4) || units[function.unit].mgaw < 32 {
            continue;
        }
        let pages = random.between(1, 4);
        reserved.push(ReservedMemory { function: function.address, base, limit: base + pages * 4096 - 1 });
        base += (pages + random.below(3)) * 4096;
    }
    reserved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_machines_are_possible_machines() {
        for seed in 0..2000 {
            let machine = MachineConfig::random(seed);
            let limit = 1_u64 << machine.host_address_bits;
            assert!(machine.memory.foreign + GIB <= limit, "seed {seed}");
            assert!(machine.memory.tables + machine.memory.table_pages as u64 * 4096 <= limit);
            for unit in &machine.units {
                assert_ne!(unit.largest_width(), 0, "seed {seed}");
                assert!(unit.mgaw >= 36 && unit.mgaw <= 57, "seed {seed}: {}", unit.mgaw);
                assert!(!unit.interrupt_remapping || unit.queued);
                assert!(unit.queued || unit.version < 0x60);
            }
            assert!(machine.functions.iter().all(|f| machine.units[f.unit].segment == f.address.segment));
            assert!(machine.reserved.iter().all(|r| r.limit < machine.memory.firmware + (256 * 4096)));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_machine() {
        let text = |seed| format!("{:?}", MachineConfig::random(seed));
        assert_eq!(text(5), text(5));
        assert_ne!(text(5), text(6));
    }
}
