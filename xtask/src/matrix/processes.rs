//! Devices in the hands of processes, in domains of their own or with the address spaces of the processes.

use super::{DEFAULT, FIRST, FIRST_STAGE, attended::DISPLAYS};
use crate::qemu::Version;
use crate::scenario::{Drive, Expect, Need, Scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
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
];

/// A machine on which devices have the address spaces of the processes that they are given to.
const SHARED_SPACES: Scenario = Scenario {
    iommu: Some(FIRST_STAGE),
    cmdline: "iommu=scalable spaces=shared kills=5",
    tests: "process_devices::*",
    needs: FIRST,
    expect: Expect::AllPass { disk_reads: 0, disk_writes: 0 },
    ..DEFAULT
};

/// A machine whose NVMe disk is driven by a process, as its virtual functions are.
pub(super) const VIRTUAL_DISKS: Scenario = Scenario {
    drive: Drive::Nvme,
    qemu: VIRTUAL_NVME,
    // What older ones make of secondary controllers was not tried.
    needs: &[Need::AtLeast(Version(10, 0)), Need::Property("nvme", "sriov_max_vfs")],
    ..DEFAULT
};

/// Another disk, which stores nothing.
const OTHER_DISK: [&str; 4] = [
    "-blockdev",
    "driver=null-co,node-name=other,size=16777216,read-zeroes=on",
    "-device",
    "virtio-blk-pci,drive=other,bus=pcie.0,addr=0xa,iommu_platform=on,disable-legacy=on",
];

/// A controller behind a port that has two virtual functions, and two namespaces that are for these; they keep what is
/// written until QEMU ends. It has queues and interrupts for each of them: those for admin commands, and for requests.
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
