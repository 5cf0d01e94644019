//! Devices come and go, in slots of several kinds; and bridges that firmware has not configured.

use super::DEFAULT;
use crate::hands::Device;
use crate::scenario::{DiskPlace, Expect, Scenario};
use crate::workspace::Build;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "hotplug", about: "devices come and go in a slot", ..HOTPLUG },
    Scenario {
        name: "hotplug-caching-mode",
        about: "the same with a unit that may cache entries that are not present",
        iommu: Some("intremap=on,caching-mode=on"),
        ..HOTPLUG
    },
    Scenario {
        name: "hotplug-checked-cpus-4",
        about: "the same on four CPUs, with the order of locks checked",
        build: Build::Checked,
        cpus: "4",
        ..HOTPLUG
    },
    Scenario {
        name: "hotplug-bridge",
        about: "a bridge comes and goes with what is behind it",
        tests: "hotplug_bridges::one*",
        ..HOTPLUG
    },
    Scenario {
        name: "hotplug-bridges",
        about: "two bridges, one behind the other, come and go",
        tests: "hotplug_bridges::two*",
        ..HOTPLUG
    },
    Scenario {
        name: "hotplug-switch",
        about: "devices come and go in a slot behind a switch",
        qemu: SWITCH,
        tests: "hotplug_bridges::a_slot*",
        ..HOTPLUG
    },
    Scenario {
        name: "hotplug-switch-unconfigured",
        about: "the same where firmware has configured no bridge",
        qemu: SWITCH,
        cmdline: "plugs bridges=unconfigured",
        tests: "hotplug_bridges::a_slot*",
        ..HOTPLUG
    },
    Scenario {
        name: "bridges-unconfigured",
        about: "firmware has configured no bridge: the kernel numbers them and opens their windows, and the disk is behind one",
        qemu: SWITCH,
        disk: DiskPlace::RootPort,
        cmdline: "bridges=unconfigured",
        ..DEFAULT
    },
];

const HOTPLUG: Scenario = Scenario {
    qemu: SLOT,
    devices: DEVICES,
    cmdline: "plugs",
    tests: "hotplug::*",
    expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
    ..DEFAULT
};

/// A root port with an empty slot and buses for two bridges in it, and what the disks that are plugged into it store
/// their blocks in: nothing, and nothing after a long time. Slots speak for themselves, not through ACPI.
const SLOT: &[&str] = &[
    "-global",
    "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
    "-device",
    "pcie-root-port,id=hot,bus=pcie.0,addr=0x9,chassis=9,slot=9,bus-reserve=3",
    "-blockdev",
    "driver=null-co,node-name=zeros,size=16777216,read-zeroes=on",
    "-blockdev",
    "driver=null-co,node-name=slow,size=16777216,read-zeroes=on,latency-ns=4000000000",
];

/// A switch behind a root port, with the same slot and with something else behind another of its ports.
const SWITCH: &[&str] = &[
    "-global",
    "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
    "-device",
    "pcie-root-port,id=above,bus=pcie.0,addr=0x9,chassis=9,slot=9",
    "-device",
    "x3130-upstream,id=switch,bus=above",
    "-device",
    "xio3130-downstream,id=hot,bus=switch,addr=0x0,chassis=10,slot=10",
    "-device",
    "xio3130-downstream,id=taken,bus=switch,addr=0x1,chassis=11,slot=11",
    "-device",
    "virtio-rng-pci,bus=taken,iommu_platform=on,disable-legacy=on",
];

/// What is plugged into it.
const DEVICES: &[Device] = &[
    Device {
        name: "edu",
        properties: r#""driver":"edu","bus":"hot","dma_mask":18446744073709551615"#,
        behind: &[],
    },
    Device {
        name: "disk",
        properties: r#""driver":"virtio-blk-pci","bus":"hot","drive":"zeros","iommu_platform":true,"disable-legacy":"on""#,
        behind: &[],
    },
    Device {
        name: "slow",
        properties: r#""driver":"virtio-blk-pci","bus":"hot","drive":"slow","iommu_platform":true,"disable-legacy":"on""#,
        behind: &[],
    },
    Device {
        name: "large",
        properties: r#""driver":"nvme","bus":"hot","serial":"large","cmb_size_mb":16"#,
        behind: &[],
    },
    Device {
        name: "bridge",
        properties: r#""driver":"pcie-pci-bridge","bus":"hot""#,
        behind: &[Device {
            name: "near-edu",
            properties: r#""driver":"edu","bus":"bridge","addr":"0x2","dma_mask":18446744073709551615"#,
            behind: &[],
        }],
    },
    Device { name: "bridges", properties: r#""driver":"pcie-pci-bridge","bus":"hot""#, behind: BRIDGED },
];

/// What is behind a bridge that is plugged in: another one, and an attacker behind that.
const BRIDGED: &[Device] = &[
    Device {
        name: "second",
        properties: r#""driver":"pci-bridge","bus":"bridges","addr":"0x2","chassis_nr":10,"shpc":true"#,
        behind: &[],
    },
    Device {
        name: "far-edu",
        properties: r#""driver":"edu","bus":"second","addr":"0x3","dma_mask":18446744073709551615"#,
        behind: &[],
    },
];
