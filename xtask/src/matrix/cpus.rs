//! Several CPUs, and checked builds.

use super::DEFAULT;
use crate::qemu::Version;
use crate::scenario::{Need, Scenario};
use crate::workspace::Build;

pub(super) const SCENARIOS: &[Scenario] = &[
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
];
