//! What a driver cannot write, because it would let a device and the CPU at the same memory: each file in
//! `compile_fail` is refused by the compiler with the message beside it.

#[test]
fn what_would_share_memory_with_a_device_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
