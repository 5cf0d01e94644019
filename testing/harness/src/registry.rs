//! What the linker collected.

use crate::{BenchCase, TestCase};

macro_rules! registered {
    ($(#[$doc:meta])* $name:ident: $case:ty, $start:ident, $end:ident) => {
        $(#[$doc])*
        #[cfg(target_os = "none")]
        #[must_use]
        pub fn $name() -> &'static [&'static $case] {
            unsafe extern "C" {
                static $start: u8;
                static $end: u8;
            }
            // SAFETY: the linker script puts nothing but such pointers between the two symbols.
            unsafe {
                let (start, end) = ((&raw const $start).cast::<&$case>(), (&raw const $end).cast::<&$case>());
                core::slice::from_raw_parts(start, end.offset_from_unsigned(start))
            }
        }

        $(#[$doc])*
        ///
        /// Empty on a host: only the linker script of a bare-metal image collects them.
        #[cfg(not(target_os = "none"))]
        #[must_use]
        pub fn $name() -> &'static [&'static $case] {
            &[]
        }
    };
}

registered! {
    /// All tests in the image.
    tests: TestCase, __sluice_tests_start, __sluice_tests_end
}

registered! {
    /// All benchmarks in the image.
    benches: BenchCase, __sluice_benches_start, __sluice_benches_end
}
