//! Makes this a build for `loom`: tests whose path has `interleavings` in it run, and no others can.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cfg=loom");
}
