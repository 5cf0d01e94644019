//! Other policies than the default ones.

use super::DEFAULT;
use crate::scenario::{Expect, Scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "scratch-page",
        about: "quarantine on a scratch page",
        cmdline: "iommu=quarantine=scratch-page",
        tests: "storm::*",
        expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
        ..DEFAULT
    },
    Scenario {
        name: "reserved-memory",
        about: "firmware reserves memory for a device, and wants some of the kernel's for it too",
        reserves: true,
        tests: "*reserved*",
        expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
        ..DEFAULT
    },
    Scenario {
        name: "passthrough",
        about: "devices with a driver are trusted with all of RAM",
        cmdline: "iommu=passthrough",
        tests: "*passthrough*",
        expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
        ..DEFAULT
    },
    Scenario {
        name: "debug",
        about: "drivers are checked: the disk's does nothing wrong, and one that does is found out",
        cmdline: "iommu=debug",
        tests: "d*",
        ..DEFAULT
    },
    Scenario {
        name: "scratch-page-cpus-4",
        about: "the same on four CPUs",
        cpus: "4",
        cmdline: "iommu=quarantine=scratch-page",
        tests: "storm::*",
        expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
        ..DEFAULT
    },
];
