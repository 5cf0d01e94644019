//! What is between devices and the unit, and devices that make others.

use super::DEFAULT;
use crate::qemu::Version;
use crate::scenario::{Expect, Need, Scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "topologies",
        about: "devices behind root ports, a switch, bridges of both kinds, on a second root bus, and two in one",
        qemu: TOPOLOGIES,
        tests: "topologies::*",
        expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
        ..DEFAULT
    },
    Scenario {
        name: "virtual-functions",
        about: "a network controller is given virtual functions, has them taken away, and is pulled out with them",
        qemu: &[
            "-global",
            "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
            "-device",
            "pcie-root-port,id=sriov,bus=pcie.0,addr=0xa,chassis=10,slot=10",
            "-device",
            "igb,bus=sriov,romfile=",
        ],
        cmdline: "plugs",
        tests: "virtual_*",
        // Before that, QEMU has no such controller.
        needs: &[Need::AtLeast(Version(10, 0))],
        expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
        ..DEFAULT
    },
];

/// Everything that QEMU has between a device and the unit, with attackers behind it (`testing/suites/src/topologies.rs`
/// says which groups that makes).
const TOPOLOGIES: &[&str] = &[
    "-device",
    "pcie-root-port,id=lone,bus=pcie.0,addr=0xa,chassis=10,slot=10",
    "-device",
    "edu,bus=lone,dma_mask=0xffffffffffffffff",
    "-device",
    "pcie-root-port,id=above-switch,bus=pcie.0,addr=0xb,chassis=11,slot=11",
    "-device",
    "x3130-upstream,id=switch,bus=above-switch",
    "-device",
    "xio3130-downstream,id=left,bus=switch,addr=0x0,chassis=21,slot=21",
    "-device",
    "xio3130-downstream,id=right,bus=switch,addr=0x1,chassis=22,slot=22",
    "-device",
    "edu,bus=left,dma_mask=0xffffffffffffffff",
    "-device",
    "edu,bus=right,dma_mask=0xffffffffffffffff",
    "-device",
    "pcie-root-port,id=above-bridge,bus=pcie.0,addr=0xc,chassis=12,slot=12",
    "-device",
    "pcie-pci-bridge,id=to-pci,bus=above-bridge",
    "-device",
    "edu,bus=to-pci,addr=0x2,dma_mask=0xffffffffffffffff",
    "-device",
    "edu,bus=to-pci,addr=0x3,dma_mask=0xffffffffffffffff",
    "-device",
    "edu,bus=pcie.0,addr=0xd.0,multifunction=on,dma_mask=0xffffffffffffffff",
    "-device",
    "edu,bus=pcie.0,addr=0xd.1,dma_mask=0xffffffffffffffff",
    "-device",
    "i82801b11-bridge,id=chip-set,bus=pcie.0,addr=0x1e",
    "-device",
    "edu,bus=chip-set,addr=0x1,dma_mask=0xffffffffffffffff",
    "-device",
    "pxb-pcie,id=second-root,bus=pcie.0,addr=0xe,bus_nr=0x40",
    "-device",
    "pcie-root-port,id=on-second,bus=second-root,addr=0x0,chassis=14,slot=14",
    "-device",
    "edu,bus=on-second,dma_mask=0xffffffffffffffff",
];
