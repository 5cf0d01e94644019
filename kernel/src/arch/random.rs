//! As random as the machine can make it.

use x86::{cpuid::CpuId, random::rdrand64};

use super::clock;

/// How often RDRAND is asked: it may have nothing for a moment.
const ATTEMPTS: usize = 10;

/// A number that differs from boot to boot: of RDRAND, or, on a CPU without it, of the time-stamp counter, which
/// somebody who knows when the machine was started can guess within limits.
pub fn seed() -> u64 {
    let has_rdrand = CpuId::new().get_feature_info().is_some_and(|features| features.has_rdrand());
    let mut seed = 0;
    // SAFETY: the CPU has the instruction.
    let is_random = has_rdrand && (0..ATTEMPTS).any(|_| unsafe { rdrand64(&mut seed) });
    // Spread over all bits either way.
    (seed ^ if is_random { 0 } else { clock::read_tsc() }).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
