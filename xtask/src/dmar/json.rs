//! A table for programs. Addresses are strings in hexadecimal: JSON numbers do not hold 64 bits.

use iommu::dmar::{DmarError, Header, Scope, ScopeKind, Structure, Warning};
use serde_json::{Value, json};

use super::{Table, flag_names};

pub fn table(table: &Table<'_>) -> String {
    let structures: Vec<Value> = table.dmar.structures().map(|found| structure(&found)).collect();
    let warnings: Vec<Value> = table.warnings.iter().map(warning).collect();
    line(json!({
        "header": header(table.dmar.header(), table.checksum_is_right()),
        "structures": structures,
        "warnings": warnings,
        "error": table.error.as_ref().map(problem),
    }))
}

/// Of a table whose header cannot be read.
pub fn error(error: &DmarError) -> String {
    line(json!({ "header": null, "structures": [], "warnings": [], "error": problem(error) }))
}

fn line(value: Value) -> String {
    format!("{value:#}\n")
}

fn header(header: &Header, checksum_is_right: Option<bool>) -> Value {
    json!({
        "length": header.length,
        "revision": header.revision,
        "checksum": header.checksum,
        "checksum_ok": checksum_is_right,
        "oem_id": header.oem_id.escape_ascii().to_string(),
        "oem_table_id": header.oem_table_id.escape_ascii().to_string(),
        "oem_revision": header.oem_revision,
        "creator_id": header.creator_id.escape_ascii().to_string(),
        "creator_revision": header.creator_revision,
        "host_address_bits": header.host_address_bits,
        "flags": flag_names(&header.flags),
    })
}

fn structure(structure: &Structure<'_>) -> Value {
    let mut object = match structure {
        Structure::Drhd(drhd) => json!({
            "type": "DRHD",
            "segment": drhd.segment,
            "include_pci_all": drhd.include_pci_all,
            "base": address(drhd.base),
            "register_bytes": drhd.register_bytes(),
        }),
        Structure::Rmrr(rmrr) => json!({
            "type": "RMRR",
            "segment": rmrr.segment,
            "first": address(rmrr.first),
            "last": address(rmrr.last),
        }),
        Structure::Atsr(atsr) => {
            json!({ "type": "ATSR", "segment": atsr.segment, "all_ports": atsr.all_ports })
        }
        Structure::Rhsa(rhsa) => {
            json!({ "type": "RHSA", "base": address(rhsa.base), "proximity": rhsa.proximity })
        }
        Structure::Andd(andd) => json!({
            "type": "ANDD",
            "number": andd.number,
            "name": andd.name.escape_ascii().to_string(),
        }),
        Structure::Satc(satc) => {
            json!({ "type": "SATC", "segment": satc.segment, "atc_required": satc.atc_required })
        }
        Structure::Sidp(sidp) => json!({ "type": "SIDP", "segment": sidp.segment }),
        Structure::Unknown(unknown) => {
            json!({ "type": unknown.kind, "length": unknown.bytes.len() })
        }
    };
    object["offset"] = structure.offset().into();
    if let Some(scopes) = structure.scopes() {
        object["scopes"] = scopes.map(|found| scope(&found)).collect();
    }
    object
}

fn scope(scope: &Scope<'_>) -> Value {
    let (kind, id) = match scope.kind {
        ScopeKind::Endpoint => (json!("endpoint"), None),
        ScopeKind::Bridge => (json!("bridge"), None),
        ScopeKind::IoApic { id } => (json!("io_apic"), Some(id)),
        ScopeKind::Hpet { id } => (json!("hpet"), Some(id)),
        ScopeKind::Acpi { number } => (json!("acpi"), Some(number)),
        ScopeKind::Unknown(kind) => (json!(kind), None),
    };
    let path: Vec<Value> =
        scope.path.hops().map(|hop| json!({ "device": hop.device, "function": hop.function })).collect();
    json!({
        "type": kind,
        "id": id,
        "offset": scope.offset,
        "flags": flag_names(&scope.flags),
        "start_bus": scope.start_bus,
        "path": path,
    })
}

fn warning(warning: &Warning) -> Value {
    json!({ "offset": warning.offset(), "message": warning.to_string() })
}

fn problem(error: &DmarError) -> Value {
    json!({ "offset": error.offset(), "message": error.to_string() })
}

fn address(address: u64) -> String {
    format!("{address:#x}")
}
