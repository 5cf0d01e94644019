//! The disk and the attackers: which they are, and where they are plugged in.

use super::DEFAULT;
use crate::scenario::{DiskPlace, Drive, Expect, Scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "disk-root-port",
        about: "the disk behind a PCI Express root port",
        disk: DiskPlace::RootPort,
        ..DEFAULT
    },
    Scenario {
        name: "disk-pci-bridge",
        about: "the disk behind a PCIe-to-PCI bridge, known to the unit by the bridge's alias",
        disk: DiskPlace::ConventionalBridge,
        ..DEFAULT
    },
    Scenario { name: "nvme", about: "the disk is an NVMe controller", drive: Drive::Nvme, ..DEFAULT },
    Scenario {
        name: "nvme-cpus-4",
        about: "an NVMe disk with four queues, and 64 MiB of random writes and reads",
        drive: Drive::Nvme,
        cpus: "4",
        cmdline: "bulk=64",
        ..DEFAULT
    },
    Scenario {
        name: "nvme-bulk",
        about: "64 MiB of random writes and reads on an NVMe disk",
        drive: Drive::Nvme,
        cmdline: "bulk=64",
        tests: "disk*",
        ..DEFAULT
    },
    Scenario {
        name: "virtio-bulk",
        about: "64 MiB of random writes and reads on a virtio disk",
        cmdline: "bulk=64",
        tests: "disk*",
        ..DEFAULT
    },
    Scenario {
        name: "virtio-bulk-cpus-4",
        about: "the same by four CPUs, each with a queue",
        cpus: "4",
        cmdline: "bulk=64",
        tests: "disk*",
        ..DEFAULT
    },
    Scenario {
        name: "nvme-root-port",
        about: "an NVMe disk behind a PCI Express root port",
        drive: Drive::Nvme,
        disk: DiskPlace::RootPort,
        tests: "disk*",
        ..DEFAULT
    },
    Scenario {
        name: "edus-16",
        about: "a storm of sixteen more functions, and of the fast one, behind a unit with one fault record",
        qemu: &SIXTEEN_EDUS,
        tests: "storm::*",
        expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
        ..DEFAULT
    },
];

/// Sixteen more `edu` functions on the root bus.
const SIXTEEN_EDUS: [&str; 32] = {
    let mut arguments = ["-device"; 32];
    let mut next = 1;
    while next < arguments.len() {
        arguments[next] = "edu,dma_mask=0xffffffffffffffff";
        next += 2;
    }
    arguments
};
