//! The suites that have machines of their own, on units in scalable mode with tables of either stage.

use super::{FIRST, FIRST_STAGE, SCALABLE, SCENARIOS, SECOND_STAGE};
use crate::scenario::{Need, Scenario};

/// The scenario of the matrix that it is like, its names with tables of the second stage and of the first, and what the kernel is told.
struct Suite {
    like: &'static str,
    names: [&'static str; 2],
    cmdline: &'static str,
}

const SUITES: &[Suite] = &[
    Suite {
        like: "hotplug",
        names: ["scalable-hotplug", "first-stage-hotplug"],
        cmdline: "plugs iommu=scalable",
    },
    Suite {
        like: "hotplug-bridges",
        names: ["scalable-hotplug-bridges", "first-stage-hotplug-bridges"],
        cmdline: "plugs iommu=scalable",
    },
    Suite {
        like: "topologies",
        names: ["scalable-topologies", "first-stage-topologies"],
        cmdline: "iommu=scalable",
    },
    Suite {
        like: "virtual-functions",
        names: ["scalable-virtual-functions", "first-stage-virtual-functions"],
        cmdline: "plugs iommu=scalable",
    },
    Suite {
        like: "virtual-disks",
        names: ["scalable-virtual-disks", "first-stage-virtual-disks"],
        cmdline: "disk=process kills=3 iommu=scalable",
    },
    Suite {
        like: "served-disk-cpus-4",
        names: ["scalable-served-disk", "first-stage-served-disk"],
        cmdline: "disk=process kills=5 iommu=scalable",
    },
    Suite { like: "network", names: ["scalable-network", "first-stage-network"], cmdline: "iommu=scalable" },
    Suite {
        like: "nvme-bulk",
        names: ["scalable-nvme-bulk", "first-stage-nvme-bulk"],
        cmdline: "bulk=64 iommu=scalable",
    },
    Suite {
        like: "virtio-bulk",
        names: ["scalable-virtio-bulk", "first-stage-virtio-bulk"],
        cmdline: "bulk=64 iommu=scalable",
    },
    Suite { like: "debug", names: ["scalable-debug", "first-stage-debug"], cmdline: "iommu=debug,scalable" },
    Suite {
        like: "passthrough",
        names: ["scalable-passthrough", "first-stage-passthrough"],
        cmdline: "iommu=passthrough,scalable",
    },
    Suite {
        like: "reserved-memory",
        names: ["scalable-reserved-memory", "first-stage-reserved-memory"],
        cmdline: "iommu=scalable",
    },
    Suite {
        like: "scratch-page",
        names: ["scalable-scratch-page", "first-stage-scratch-page"],
        cmdline: "iommu=quarantine=scratch-page,scalable",
    },
    Suite {
        like: "displays",
        names: ["scalable-displays", "first-stage-displays"],
        cmdline: "plugs iommu=scalable",
    },
];

/// What a unit of QEMU's is told to be, for tables of the second stage and of the first, and what it takes.
const MODES: [(&str, &[Need]); 2] = [(SCALABLE, SECOND_STAGE), (FIRST_STAGE, FIRST)];

/// All of them. What their models need besides, every QEMU has that has the mode.
pub(super) fn scenarios() -> impl Iterator<Item = Scenario> {
    let find = |like| SCENARIOS.iter().find(|scenario| scenario.name == like);
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
            assert!(SCENARIOS.iter().all(|other| other.name != scenario.name), "{}", scenario.name);
        }
    }
}
