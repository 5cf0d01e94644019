//! The suites that have machines of their own, on units in scalable mode with tables of either stage.

use super::{FIRST, FIRST_STAGE, SCALABLE, SECOND_STAGE, listed};
use crate::scenario::{Need, Scenario};

/// The scenario of the matrix that it is like, its names with tables of the second stage and of the first, and what the
/// kernel is told.
struct Suite {
    like: &'static str,
    names: [&'static str; 2],
    cmdline: &'static str,
}

const fn suite(like: &'static str, names: [&'static str; 2], cmdline: &'static str) -> Suite {
    Suite { like, names, cmdline }
}

const SUITES: &[Suite] = &[
    suite("hotplug", ["scalable-hotplug", "first-stage-hotplug"], "plugs iommu=scalable"),
    suite(
        "hotplug-bridges",
        ["scalable-hotplug-bridges", "first-stage-hotplug-bridges"],
        "plugs iommu=scalable",
    ),
    suite("topologies", ["scalable-topologies", "first-stage-topologies"], "iommu=scalable"),
    suite(
        "virtual-functions",
        ["scalable-virtual-functions", "first-stage-virtual-functions"],
        "plugs iommu=scalable",
    ),
    suite(
        "virtual-disks",
        ["scalable-virtual-disks", "first-stage-virtual-disks"],
        "disk=process kills=3 iommu=scalable",
    ),
    suite(
        "served-disk-cpus-4",
        ["scalable-served-disk", "first-stage-served-disk"],
        "disk=process kills=5 iommu=scalable",
    ),
    Suite { like: "network", names: ["scalable-network", "first-stage-network"], cmdline: "iommu=scalable" },
    suite("nvme-bulk", ["scalable-nvme-bulk", "first-stage-nvme-bulk"], "bulk=64 iommu=scalable"),
    suite("virtio-bulk", ["scalable-virtio-bulk", "first-stage-virtio-bulk"], "bulk=64 iommu=scalable"),
    Suite { like: "debug", names: ["scalable-debug", "first-stage-debug"], cmdline: "iommu=debug,scalable" },
    suite("passthrough", ["scalable-passthrough", "first-stage-passthrough"], "iommu=passthrough,scalable"),
    suite("reserved-memory", ["scalable-reserved-memory", "first-stage-reserved-memory"], "iommu=scalable"),
    suite(
        "scratch-page",
        ["scalable-scratch-page", "first-stage-scratch-page"],
        "iommu=quarantine=scratch-page,scalable",
    ),
    suite("displays", ["scalable-displays", "first-stage-displays"], "plugs iommu=scalable"),
];

/// What a unit of QEMU's is told to be, for tables of the second stage and of the first, and what it takes.
const MODES: [(&str, &[Need]); 2] = [(SCALABLE, SECOND_STAGE), (FIRST_STAGE, FIRST)];

/// All of them. What their models need besides, every QEMU has that has the mode.
pub(super) fn scenarios() -> impl Iterator<Item = Scenario> {
    let find = |like| listed().find(|scenario| scenario.name == like);
    let bases = SUITES.iter().filter_map(move |suite| Some((suite, find(suite.like)?)));
    bases.flat_map(|(suite, base)| {
        suite.names.into_iter().zip(MODES).map(|(name, (iommu, needs))| Scenario {
            name,
            iommu: Some(iommu),
            cmdline: suite.cmdline,
            needs,
            ..base.clone()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_like_one_of_the_matrix() {
        assert_eq!(scenarios().count(), 2 * SUITES.len());
        for scenario in scenarios() {
            assert!(scenario.cmdline.contains("scalable"), "{}", scenario.name);
            assert!(listed().all(|other| other.name != scenario.name), "{}", scenario.name);
        }
    }
}
