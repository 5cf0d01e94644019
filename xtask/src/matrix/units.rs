//! What units can do, how they are told to work, and how much memory they serve.

use super::{DEFAULT, FIRST, FIRST_STAGE, SCALABLE, SECOND_STAGE};
use crate::qemu::Version;
use crate::scenario::{Expect, Need, Scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "default", about: "the machine of `cargo xtask run`", ..DEFAULT },
    Scenario {
        name: "aw-39",
        about: "39-bit IOVAs: three-level tables",
        iommu: Some("intremap=on,aw-bits=39"),
        ..DEFAULT
    },
    Scenario {
        name: "aw-48",
        about: "48-bit IOVAs: four-level tables",
        iommu: Some("intremap=on,aw-bits=48"),
        ..DEFAULT
    },
    Scenario {
        name: "caching-mode",
        about: "the unit may cache entries that are not present",
        iommu: Some("intremap=on,caching-mode=on"),
        ..DEFAULT
    },
    Scenario {
        name: "device-iotlb",
        about: "the unit announces device TLBs",
        iommu: Some("intremap=on,device-iotlb=on"),
        ..DEFAULT
    },
    Scenario {
        name: "no-intremap",
        about: "DMA remapping without interrupt remapping",
        iommu: Some("intremap=off"),
        lacks: &["interrupt remapping in use"],
        ..DEFAULT
    },
    Scenario {
        name: "intremap-unwanted",
        about: "interrupt remapping that iommu=no-intremap leaves off",
        cmdline: "iommu=no-intremap",
        lacks: &["interrupt remapping in use"],
        ..DEFAULT
    },
    Scenario {
        name: "no-intremap-cpus-4",
        about: "storms on four CPUs without interrupt remapping",
        iommu: Some("intremap=off"),
        cpus: "4",
        tests: "storm::*",
        expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
        ..DEFAULT
    },
    Scenario {
        name: "snoop-control",
        about: "the unit can force snooping",
        iommu: Some("intremap=on,snoop-control=on"),
        needs: &[Need::Property("intel-iommu", "snoop-control")],
        ..DEFAULT
    },
    Scenario {
        name: "scalable-reported",
        about: "the unit announces scalable mode, and the kernel stays in legacy mode",
        iommu: Some("intremap=on,x-scalable-mode=on"),
        needs: &[Need::Property("intel-iommu", "x-scalable-mode")],
        ..DEFAULT
    },
    Scenario {
        name: "scalable",
        about: "the unit is in scalable mode",
        iommu: Some(SCALABLE),
        cmdline: "iommu=scalable",
        // Before that, QEMU has no second stage in it.
        needs: SECOND_STAGE,
        ..DEFAULT
    },
    Scenario {
        name: "scalable-cpus-4",
        about: "the unit is in scalable mode, on four CPUs",
        iommu: Some(SCALABLE),
        cmdline: "iommu=scalable",
        cpus: "4",
        needs: SECOND_STAGE,
        ..DEFAULT
    },
    Scenario {
        name: "first-stage",
        about: "the unit translates by tables in the CPU's own format",
        iommu: Some(FIRST_STAGE),
        cmdline: "iommu=scalable",
        lacks: &["memory for writes alone"],
        needs: FIRST,
        ..DEFAULT
    },
    Scenario {
        name: "first-stage-cpus-4",
        about: "the unit translates by tables in the CPU's own format, on four CPUs",
        iommu: Some(FIRST_STAGE),
        cmdline: "iommu=scalable",
        lacks: &["memory for writes alone"],
        cpus: "4",
        needs: FIRST,
        ..DEFAULT
    },
    Scenario {
        name: "eim",
        about: "the unit announces extended interrupt mode",
        iommu: Some("intremap=on,eim=on"),
        // Before that, QEMU refuses it without KVM.
        needs: &[Need::AtLeast(Version(10, 0))],
        ..DEFAULT
    },
    Scenario {
        name: "no-iommu",
        about: "no unit: the kernel says so and refuses isolated DMA",
        iommu: None,
        lacks: &["a remapping unit", "a remapping unit in use"],
        expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
        ..DEFAULT
    },
    Scenario {
        name: "no-iommu-off",
        about: "no unit, and iommu=off allows DMA without isolation",
        iommu: None,
        cmdline: "iommu=off",
        lacks: &["a remapping unit in use"],
        ..DEFAULT
    },
    Scenario {
        name: "no-iommu-force",
        about: "no unit, and iommu=force refuses to boot without one",
        iommu: None,
        cmdline: "iommu=force",
        expect: Expect::Refusal("firmware describes no remapping unit"),
        ..DEFAULT
    },
    Scenario {
        name: "iommu-off",
        about: "a unit that iommu=off leaves alone",
        cmdline: "iommu=off",
        lacks: &["a remapping unit in use"],
        ..DEFAULT
    },
    Scenario {
        name: "no-qinval",
        about: "invalidation by registers instead of the queue",
        cmdline: "iommu=no-qinval",
        // It takes the queue.
        lacks: &["interrupt remapping in use"],
        ..DEFAULT
    },
    Scenario {
        name: "no-superpages",
        about: "nothing but 4 KiB leaves",
        cmdline: "iommu=no-superpages",
        ..DEFAULT
    },
    Scenario {
        name: "deferred",
        about: "what retired mappings wait for is flushed by count and time",
        cmdline: "iommu=deferred",
        ..DEFAULT
    },
    Scenario {
        name: "deferred-cpus-4",
        about: "deferred flushes on four CPUs",
        cmdline: "iommu=deferred",
        cpus: "4",
        ..DEFAULT
    },
    Scenario { name: "memory-256m", about: "little memory", memory_mib: 256, ..DEFAULT },
    Scenario {
        name: "memory-6g",
        about: "memory on both sides of the hole below 4 GiB",
        memory_mib: 6 * 1024,
        needs: &[Need::HostMemoryMib(7 * 1024)],
        ..DEFAULT
    },
];
