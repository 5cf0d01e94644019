//! The machines that `cargo xtask test` boots. A new scenario is one more entry in the list of its theme.

mod attended;
mod cpus;
mod devices;
mod hotplug;
mod modes;
mod outside;
mod policies;
mod processes;
mod selftests;
mod topologies;
mod traffic;
mod units;

use std::sync::LazyLock;

use crate::qemu::Version;
use crate::scenario::{Need, Scenario};

const DEFAULT: Scenario = Scenario::DEFAULT;

/// A unit with scalable mode, and what of QEMU has one whose second stage can be used.
pub const SCALABLE: &str = "intremap=on,x-scalable-mode=on";
pub const SECOND_STAGE: &[Need] =
    &[Need::AtLeast(Version(10, 0)), Need::Property("intel-iommu", "x-scalable-mode")];

/// The same with first-stage tables, which are all that such a unit of QEMU has.
pub const FIRST_STAGE: &str = "intremap=on,x-scalable-mode=on,x-flts=on";
pub const FIRST: &[Need] = &[Need::AtLeast(Version(10, 0)), Need::Property("intel-iommu", "x-flts")];

/// All scenarios.
pub fn all() -> &'static [Scenario] {
    static ALL: LazyLock<Vec<Scenario>> =
        LazyLock::new(|| listed().cloned().chain(modes::scenarios()).collect());
    &ALL
}

/// Those that are written down.
fn listed() -> impl Iterator<Item = &'static Scenario> {
    THEMES.iter().copied().flatten()
}

const THEMES: &[&[Scenario]] = &[
    units::SCENARIOS,
    devices::SCENARIOS,
    processes::SCENARIOS,
    traffic::SCENARIOS,
    cpus::SCENARIOS,
    policies::SCENARIOS,
    outside::SCENARIOS,
    hotplug::SCENARIOS,
    topologies::SCENARIOS,
    attended::SCENARIOS,
    selftests::SCENARIOS,
];
