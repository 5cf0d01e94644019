//! Hands the linker script to the linker.

use std::{env, path::Path};

fn main() {
    println!("cargo:rerun-if-changed=kernel.ld");
    // Only the bare-metal image has a layout of its own; a check of the crate for the host links nothing.
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none")
        && let Ok(manifest) = env::var("CARGO_MANIFEST_DIR")
    {
        let script = Path::new(&manifest).join("kernel.ld");
        println!("cargo:rustc-link-arg-bins=-T{}", script.display());
    }
}
