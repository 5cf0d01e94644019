//! The DMAR table that a machine's firmware shows.

use crate::config::{FunctionKind, MachineConfig};

const INCLUDE_PCI_ALL: u8 = 1;

impl MachineConfig {
    /// The table, checksum included.
    #[must_use]
    pub fn dmar_table(&self) -> Vec<u8> {
        let mut table = header(self.host_address_bits, self.dmar_flags);
        for index in 0..self.units.len() {
            table.extend(self.drhd(index));
        }
        for reserved in &self.reserved {
            let mut body = vec![0, 0];
            body.extend(reserved.function.segment.to_le_bytes());
            body.extend(reserved.base.to_le_bytes());
            body.extend(reserved.limit.to_le_bytes());
            body.extend(self.scope_to(reserved.function));
            table.extend(structure(1, &body));
        }
        table.extend(self.atsrs());
        let length = table.len() as u32;
        table[4..8].copy_from_slice(&length.to_le_bytes());
        table[9] = table.iter().fold(0_u8, |sum, &byte| sum.wrapping_sub(byte));
        table
    }

    /// Whether unit `index` takes all functions of its segment that no other unit names.
    fn includes_all(&self, index: usize) -> bool {
        let segment = self.units[index].segment;
        let last = self.units.iter().rposition(|unit| unit.segment == segment) == Some(index);
        last && self.seed >> (index % 64) & 1 != 0
    }

    fn drhd(&self, index: usize) -> Vec<u8> {
        let unit = &self.units[index];
        let all = self.includes_all(index);
        // Bits 3:0 of the size: 2^N pages of registers. Real tables have 0 there, however large the set is.
        let mut body = vec![if all { INCLUDE_PCI_ALL } else { 0 }, 0];
        body.extend(unit.segment.to_le_bytes());
        body.extend(unit.base.to_le_bytes());
        for ioapic in self.ioapics.iter().filter(|ioapic| ioapic.unit == index) {
            let (bus, devfn) = ((ioapic.source >> 8) as u8, ioapic.source as u8);
            body.extend(scope(3, ioapic.id, bus, &[(devfn >> 3, devfn & 7)]));
        }
        for hpet in self.hpets.iter().filter(|hpet| hpet.unit == index) {
            let (bus, devfn) = ((hpet.source >> 8) as u8, hpet.source as u8);
            body.extend(scope(4, hpet.id, bus, &[(devfn >> 3, devfn & 7)]));
        }
        let named = self.functions.iter().filter(|f| !all && f.unit == index && f.address.bus == 0);
        for function in named {
            let kind = if function.kind.buses().is_some() { 2 } else { 1 };
            let address = function.address;
            body.extend(scope(kind, 0, 0, &[(address.device(), address.function())]));
        }
        structure(0, &body)
    }

    /// One ATSR for each segment that has a function with ATS.
    fn atsrs(&self) -> Vec<u8> {
        const ALL_PORTS: u8 = 1;
        let mut segments: Vec<u16> =
            self.functions.iter().filter(|f| f.ats).map(|f| f.address.segment).collect();
        segments.sort_unstable();
        segments.dedup();
        let bodies = segments.into_iter().map(|segment| {
            let [low, high] = segment.to_le_bytes();
            structure(2, &[ALL_PORTS, 0, low, high])
        });
        bodies.flatten().collect()
    }

    /// The device scope of a function: its path from the root bus.
    fn scope_to(&self, function: iommu::PciAddress) -> Vec<u8> {
        let mut path = vec![(function.device(), function.function())];
        if function.bus != 0 {
            let bridge = self.functions.iter().find(|f| {
                let below = |buses: (u8, u8)| (buses.0..=buses.1).contains(&function.bus);
                f.address.segment == function.segment && f.kind.buses().is_some_and(below)
            });
            let bridge = bridge.expect("a bus below some bridge");
            path.insert(0, (bridge.address.device(), bridge.address.function()));
        }
        let kind = self.functions.iter().find(|f| f.address == function).map(|f| f.kind);
        let kind = if kind.and_then(FunctionKind::buses).is_some() { 2 } else { 1 };
        scope(kind, 0, 0, &path)
    }
}

fn header(host_address_bits: u8, flags: u8) -> Vec<u8> {
    let mut table = b"DMAR\0\0\0\0\x01\0SLUICEVTDMODEL\0\0".to_vec();
    table.resize(36, 0);
    table.extend([host_address_bits - 1, flags]);
    table.resize(48, 0);
    table
}

fn structure(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((body.len() as u16 + 4).to_le_bytes());
    bytes.extend(body);
    bytes
}

fn scope(kind: u8, enumeration_id: u8, bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
    let mut bytes = vec![kind, 6 + 2 * path.len() as u8, 0, 0, enumeration_id, bus];
    path.iter().for_each(|&(device, function)| bytes.extend([device, function]));
    bytes
}

#[cfg(test)]
mod tests {
    use crate::config::MachineConfig;

    #[test]
    fn the_checksum_is_right_and_structures_fill_the_table() {
        for seed in 0..200 {
            let table = MachineConfig::random(seed).dmar_table();
            assert_eq!(table.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte)), 0);
            let mut at = 48;
            while at < table.len() {
                let length = usize::from(u16::from_le_bytes([table[at + 2], table[at + 3]]));
                assert!(length >= 4);
                at += length;
            }
            assert_eq!(at, table.len());
        }
    }

    #[test]
    fn a_plain_machine_names_its_functions() {
        let mut config = MachineConfig::plain(1);
        config.seed = 0;
        let table = config.dmar_table();
        assert_eq!(
            &table[48..],
            &[
                0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0, // DRHD at fed90000
                1, 8, 0, 0, 0, 0, 2, 0, // endpoint 00:02.0
            ]
        );
    }
}
