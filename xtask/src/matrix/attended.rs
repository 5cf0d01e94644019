//! Somebody is at the machine, who looks at screens or keeps it from running.

use super::DEFAULT;
use crate::scenario::{Expect, Need, Scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "displays",
        about: "displays in the hands of processes, one after the other: somebody looks at the screens",
        qemu: DISPLAYS,
        attended: true,
        cmdline: "plugs",
        tests: "displays::*",
        needs: &[Need::Property("bochs-display", "vgamem"), Need::Property("virtio-gpu-pci", "max_outputs")],
        expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
        ..DEFAULT
    },
    Scenario {
        name: "standstill",
        about: "the host keeps the machine from running for longer than any device may take",
        attended: true,
        cmdline: "plugs",
        tests: "time::*",
        expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
        ..DEFAULT
    },
];

/// A display with memory of its own behind a port, which resets it; one that fetches its pictures; and one with no way
/// to be reset. Firmware has programs for none of them.
pub(super) const DISPLAYS: &[&str] = &[
    "-device",
    "pcie-root-port,id=display-port,bus=pcie.0,addr=0x9,chassis=9,slot=9",
    "-device",
    "bochs-display,id=bochs,bus=display-port,vgamem=4M,romfile=",
    "-device",
    "virtio-gpu-pci,id=gpu,bus=pcie.0,addr=0xa,iommu_platform=on,disable-legacy=on,romfile=",
    "-device",
    "bochs-display,id=fixed,bus=pcie.0,addr=0xb,vgamem=4M,romfile=",
];
