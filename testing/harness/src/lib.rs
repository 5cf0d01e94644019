//! The in-kernel test harness: a registry filled by the linker, and a runner.
//!
//! [`test!`] and [`bench!`] register a function wherever it stands, in any crate of the image. The runner sorts the
//! cases by name, so that a run can be resumed after the case that ended it, and reports each on the console and on the
//! control channel. It knows nothing of the kernel: that implements [`Machine`], ends a case that panics or exceeds
//! its deadline by [`fail_running`], and stops.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bench;
mod case;
mod context;
pub mod glob;
mod registry;
mod runner;

pub use bench::{BenchCase, Bencher, run_benches};
pub use case::{DEFAULT_DEADLINE_MS, Failure, TestCase};
pub use context::{Context, Machine};
pub use registry::{benches, tests};
pub use runner::{Selection, Totals, fail_running, run_tests, running};
