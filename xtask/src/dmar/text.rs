//! A table for people.

use std::fmt::Write;

use iommu::dmar::{Drhd, Header, Rmrr, Scope, Structure};

use super::{Table, flag_names};

pub fn table(table: &Table<'_>) -> String {
    let mut text = String::new();
    put_header(&mut text, table);
    let mut unit = 0;
    for structure in table.dmar.structures() {
        let summary = summary(&structure, unit);
        put(&mut text, format_args!("\n{:#06x}  {:<4}  {summary}\n", structure.offset(), structure.kind()));
        unit += usize::from(matches!(structure, Structure::Drhd(_)));
        for scope in structure.scopes().into_iter().flatten() {
            put_scope(&mut text, &scope);
        }
    }
    if !table.warnings.is_empty() {
        put(&mut text, format_args!("\n"));
    }
    for warning in &table.warnings {
        put(&mut text, format_args!("warning: {warning}\n"));
    }
    if let Some(error) = &table.error {
        put(&mut text, format_args!("\nerror: {error}\n"));
    }
    text
}

fn put_header(text: &mut String, table: &Table<'_>) {
    let header: &Header = table.dmar.header();
    let checksum = match table.checksum_is_right() {
        Some(true) => "right",
        Some(false) => "wrong",
        None => "not known",
    };
    put(
        text,
        format_args!("DMAR revision {}, {:#x} bytes, checksum {checksum}\n", header.revision, header.length),
    );
    put(
        text,
        format_args!(
            "made by \"{}\" \"{}\" {:#x}, with \"{}\" {:#x}\n",
            header.oem_id.escape_ascii(),
            header.oem_table_id.escape_ascii(),
            header.oem_revision,
            header.creator_id.escape_ascii(),
            header.creator_revision,
        ),
    );
    let flags = flag_names(&header.flags);
    let flags = if flags.is_empty() { "none".to_owned() } else { flags.join(" ") };
    put(text, format_args!("host address width {} bits, flags: {flags}\n", header.host_address_bits));
}

/// The fields of a structure on one line. `unit` is the number of the next unit.
fn summary(structure: &Structure<'_>, unit: usize) -> String {
    match structure {
        Structure::Drhd(drhd) => unit_summary(drhd, unit),
        Structure::Rmrr(rmrr) => region_summary(rmrr),
        Structure::Atsr(atsr) => {
            let all = if atsr.all_ports { ", ALL_PORTS" } else { "" };
            format!("root ports with ATS, segment {:04x}{all}", atsr.segment)
        }
        Structure::Rhsa(rhsa) => format!("unit at {:#x} is close to domain {:#x}", rhsa.base, rhsa.proximity),
        Structure::Andd(andd) => format!("ACPI device {} is \"{}\"", andd.number, andd.name.escape_ascii()),
        Structure::Satc(satc) => {
            let required = if satc.atc_required { ", ATC_REQUIRED" } else { "" };
            format!("devices with a translation cache, segment {:04x}{required}", satc.segment)
        }
        Structure::Sidp(sidp) => format!("properties of devices, segment {:04x}", sidp.segment),
        Structure::Unknown(unknown) => format!("{:#x} bytes", unknown.bytes.len()),
    }
}

fn unit_summary(drhd: &Drhd<'_>, unit: usize) -> String {
    let all = if drhd.include_pci_all { ", INCLUDE_PCI_ALL" } else { "" };
    format!(
        "unit {unit} at {:#x}, {:#x} bytes, segment {:04x}{all}",
        drhd.base,
        drhd.register_bytes(),
        drhd.segment
    )
}

fn region_summary(rmrr: &Rmrr<'_>) -> String {
    format!("memory {:#x}-{:#x}, segment {:04x}", rmrr.first, rmrr.last, rmrr.segment)
}

fn put_scope(text: &mut String, scope: &Scope<'_>) {
    let flags = flag_names(&scope.flags).join(" ");
    let separator = if flags.is_empty() { "" } else { ": " };
    put(text, format_args!("              {scope}{separator}{flags}\n"));
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    // A string takes all that is written to it.
    let _ = text.write_fmt(line);
}
