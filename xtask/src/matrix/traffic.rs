//! Much traffic of every driver.

use super::DEFAULT;
use crate::scenario::{Drive, Expect, Nic, Scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    bulk("nvme-bulk-cpus-4-caching", Drive::Nvme, FOUR_CACHING),
    bulk("nvme-bulk-deferred-caching", Drive::Nvme, ONE_DEFERRED_CACHING),
    bulk("nvme-bulk-cpus-4-deferred", Drive::Nvme, FOUR_DEFERRED),
    bulk("virtio-bulk-cpus-4-caching", Drive::VirtioBlk, FOUR_CACHING),
    bulk("virtio-bulk-deferred-caching", Drive::VirtioBlk, ONE_DEFERRED_CACHING),
    bulk("virtio-bulk-cpus-4-deferred", Drive::VirtioBlk, FOUR_DEFERRED),
    Scenario {
        name: "network",
        about: "64 MiB fetched by each network device, and 1,000 visitors of its web server",
        ..NETWORK
    },
    Scenario { name: "network-cpus-4", about: "the same on four CPUs", cpus: "4", ..NETWORK },
    network("network-cpus-4-caching", FOUR_CACHING),
    network("network-deferred-caching", ONE_DEFERRED_CACHING),
    network("network-cpus-4-deferred", FOUR_DEFERRED),
];

const NETWORK: Scenario = Scenario {
    nics: &[Nic::Virtio, Nic::E1000e],
    tests: "network::*",
    fetch_mib: 64,
    visitors: 1000,
    expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
    ..DEFAULT
};

/// 64 MiB of random writes and reads.
const fn bulk(name: &'static str, drive: Drive, variant: Variant) -> Scenario {
    let Variant { about, cpus, iommu, flush_and_bulk: cmdline, .. } = variant;
    Scenario { name, about, cpus, iommu: Some(iommu), drive, cmdline, tests: "disk*", ..DEFAULT }
}

/// 64 MiB fetched by each network device, and 1,000 visitors.
const fn network(name: &'static str, variant: Variant) -> Scenario {
    let Variant { about, cpus, iommu, flush: cmdline, .. } = variant;
    Scenario { name, about, cpus, iommu: Some(iommu), cmdline, ..NETWORK }
}

/// What else every driver is run with: together with one CPU and strict flushes without caching mode, any two values of
/// number of CPUs, flushes and caching mode meet.
struct Variant {
    about: &'static str,
    cpus: &'static str,
    iommu: &'static str,
    flush: &'static str,
    flush_and_bulk: &'static str,
}

const FOUR_CACHING: Variant = Variant {
    about: "four CPUs, and a unit that may cache entries that are not present",
    cpus: "4",
    iommu: "intremap=on,caching-mode=on",
    flush: "iommu=strict",
    flush_and_bulk: "iommu=strict bulk=64",
};

const ONE_DEFERRED_CACHING: Variant = Variant {
    about: "deferred flushes, and a unit that may cache entries that are not present",
    cpus: "1",
    flush: "iommu=deferred",
    flush_and_bulk: "iommu=deferred bulk=64",
    ..FOUR_CACHING
};

const FOUR_DEFERRED: Variant = Variant {
    about: "four CPUs, and deferred flushes",
    cpus: "4",
    iommu: "intremap=on",
    ..ONE_DEFERRED_CACHING
};
