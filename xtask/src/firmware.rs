//! ACPI tables of our own, for what QEMU's never say: memory that firmware reserves for a device (RMRR).
//!
//! QEMU hands its tables to the guest's firmware as files, with a script that says where they go and what in them has
//! to be adjusted. With `acpi=off` it has none, and takes ours.

use std::ffi::OsString;
use std::path::Path;
use std::{fs, io};

use iommu::dmar::builder::{ScopeBytes, TableBytes};

/// Memory that firmware keeps for itself below 1 MiB: the memory map has it as reserved.
const FIRMWARES: (u64, u64) = (0xf_0000, 0xf_ffff);
/// A page in the middle of the guest's memory.
const KERNELS: (u64, u64) = (0x1000_0000, 0x1000_0fff);
/// Device and function that both are reserved for: the `edu` that nobody claims.
const FUNCTION: (u8, u8) = (6, 0);

const UNIT: u64 = 0xfed9_0000;
const UNIT_BITS: u8 = 48;
const CONFIGURATION: u64 = 0xb000_0000;
const LOCAL_APICS: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// Bus of the I/O APIC's requester id.
const IO_APIC_BUS: u8 = 0xff;

const TABLES: &str = "etc/acpi/tables";
const ROOT: &str = "etc/acpi/rsdp";
const SCRIPT: &str = "etc/table-loader";
const HEADER_BYTES: usize = 36;

/// Writes the files into `folder`.
pub fn write(folder: &Path) -> io::Result<()> {
    files().into_iter().try_for_each(|(name, bytes)| fs::write(folder.join(file_name(name)), bytes))
}

/// QEMU's arguments that pass the files in `folder` on.
pub fn arguments(folder: &Path) -> Vec<OsString> {
    let argument = |(name, _)| {
        let path = folder.join(file_name(name));
        format!("name={name},file={}", path.to_string_lossy().replace(',', ",,"))
    };
    files().map(argument).into_iter().flat_map(|argument| ["-fw_cfg".into(), argument.into()]).collect()
}

fn file_name(name: &str) -> String {
    name.replace('/', "-")
}

fn files() -> [(&'static str, Vec<u8>); 3] {
    let (mut tables, mut places) = (Vec::new(), Vec::new());
    for table in [interrupts(), configuration(), remapping()] {
        places.push(tables.len() as u32);
        tables.extend(table);
    }
    let list: Vec<u8> = places.iter().flat_map(|place| place.to_le_bytes()).collect();
    let root_table = table(b"RSDT", &list);
    let at = tables.len() as u32;
    let root_table_bytes = root_table.len() as u32;
    tables.extend(root_table);

    // Places in the file are what its addresses are added to.
    let mut script = vec![allocate(ROOT, 16, Zone::Segment), allocate(TABLES, 64, Zone::High)];
    let entries = (0..places.len()).map(|index| at + (HEADER_BYTES + 4 * index) as u32);
    script.extend(entries.map(|entry| add_address(TABLES, entry)));
    script.push(add_address(ROOT, ROOT_TABLE_AT));
    script.push(add_checksum(TABLES, at + 9, at, root_table_bytes));
    script.push(add_checksum(ROOT, 8, 0, ROOT_BYTES));
    [(TABLES, tables), (ROOT, root(at)), (SCRIPT, script.concat())]
}

/// Length of a root pointer of revision 0, and where in it the root table's address is.
const ROOT_BYTES: u32 = 20;
const ROOT_TABLE_AT: u32 = 16;

fn root(root_table: u32) -> Vec<u8> {
    [b"RSD PTR ".as_slice(), &[0], b"SLUICE", &[0], &root_table.to_le_bytes()].concat()
}

/// A table with its header and checksum.
fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let bytes = (HEADER_BYTES + body.len()) as u32;
    let header = [
        signature.as_slice(),
        &bytes.to_le_bytes(),
        &[1, 0],
        b"SLUICE",
        b"RESERVED",
        &1_u32.to_le_bytes(),
        b"SLUI",
        &1_u32.to_le_bytes(),
    ];
    let mut table = header.concat();
    table.extend(body);
    table[9] = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg();
    table
}

/// MADT: one CPU, one I/O APIC.
fn interrupts() -> Vec<u8> {
    let cpu = [0, 8, 0, 0, 1, 0, 0, 0];
    let io_apic = [[1, 12, 0, 0], IO_APIC.to_le_bytes(), [0; 4]].concat();
    table(b"APIC", &[LOCAL_APICS.to_le_bytes().as_slice(), &1_u32.to_le_bytes(), &cpu, &io_apic].concat())
}

/// MCFG: all buses of segment 0.
fn configuration() -> Vec<u8> {
    table(b"MCFG", &[[0; 8].as_slice(), &CONFIGURATION.to_le_bytes(), &[0, 0, 0, 0xff, 0, 0, 0, 0]].concat())
}

/// DMAR: one unit for everything, and what is reserved.
fn remapping() -> Vec<u8> {
    let function = || [ScopeBytes::endpoint(0, &[FUNCTION])];
    TableBytes::new()
        .byte(HEADER_BYTES, UNIT_BITS - 1)
        .drhd(UNIT, 0, true, &[ScopeBytes::io_apic(0, IO_APIC_BUS, (0, 0))])
        .rmrr(FIRMWARES.0, FIRMWARES.1, 0, &function())
        .rmrr(KERNELS.0, KERNELS.1, 0, &function())
        .finish()
}

/// Where firmware puts a file.
#[derive(Clone, Copy)]
enum Zone {
    High = 1,
    /// Where root pointers are looked for.
    Segment = 2,
}

/// A command of the script: 128 bytes, the number of the command first.
fn command(number: u32, parts: &[&[u8]]) -> Vec<u8> {
    const BYTES: usize = 128;
    let mut command = [number.to_le_bytes().as_slice(), &parts.concat()].concat();
    command.resize(BYTES, 0);
    command
}

/// The name of a file as commands have it.
fn name(file: &str) -> [u8; 56] {
    let mut name = [0; 56];
    name[..file.len()].copy_from_slice(file.as_bytes());
    name
}

fn allocate(file: &str, alignment: u32, zone: Zone) -> Vec<u8> {
    command(1, &[&name(file), &alignment.to_le_bytes(), &[zone as u8]])
}

/// Adds the address of the tables to the four bytes at `offset` of `file`.
fn add_address(file: &str, offset: u32) -> Vec<u8> {
    command(2, &[&name(file), &name(TABLES), &offset.to_le_bytes(), &[4]])
}

/// Makes the byte at `offset` the checksum of the `bytes` bytes from `start` on.
fn add_checksum(file: &str, offset: u32, start: u32, bytes: u32) -> Vec<u8> {
    command(3, &[&name(file), &offset.to_le_bytes(), &start.to_le_bytes(), &bytes.to_le_bytes()])
}

#[cfg(test)]
mod tests {
    use iommu::dmar::Dmar;

    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn what_is_reserved_is_in_a_good_table() {
        let table = remapping();
        let dmar = Dmar::parse(&table).unwrap();
        let mut warnings = 0;
        dmar.warnings(|_| warnings += 1);
        assert_eq!(warnings, 0);
        let regions: Vec<_> = dmar.reserved_regions().map(|region| (region.first, region.last)).collect();
        assert_eq!(regions, [FIRMWARES, KERNELS]);
    }

    #[test]
    fn each_table_adds_up_and_the_root_table_names_each() {
        let [(_, tables), (_, root), (_, script)] = files();
        assert_eq!((root.len(), script.len() % 128), (ROOT_BYTES as usize, 0));
        let u32_at = |at: usize| u32::from_le_bytes(tables[at..at + 4].try_into().unwrap()) as usize;
        let at = u32::from_le_bytes(root[16..20].try_into().unwrap()) as usize;
        let places = (at + HEADER_BYTES..at + u32_at(at + 4)).step_by(4).map(u32_at);
        let named = |place: usize| {
            assert_eq!(sum(&tables[place..place + u32_at(place + 4)]), 0);
            &tables[place..place + 4]
        };
        let names: Vec<_> = places.map(named).collect();
        assert_eq!(names, [b"APIC", b"MCFG", b"DMAR"]);
    }
}
