//! Writes the seeds that are built rather than found: `cargo run --example seeds`, in this folder.

use std::{fs, io, path::Path};

use iommu::dmar::builder::{ScopeBytes, TableBytes};

fn main() -> io::Result<()> {
    for (name, table) in tables() {
        write("dmar", name, &table)?;
        // Two functions behind a root port, the third a bridge: see `function` in the target.
        let functions =
            [[0, 0x18, 0, 1, 2, 0x9d, 0, 0], [1, 0, 7, 0, 0, 0x80, 0, 0], [1, 8, 3, 2, 2, 0, 0, 0x18]];
        let mut bytes = vec![functions.len() as u8];
        bytes.extend(functions.as_flattened());
        bytes.extend(&table);
        write("topology", name, &bytes)?;
    }
    for (name, bits) in [
        ("global", 0x0012_u128),
        ("page", 0x1234_5000 << 64 | 0x0001_0032),
        ("wait", 0x7000 << 64 | 7 << 32 | 0x25),
        ("context", 0x0100_0001_0031),
        ("device_tlb", (0x1f_f000 | 1) << 64 | 0x0100_0000_0003),
        ("interrupt", 0x0005_0000_0014),
    ] {
        write("descriptor", name, &bits.to_le_bytes())?;
    }
    for (name, reason) in [("read", 6_u128), ("interrupt", 0x22), ("scalable", 0x71)] {
        let bits: u128 = 3 << 126 | reason << 96 | 0x0308 << 64 | 0xfee0_0000;
        let mut bytes = bits.to_le_bytes().to_vec();
        bytes.extend([0, 0]);
        write("fault_record", name, &bytes)?;
    }
    let mut registers = 0x10_u32.to_le_bytes().to_vec();
    registers.extend(0x00d2_008c_222f_0606_u64.to_le_bytes());
    registers.extend(0x00f0_0f4a_u64.to_le_bytes());
    write("capability", "emulated", &registers)
}

fn write(target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), bytes)
}

/// A table of each kind: a laptop's, a server's, one with every structure, and some that are wrong.
fn tables() -> Vec<(&'static str, Vec<u8>)> {
    let graphics = [ScopeBytes::endpoint(0, &[(2, 0)])];
    let behind = [ScopeBytes::bridge(0, &[(3, 0)]), ScopeBytes::endpoint(0, &[(3, 0), (0, 0)])];
    let laptop = TableBytes::new()
        .drhd(0xfed9_0000, 0, false, &graphics)
        .drhd(
            0xfed9_1000,
            0,
            true,
            &[ScopeBytes::io_apic(2, 0, (0x1e, 7)), ScopeBytes::hpet(0, 0, (0x1e, 6))],
        )
        .rmrr(0x3d80_0000, 0x3fff_ffff, 0, &graphics);
    let server = TableBytes::new()
        .drhd_with_size(0xfbff_c000, 1, 0, false, &behind)
        .drhd(0xf1ff_c000, 1, true, &[])
        .atsr(0, false, &behind[..1])
        .rhsa(0xfbff_c000, 0)
        .rhsa(0xf1ff_c000, 1);
    let everything = laptop
        .clone()
        .atsr(0, true, &[])
        .rhsa(0xfed9_1000, 0)
        .andd(1, b"\\_SB.PCI0.I2C0\0")
        .satc(0, true, &graphics)
        .sidp(0, &[ScopeBytes::acpi(1, 0, (0x15, 0)).with_byte(2, 3)])
        .structure(0x40, &[1, 2, 3, 4], &[]);
    vec![
        ("laptop", laptop.clone().finish()),
        ("server", server.finish()),
        ("everything", everything.clone().finish()),
        ("zero_length", laptop.clone().raw(&[0; 4]).finish()),
        ("trailing", laptop.clone().raw(&[0xff; 3]).finish()),
        ("cut_short", everything.finish_with_length(0x400)),
        (
            "bad_scope",
            laptop.drhd(0x1000, 0, false, &[ScopeBytes::endpoint(0, &[(2, 0)]).with_byte(1, 7)]).finish(),
        ),
    ]
}
