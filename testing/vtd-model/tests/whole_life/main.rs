//! Whole lives of random machines: units come up, functions are claimed, buffers are mapped, devices do DMA, things
//! go wrong, everything comes back. After each step every device is compared with an oracle.
//!
//! `SLUICE_LIFE_SEED=n` runs the one life that seed `n` stands for, `SLUICE_LIFE_STEPS=n` sets the number of steps of
//! the whole run (200,000 without it; `k` and `m` stand for thousands and millions). A life that fails is run again
//! with fewer and fewer steps, and the shortest list that still fails is printed with its seed.

mod check;
mod life;
mod oracle;
mod shrink;
mod step;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use iommu::{
    Options,
    options::{Flush, Quarantine},
};
use life::Life;
use step::Step;
use vtd_model::{MachineConfig, Random, become_cpu};

const DEFAULT_STEPS: u64 = 200_000;
const THREADS: u64 = 2;
/// Steps after which a long run says how far it is.
const PROGRESS_EVERY: u64 = 1_000_000;
const FIRST_SEED: u64 = 1;
/// One life in so many ends with a unit that stops working.
const DEATH_EVERY: u64 = 4;

/// Runs one life; a panic of the driver is a failure like any other.
fn live(seed: u64, steps: &[Step]) -> Result<(), String> {
    let result = catch_unwind(AssertUnwindSafe(|| {
        let config = MachineConfig::random(seed);
        let options = options_of(seed, &config);
        let mut life = Life::begin(config, options)?;
        let machine = life.machine();
        for (number, step) in steps.iter().enumerate() {
            life.run(step).map_err(|error| format!("step {number}, {step:?}: {error}"))?;
        }
        if seed.is_multiple_of(DEATH_EVERY) { life.end_by_death() } else { life.end() }?;
        // What is pinned stays so, but nothing of the driver keeps its host.
        match machine.upgrade() {
            Some(_) => Err("the driver is gone, and the machine is still held".to_owned()),
            None => Ok(()),
        }
    }));
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// The steps that belong to a seed.
fn steps_of(seed: u64) -> Vec<Step> {
    let mut random = Random::new(seed ^ 0x5eed_0f57_e950);
    let count = random.between(200, 2_000);
    (0..count).map(|_| Step::random(&mut random)).collect()
}

/// The options that belong to a seed: most units do what they can.
fn options_of(seed: u64, config: &MachineConfig) -> Options {
    // From this version on units have nothing but the queue.
    const QUEUE_ALONE: u8 = 0x60;
    let mut random = Random::new(seed ^ 0x0971_0125);
    Options {
        queued_invalidation: !random.once_in(5)
            || config.units.iter().any(|unit| unit.version >= QUEUE_ALONE),
        interrupt_remapping: !random.once_in(6),
        superpages: !random.once_in(4),
        snoop: !random.once_in(4),
        flush: random.pick(&[Flush::Strict, Flush::Deferred]),
        quarantine: random.pick(&[Quarantine::Basic, Quarantine::ScratchPage]),
        scalable: random.once_in(2),
        ..Options::default()
    }
}

/// Shortens a failed life and tells about it.
fn report(seed: u64, error: &str) -> String {
    let steps = steps_of(seed);
    let shortest = shrink::shrink(&steps, |steps| live(seed, steps).is_err());
    let last = live(seed, &shortest).err().unwrap_or_else(|| "does not fail any more".to_owned());
    format!(
        "SLUICE_LIFE_SEED={seed}: {error}\nwith {} of {} steps: {last}\n{shortest:#?}",
        shortest.len(),
        steps.len()
    )
}

fn number_from(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let (digits, scale) = match text.strip_suffix(['k', 'm']) {
        Some(digits) => (digits, if text.ends_with('k') { 1_000 } else { 1_000_000 }),
        None => (text.as_str(), 1),
    };
    Some(digits.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text} is no number")) * scale)
}

#[test]
fn every_device_reaches_exactly_what_is_mapped_for_it() {
    if let Some(seed) = number_from("SLUICE_LIFE_SEED") {
        if let Err(error) = live(seed, &steps_of(seed)) {
            panic!("{}", report(seed, &error));
        }
        return;
    }
    let wanted = number_from("SLUICE_LIFE_STEPS").unwrap_or(DEFAULT_STEPS);
    let (next, done) = (AtomicU64::new(FIRST_SEED), AtomicU64::new(0));
    let run = &|cpu: usize| -> Result<(), (u64, String)> {
        become_cpu(cpu);
        while done.load(Ordering::Relaxed) < wanted {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let steps = steps_of(seed);
            live(seed, &steps).map_err(|error| (seed, error))?;
            let (new, before) = (steps.len() as u64, done.fetch_add(steps.len() as u64, Ordering::Relaxed));
            if (before + new) / PROGRESS_EVERY != before / PROGRESS_EVERY {
                println!("{} steps, up to seed {seed}", before + new);
            }
        }
        Ok(())
    };
    let failures: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|cpu| scope.spawn(move || run(cpu as usize))).collect();
        threads.into_iter().filter_map(|thread| thread.join().expect("lives catch panics").err()).collect()
    });
    if let Some((seed, error)) = failures.first() {
        panic!("{}", report(*seed, error));
    }
    let lives = next.load(Ordering::Relaxed) - FIRST_SEED;
    println!("{} steps in {lives} lives from seed {FIRST_SEED} on", done.load(Ordering::Relaxed));
}
