//! Random lives of machines with several owners: domains are created and destroyed, groups are assigned, taken out, put
//! in quarantine and released, memory is mapped by a domain's handle and by a device's, granted to another domain,
//! revoked, unmapped and dropped, in any order. After each step every device is asked for every address that means
//! something to anybody, and what it reaches is compared with what the domain that its group is in has mapped.
//!
//! `SLUICE_OWNERS_SEED=n` runs the one life that seed `n` stands for.

mod life;
mod pieces;

use iommu::{
    Options,
    options::{Flush, Quarantine},
};
use life::Life;
use vtd_model::{MachineConfig, Random};

const LIVES: u64 = 24;
const STEPS: usize = 200;

/// Lives one life twice on one machine: what is left of table pages after the second is what was left after the first.
fn live(seed: u64) -> Life {
    let config = MachineConfig::random(seed);
    let mut random = Random::new(seed ^ 0x03e7_5a1d);
    let options = Options {
        superpages: !random.once_in(4),
        flush: random.pick(&[Flush::Strict, Flush::Deferred]),
        quarantine: random.pick(&[Quarantine::Basic, Quarantine::ScratchPage]),
        scalable: random.once_in(2),
        ..Options::default()
    };
    let mut life = Life::begin(config, options);
    let mut left = None;
    for round in 0..2 {
        let mut steps = Random::new(seed);
        for number in 0..STEPS {
            life.step(&mut steps, &format!("SLUICE_OWNERS_SEED={seed}, round {round}, step {number}"));
        }
        let pages = life.end(&format!("SLUICE_OWNERS_SEED={seed}, end of round {round}"));
        assert_eq!(*left.get_or_insert(pages), pages, "SLUICE_OWNERS_SEED={seed}: table pages are lost");
    }
    life
}

#[test]
fn a_device_reaches_what_its_owner_maps_and_never_more() {
    if let Some(seed) = std::env::var("SLUICE_OWNERS_SEED").ok().map(|seed| seed.parse().expect("a number")) {
        live(seed);
        return;
    }
    let mut total = life::Seen::default();
    (1..=LIVES).for_each(|seed| total.add(&live(seed).seen));
    total.check();
}
