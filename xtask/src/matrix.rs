//! The machines that `cargo xtask test` boots. A new scenario is one more entry here.

mod modes;

use std::sync::LazyLock;

use crate::hands::Device;
use crate::qemu::Version;
use crate::scenario::{DiskPlace, Drive, Expect, Need, Nic, Scenario};
use crate::shell_session::{SHELL, SHELL_DISKS};
use crate::workspace::Build;

const DEFAULT: Scenario = Scenario::DEFAULT;

/// A unit with scalable mode, and what of QEMU has one whose second stage can be used.
pub const SCALABLE: &str = "intremap=on,x-scalable-mode=on";
pub const SECOND_STAGE: &[Need] =
    &[Need::AtLeast(Version(10, 0)), Need::Property("intel-iommu", "x-scalable-mode")];

/// The same with first-stage tables, which are all that such a unit of QEMU has.
pub const FIRST_STAGE: &str = "intremap=on,x-scalable-mode=on,x-flts=on";
pub const FIRST: &[Need] = &[Need::AtLeast(Version(10, 0)), Need::Property("intel-iommu", "x-flts")];

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

/// Another disk, which stores nothing.
const OTHER_DISK: [&str; 4] = [
    "-blockdev",
    "driver=null-co,node-name=other,size=16777216,read-zeroes=on",
    "-device",
    "virtio-blk-pci,drive=other,bus=pcie.0,addr=0xa,iommu_platform=on,disable-legacy=on",
];

/// A root port with an empty slot and buses for two bridges in it, and what the disks that are plugged into it store their blocks in: nothing, and nothing
/// after a long time. Slots speak for themselves, not through ACPI.
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

/// Everything that QEMU has between a device and the unit, with attackers behind it (`testing/suites/src/topologies.rs` says which
/// groups that makes).
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

/// A display with memory of its own behind a port, which resets it; one that fetches its pictures; and one with no way to be reset.
/// Firmware has programs for none of them.
const DISPLAYS: &[&str] = &[
    "-device",
    "pcie-root-port,id=display-port,bus=pcie.0,addr=0x9,chassis=9,slot=9",
    "-device",
    "bochs-display,id=bochs,bus=display-port,vgamem=4M,romfile=",
    "-device",
    "virtio-gpu-pci,id=gpu,bus=pcie.0,addr=0xa,iommu_platform=on,disable-legacy=on,romfile=",
    "-device",
    "bochs-display,id=fixed,bus=pcie.0,addr=0xb,vgamem=4M,romfile=",
];

/// A controller behind a port that has two virtual functions, and two namespaces that are for these; they keep what is written
/// until QEMU ends. It has queues and interrupts for each of them: those for admin commands, and for requests.
const VIRTUAL_NVME: &[&str] = &[
    "-device",
    "pcie-root-port,id=sriov,bus=pcie.0,addr=0xa,chassis=10,slot=10",
    "-device",
    "nvme-subsys,id=subsystem",
    "-device",
    "nvme,id=primary,serial=primary,subsys=subsystem,bus=sriov,sriov_max_vfs=2,sriov_vq_flexible=4,sriov_vi_flexible=4",
    "-drive",
    "if=none,id=first,driver=null-co,size=67108864,read-zeroes=on,snapshot=on",
    "-device",
    "nvme-ns,drive=first,bus=primary,nsid=1,detached=on",
    "-drive",
    "if=none,id=second,driver=null-co,size=67108864,read-zeroes=on,snapshot=on",
    "-device",
    "nvme-ns,drive=second,bus=primary,nsid=2,detached=on",
];

/// A machine whose NVMe disk is driven by a process, as its virtual functions are.
const VIRTUAL_DISKS: Scenario = Scenario {
    drive: Drive::Nvme,
    qemu: VIRTUAL_NVME,
    // What older ones make of secondary controllers was not tried.
    needs: &[Need::AtLeast(Version(10, 0)), Need::Property("nvme", "sriov_max_vfs")],
    ..DEFAULT
};

/// A machine on which devices have the address spaces of the processes that they are given to.
const SHARED_SPACES: Scenario = Scenario {
    iommu: Some(FIRST_STAGE),
    cmdline: "iommu=scalable spaces=shared kills=5",
    tests: "process_devices::*",
    needs: FIRST,
    expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
    ..DEFAULT
};

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

const HOTPLUG: Scenario = Scenario {
    qemu: SLOT,
    devices: DEVICES,
    cmdline: "plugs",
    tests: "hotplug::*",
    expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
    ..DEFAULT
};

/// What else every driver is run with: together with one CPU and strict flushes without caching mode, any two values of number
/// of CPUs, flushes and caching mode meet.
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

const NETWORK: Scenario = Scenario {
    nics: &[Nic::Virtio, Nic::E1000e],
    tests: "network::*",
    fetch_mib: 64,
    visitors: 1000,
    expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
    ..DEFAULT
};

/// All scenarios.
pub fn all() -> &'static [Scenario] {
    static ALL: LazyLock<Vec<Scenario>> =
        LazyLock::new(|| SCENARIOS.iter().cloned().chain(modes::scenarios()).collect());
    &ALL
}

const SCENARIOS: &[Scenario] = &[
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
    Scenario {
        name: "served-disk",
        about: "the NVMe disk is driven by a process in ring 3, which is killed 20 times",
        drive: Drive::Nvme,
        qemu: &OTHER_DISK,
        cmdline: "disk=process kills=20",
        tests: "*disk*",
        lacks: &["a disk that the kernel drives"],
        ..DEFAULT
    },
    Scenario {
        name: "served-disk-cpus-4",
        about: "the same by four CPUs",
        drive: Drive::Nvme,
        qemu: &OTHER_DISK,
        cpus: "4",
        one_thread: true,
        cmdline: "disk=process kills=20",
        tests: "served_disk::*",
        expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
        ..DEFAULT
    },
    Scenario {
        name: "shared-spaces",
        about: "devices in the hands of processes have their address spaces: the unit walks the CPU's own tables",
        ..SHARED_SPACES
    },
    Scenario { name: "shared-spaces-cpus-4", about: "the same by four CPUs", cpus: "4", ..SHARED_SPACES },
    Scenario {
        name: "shared-disk",
        about: "the NVMe disk is driven by a process whose address space the controller has, which is killed 5 times",
        drive: Drive::Nvme,
        qemu: &OTHER_DISK,
        iommu: Some(FIRST_STAGE),
        cmdline: "iommu=scalable spaces=shared disk=process kills=5",
        tests: "*disk*",
        lacks: &["a disk that the kernel drives", "a disk that has no address space"],
        needs: FIRST,
        ..DEFAULT
    },
    Scenario {
        name: "shared-displays",
        about: "displays that read their pictures in the address space of the process that draws them",
        qemu: DISPLAYS,
        attended: true,
        iommu: Some(FIRST_STAGE),
        cmdline: "iommu=scalable spaces=shared plugs",
        tests: "displays::*",
        needs: &[
            Need::AtLeast(Version(10, 0)),
            Need::Property("intel-iommu", "x-flts"),
            Need::Property("bochs-display", "vgamem"),
            Need::Property("virtio-gpu-pci", "max_outputs"),
        ],
        expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
        ..DEFAULT
    },
    Scenario {
        name: "virtual-disks",
        about: "three processes drive an NVMe controller and two virtual functions of another one, and are killed 5 times",
        cmdline: "disk=process kills=5",
        tests: "virtual_disks::*",
        expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
        ..VIRTUAL_DISKS
    },
    Scenario {
        name: "virtual-disks-cpus-4",
        about: "the same by four CPUs",
        cpus: "4",
        one_thread: true,
        cmdline: "disk=process kills=5",
        tests: "virtual_disks::*",
        expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
        ..VIRTUAL_DISKS
    },
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
    Scenario { name: "cpus-2", about: "two CPUs", cpus: "2", ..DEFAULT },
    Scenario { name: "cpus-4", about: "four CPUs", cpus: "4", ..DEFAULT },
    Scenario {
        name: "cpus-sparse",
        about: "CPUs with APIC ids above 255 among many that are not there",
        iommu: Some("intremap=on,eim=on"),
        cpus: "2,maxcpus=288,sockets=2,cores=144,threads=1",
        // The number of the socket is above the eight bits that 144 cores take.
        added_apic_ids: &[0x103, 0x18f],
        qemu: &[
            // As many as there are CPUs; QEMU gives it one for each that is not plugged in by an option.
            "-global",
            "virtio-blk-pci.num-queues=4",
            "-device",
            "max-x86_64-cpu,socket-id=1,core-id=3,thread-id=0",
            "-device",
            "max-x86_64-cpu,socket-id=1,core-id=143,thread-id=0",
        ],
        // Before that, QEMU refuses such ids without KVM.
        needs: &[Need::AtLeast(Version(10, 0))],
        ..DEFAULT
    },
    Scenario {
        name: "checked",
        about: "debug assertions: the order of locks is checked, on one CPU",
        build: Build::Checked,
        ..DEFAULT
    },
    Scenario {
        name: "checked-cpus-4",
        about: "debug assertions: the order of locks is checked, on four CPUs",
        build: Build::Checked,
        cpus: "4",
        ..DEFAULT
    },
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
    Scenario {
        name: "shell",
        about: "somebody types every command of the shell, attacks, and takes devices out of quarantine",
        typed: SHELL,
        tests: "none",
        // Before that, QEMU does not record interrupts that it blocks.
        needs: &[Need::AtLeast(Version(10, 0))],
        expect: Expect::Session,
        ..DEFAULT
    },
    Scenario {
        name: "shell-disks",
        about: "somebody kills the process that drives the disk, starts another one, and two more on virtual functions",
        cmdline: "disk=process",
        typed: SHELL_DISKS,
        tests: "none",
        expect: Expect::Session,
        ..VIRTUAL_DISKS
    },
    Scenario {
        name: "power-cut",
        about: "what a flush has confirmed is there after the power went",
        cmdline: "power-cut=flushed",
        tests: "power_cut::*",
        expect: Expect::PowerCut { keeps: true },
        ..DEFAULT
    },
    Scenario {
        name: "power-cut-nvme",
        about: "the same on an NVMe disk",
        drive: Drive::Nvme,
        cmdline: "power-cut=flushed",
        tests: "power_cut::*",
        expect: Expect::PowerCut { keeps: true },
        ..DEFAULT
    },
    Scenario {
        name: "power-cut-unflushed",
        about: "a guest that says it has flushed, and has not, is found out",
        cmdline: "power-cut=unflushed",
        tests: "power_cut::*",
        expect: Expect::PowerCut { keeps: false },
        ..DEFAULT
    },
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
    Scenario {
        name: "selftest-panic",
        about: "a test that panics is charged with it, the others run on",
        cmdline: "selftest=panic",
        expect: Expect::TheseFail(&["selftest::panics"]),
        ..DEFAULT
    },
    Scenario {
        name: "selftest-hang",
        about: "a test that hangs with interrupts off",
        cmdline: "selftest=hang",
        expect: Expect::TheseFail(&["selftest::hangs"]),
        silence_s: 60,
        ..DEFAULT
    },
    Scenario {
        name: "selftest-hang-cpus-4",
        about: "a test that hangs its CPU with interrupts off: another one notices, and stops it",
        cmdline: "selftest=hang",
        cpus: "4",
        expect: Expect::TheseFail(&["selftest::hangs"]),
        last_words: &["was in thread main:"],
        ..DEFAULT
    },
    Scenario {
        name: "selftest-triple-fault",
        about: "a test that resets the machine",
        cmdline: "selftest=triple-fault",
        expect: Expect::TheseFail(&["selftest::triple_faults"]),
        ..DEFAULT
    },
    Scenario {
        name: "selftest-lock-order",
        about: "a test that takes two locks in the wrong order",
        build: Build::Checked,
        cmdline: "selftest=lock-order",
        expect: Expect::TheseFail(&["selftest::takes_locks_out_of_order"]),
        last_words: &["wanted while one of class"],
        ..DEFAULT
    },
    Scenario {
        name: "selftest-unmasked-lock",
        about: "a test that lets an interrupt come while it holds a lock that handlers take",
        build: Build::Checked,
        cmdline: "selftest=unmasked-lock",
        expect: Expect::TheseFail(&["selftest::holds_a_lock_with_interrupts_on"]),
        last_words: &["while locks were held"],
        ..DEFAULT
    },
    Scenario {
        name: "selftest-allocating-handler",
        about: "a test whose interrupt handler allocates",
        build: Build::Checked,
        cmdline: "selftest=allocating-handler",
        expect: Expect::TheseFail(&["selftest::allocates_in_an_interrupt"]),
        last_words: &["a handler must not allocate"],
        ..DEFAULT
    },
    Scenario {
        name: "selftest-logging-handler",
        about: "a test whose interrupt handler logs",
        build: Build::Checked,
        cmdline: "selftest=logging-handler",
        expect: Expect::TheseFail(&["selftest::logs_in_an_interrupt"]),
        last_words: &["a handler must not log"],
        ..DEFAULT
    },
];
