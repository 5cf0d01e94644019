//! Counting what a piece of code costs.

use alloc::vec::Vec;

use crate::{Context, Failure, Machine, case::short_name, glob};

/// How often a benchmark measures. Odd, so that there is a median.
const REPETITIONS: usize = 4001;

/// A registered benchmark. Made by [`bench!`](crate::bench!).
#[derive(Debug)]
pub struct BenchCase {
    /// Path of the function, as the compiler knows it.
    pub path: &'static str,
    /// What the machine lacks for it; it is left out then.
    pub lacks: fn(&Context<'_>) -> Option<&'static str>,
    /// The benchmark.
    pub run: fn(&mut Bencher<'_>) -> Result<(), Failure>,
}

impl BenchCase {
    /// `suite::name`: the function and the module that it stands in.
    #[must_use]
    pub fn name(&self) -> &'static str {
        short_name(self.path)
    }
}

/// Registers a benchmark: `harness::bench! { fn name(bencher) { bencher.measure(|| work()); } }`.
///
/// The body may use `?` on any error, and measures. `lacks = FUNCTION,` after the comment says what the machine lacks
/// for it.
#[macro_export]
macro_rules! bench {
    ($(#[$attribute:meta])* fn $name:ident($bencher:ident) $body:block) => {
        $crate::bench! { $(#[$attribute])* lacks = |_| None, fn $name($bencher) $body }
    };
    ($(#[$attribute:meta])* lacks = $lacks:expr, fn $name:ident($bencher:ident) $body:block) => {
        $(#[$attribute])*
        fn $name($bencher: &mut $crate::Bencher<'_>) -> ::core::result::Result<(), $crate::Failure> {
            $body
            ::core::result::Result::Ok(())
        }

        const _: () = {
            static CASE: $crate::BenchCase = $crate::BenchCase {
                path: ::core::concat!(::core::module_path!(), "::", ::core::stringify!($name)),
                lacks: $lacks,
                run: $name,
            };
            #[used]
            #[cfg_attr(target_os = "none", unsafe(link_section = ".sluice_benches"))]
            static ENTRY: &$crate::BenchCase = &CASE;
        };
    };
}

/// What a benchmark is given.
///
/// Time is the time-stamp counter. Under QEMU with `-icount shift=0` that is the number of instructions, and the same
/// in every run; anywhere else it is only an indication.
pub struct Bencher<'a> {
    context: &'a Context<'a>,
    results: Vec<(&'static str, Vec<u64>)>,
}

impl<'a> Bencher<'a> {
    /// What tests are given.
    #[must_use]
    pub fn context(&self) -> &'a Context<'a> {
        self.context
    }

    /// Measures `work`, over and over.
    pub fn measure<R>(&mut self, mut work: impl FnMut() -> R) {
        self.measure_with(|| (), |()| work());
    }

    /// Measures `work` on what `prepare` makes, over and over. Neither `prepare` nor dropping the result counts.
    pub fn measure_with<T, R>(&mut self, prepare: impl FnMut() -> T, work: impl FnMut(T) -> R) {
        self.measure_between(prepare, work, drop);
    }

    /// Measures `work` on what `prepare` makes, over and over; `undo` ends what it began. Neither `prepare` nor `undo`
    /// counts.
    pub fn measure_between<T, R>(
        &mut self,
        mut prepare: impl FnMut() -> T,
        mut work: impl FnMut(T) -> R,
        mut undo: impl FnMut(R),
    ) {
        let overhead = (0..REPETITIONS).map(|_| ticks_of(|| ()).0).min().unwrap_or(0);
        let mut samples = Vec::with_capacity(REPETITIONS);
        for _ in 0..REPETITIONS {
            let input = prepare();
            let (ticks, result) = ticks_of(|| work(input));
            undo(result);
            samples.push(ticks.saturating_sub(overhead));
        }
        self.report("instructions", samples);
    }

    /// Reports what the benchmark has measured by itself, in a unit of one word.
    pub fn report(&mut self, unit: &'static str, samples: Vec<u64>) {
        self.results.push((unit, samples));
    }
}

#[inline(never)]
fn ticks_of<R>(work: impl FnOnce() -> R) -> (u64, R) {
    let start = time_stamp();
    let result = core::hint::black_box(work());
    (time_stamp() - start, result)
}

fn time_stamp() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 CPU has the counter.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    0
}

/// Runs the benchmarks that `pattern` matches, sorted by name, and reports each. Returns how many failed.
pub fn run_benches(cases: &[&'static BenchCase], pattern: &str, context: &Context<'_>) -> usize {
    let machine = context.machine;
    let mut selected: Vec<_> = cases.iter().filter(|case| glob::matches(pattern, case.name())).collect();
    selected.sort_unstable_by_key(|case| case.name());
    let mut failed = 0;
    for case in selected {
        let name = case.name();
        if (case.lacks)(context).is_some() {
            continue;
        }
        let mut bencher = Bencher { context, results: Vec::new() };
        let outcome = (case.run)(&mut bencher);
        let measured = bencher.results.iter().filter(|(_, samples)| !samples.is_empty()).count();
        match outcome {
            Ok(()) if measured > 0 => {
                for (unit, samples) in &mut bencher.results {
                    report(machine, name, unit, samples);
                }
            }
            outcome => {
                let failure = outcome.err().unwrap_or_else(|| Failure::new("it measured nothing"));
                machine.print(format_args!("bench {name} FAILED ({failure})\n"));
                failed += 1;
            }
        }
    }
    failed
}

fn report(machine: &dyn Machine, name: &str, unit: &str, samples: &mut [u64]) {
    samples.sort_unstable();
    let (Some(min), Some(median), Some(max)) =
        (samples.first(), samples.get(samples.len() / 2), samples.last())
    else {
        return;
    };
    machine.print(format_args!("bench {name}: min {min}, median {median}, max {max} {unit}\n"));
    machine.send(format_args!("bench {name} {min} {median} {max} {unit}"));
}
