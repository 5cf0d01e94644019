//! Hands the linker script to the linker, and the programs for ring 3 to the compiler.

use std::{env, fmt::Write, fs, path::Path};

/// The folder that xtask built the programs in; its files are those. Without it, as in a check, there are none.
const PROGRAMS: &str = "SLUICE_PROGRAMS";

fn main() {
    println!("cargo:rerun-if-changed=kernel.ld");
    // Only the bare-metal image has a layout of its own; a check of the crate for the host links nothing.
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none")
        && let Ok(manifest) = env::var("CARGO_MANIFEST_DIR")
    {
        let script = Path::new(&manifest).join("kernel.ld");
        println!("cargo:rustc-link-arg-bins=-T{}", script.display());
    }
    write_programs();
}

/// Writes the list that `src/programs.rs` includes.
fn write_programs() {
    println!("cargo:rerun-if-env-changed={PROGRAMS}");
    let mut files = Vec::new();
    if let Ok(folder) = env::var(PROGRAMS) {
        println!("cargo:rerun-if-changed={folder}");
        let entries = fs::read_dir(&folder).expect("xtask made the folder of programs");
        files.extend(entries.map(|entry| entry.expect("the folder can be read").path()));
        files.sort();
    }
    let mut list = String::from("/// All of them, by name.\npub static FILES: &[File] = &[\n");
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
        let name = file.file_name().unwrap_or_default();
        writeln!(list, "    File {{ name: {name:?}, bytes: include_bytes!({file:?}) }},")
            .expect("it is a string");
    }
    list.push_str("];\n");
    let out = env::var("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&out).join("programs.rs"), list).expect("cargo made the folder");
}
