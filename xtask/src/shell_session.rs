//! What is typed into the guest's shell in the scenario `shell`, and what has to come of it: every command once, and
//! every attack with what blocks it. The machine is that of `cargo xtask run`: an `edu` at 00:04.0, the fast attacker
//! at 00:07.0.

use crate::typist::Line;

pub const SHELL: &[Line] = &[
    Line { typed: "help", shows: &["attack MODE [FUNCTION]", "have a device do what it may not"] },
    Line { typed: "nonsense", shows: &["unknown command \"nonsense\""] },
    Line { typed: "units now", shows: &["usage: units"] },
    Line { typed: "tests", shows: &["storm::the_offender_is_quarantined_and_the_disk_goes_on"] },
    Line { typed: "bench cost::read_clock", shows: &["cost::read_clock"] },
    Line { typed: "cpus", shows: &["cpu  APIC id  interrupts", "all TLBs flushed"] },
    Line { typed: "stats", shows: &["vectors that nobody had asked for: 0", "unit    0: "] },
    Line { typed: "lspci", shows: &["0000:00:04.0  1234:11e8  QEMU edu"] },
    // Virtual functions have a scenario of their own; here is nothing that could have any.
    Line { typed: "sriov 09:00.0 1", shows: &["there is no function 09:00.0"] },
    Line { typed: "disk", shows: &["disk0", "0000:00:03.0"] },
    Line { typed: "disk disk0 read 0", shows: &["Sluice test disk"] },
    Line { typed: "net", shows: &["net0  0000:00:08.0  virtio-net"] },
    Line { typed: "ping 10.0.2.2", shows: &["10.0.2.2 answers after"] },
    // Whether there is anybody on the other side is the host's business.
    Line { typed: "resolve sluice.invalid", shows: &[] },
    Line { typed: "fetch http://10.0.2.2:1/", shows: &[] },
    Line {
        typed: "units",
        shows: &[
            "unit  registers   segment  version  bits  domains  translation  queue  interrupts  storms\n",
            "   0  0xfed90000        0      1.0    48",
            "  on           on     remapped         0\n",
            "      CAP 0x",
            "      GSTS 0xc7000000  FSTS 0x00000000\n",
        ],
    },
    Line { typed: "groups", shows: &["group  standing", "claimed", "0000:00:04.0  QEMU edu"] },
    Line { typed: "domains", shows: &["group  domain", "blocked"] },
    Line { typed: "domains -v", shows: &["  0x"] },
    // An owner that is not the kernel, and then another: domains are numbered in the order in which they are made.
    Line { typed: "assign 00:06.0 to new", shows: &["00:06.0 was reset and is in domain 7;"] },
    Line {
        typed: "domains -v",
        shows: &["7 assigned         4         0", "0000:00:06.0  QEMU edu", "1 groups are assigned to it"],
    },
    Line { typed: "assign 00:06.0 to new", shows: &["00:06.0 was reset and is in domain 8;"] },
    Line { typed: "destroy 8", shows: &["1 groups are in domain 8"] },
    Line { typed: "assign 00:03.0 to 8", shows: &["00:03.0 has a driver of the kernel's"] },
    Line { typed: "deassign 00:06.0", shows: &["00:06.0 was reset and is free"] },
    Line { typed: "deassign 00:06.0", shows: &["00:06.0 is assigned to nobody"] },
    Line { typed: "destroy 7", shows: &["domain 7 is gone"] },
    Line { typed: "destroy 8", shows: &["domain 8 is gone"] },
    // What is in quarantine stays there.
    Line { typed: "quarantine 00:06.0", shows: &["00:06.0 reaches nothing from now on"] },
    Line {
        typed: "assign 00:06.0 to new",
        shows: &["00:06.0 is in quarantine; `release 00:06.0` ends that"],
    },
    Line { typed: "groups", shows: &["quarantine: blocked"] },
    Line { typed: "release 00:06.0", shows: &["00:06.0 was reset and is free"] },
    Line { typed: "assign 00:06.0 to 8", shows: &["there is no domain 8 that could be given a device"] },
    // The line's own interrupt, which brought this here, came by the entry of the I/O APIC.
    Line { typed: "irt", shows: &["unit  entry  may be raised by", "I/O APIC"] },
    Line {
        typed: "tables 00:04.0",
        shows: &["requests of 0000:00:04.0 at unit 0", "context", "the next table"],
    },
    Line { typed: "faults", shows: &["nothing was blocked"] },
    Line {
        typed: "attack read",
        shows: &[
            "blocked: no read permission (reason 0x6); faults recorded: 1",
            "WARN  iommu: 0000:00:04.0: read at",
        ],
    },
    Line {
        typed: "attack write 00:04.0",
        shows: &["blocked: no write permission (reason 0x5); faults recorded: 1"],
    },
    Line {
        typed: "attack read-only",
        shows: &["blocked: no write permission (reason 0x5); faults recorded: 1"],
    },
    Line {
        typed: "attack unmapped",
        shows: &[
            "faults recorded: 0; the translation is cached now",
            "blocked: no write permission (reason 0x5); faults recorded: 1",
        ],
    },
    Line {
        typed: "faults",
        shows: &[
            "source        device",
            "0000:00:04.0  QEMU edu                        write",
            "no write permission (reason 0x5)\n",
            "the way of the last write of 0000:00:04.0, at 0x50",
            "  root            0x",
            "  context         0x",
            "  level 4      0  0x",
            "nowhere: not present\n",
        ],
    },
    Line {
        typed: "attack interrupt",
        shows: &[
            "arrived 0 times since",
            "blocked: interrupt from another source than its entry allows (reason 0x26); faults recorded: 1",
        ],
    },
    Line {
        typed: "faults",
        shows: &[
            "0000:00:04.0  QEMU edu                        interrupt     entry 0",
            "the entry of the last interrupt of 0000:00:04.0, as it is now:\nunit  entry  may be raised by",
            "virtio block\n",
        ],
    },
    // This one QEMU does not block: `not_enforced` has it, and the model does what the specification says.
    Line {
        typed: "attack vector",
        shows: &["QEMU's unit does not block messages that name one", "IT GOT THROUGH"],
    },
    Line { typed: "attack storm", shows: &["(nvme): 100000 writes", "blocked: ", "are in quarantine"] },
    Line { typed: "groups", shows: &["quarantine: blocked", "0000:00:07.0  QEMU NVMe controller"] },
    Line { typed: "release 00:07.0", shows: &["00:07.0 was reset, and its driver has started anew"] },
    Line { typed: "quarantine 00:08.0", shows: &["00:08.0 reaches nothing from now on"] },
    Line { typed: "release 00:08.0", shows: &["00:08.0 was reset, and its driver has started anew"] },
    Line { typed: "quarantine 00:03.0", shows: &["00:03.0 reaches nothing from now on"] },
    Line { typed: "disk disk0 read 0", shows: &[] },
    Line { typed: "release 00:03.0", shows: &["00:03.0 was reset, and its driver has started anew"] },
    Line { typed: "disk disk0 read 0", shows: &["Sluice test disk"] },
    Line { typed: "ps", shows: &["pid  program       pages  for\n"] },
    Line { typed: "start nothing", shows: &["nothing: there is no such program"] },
    // Whatever it may not reads as one line; the kernel goes on.
    Line {
        typed: "start attacker 3",
        shows: &[
            "process 1 (attacker) ended by an exception: read from protected address 0xffff800004000000, at 0x2",
        ],
    },
    Line { typed: "start attacker 1", shows: &["process 2 (attacker) runs"] },
    Line { typed: "ps", shows: &["   2  attacker"] },
    Line { typed: "kill 1", shows: &["there is no process 1"] },
    Line { typed: "kill 2", shows: &["process 2 (attacker) killed"] },
    // The one that is nobody's, for a process that has it write to the kernel's memory; when it is blocked, the host
    // decides.
    Line { typed: "start attacker 35 00:06.0", shows: &["process 3 (attacker) "] },
    Line { typed: "start attacker 0 00:04.0", shows: &["00:04.0: 0000:00:04.0 "] },
    Line { typed: "exit", shows: &[] },
];

/// The same in the scenario `shell-disks`, where the disk is driven by process 1, and 02:00.0 is an NVMe controller
/// with virtual functions. Its own driver, process 3, found no namespace, as that of 00:07.0 did before.
pub const SHELL_DISKS: &[Line] = &[
    Line { typed: "ps", shows: &["   1  nvme-driver ", "`start nvme-driver` starts a program of "] },
    Line { typed: "disk", shows: &["disk0    0000:00:03.0  nvme-driver "] },
    Line { typed: "disk disk0 read 0", shows: &["Sluice test disk"] },
    Line { typed: "kill 1", shows: &["process 1 (nvme-driver) killed"] },
    Line { typed: "disk disk0 read 0", shows: &["the device is out of order"] },
    // Without a device there is nothing to drive, and without the right no disk.
    Line { typed: "start nvme-driver", shows: &["process 4 (nvme-driver) "] },
    Line { typed: "start nvme-driver 0 00:03.0", shows: &["process 5 (nvme-driver) "] },
    Line { typed: "disk disk0 read 0", shows: &["the device is out of order"] },
    Line {
        typed: "start nvme-driver 0 00:03.0 disk",
        shows: &["process 6 (nvme-driver) makes a disk of 0000:00:03.0"],
    },
    Line { typed: "disk", shows: &["disk0    0000:00:03.0  nvme-driver "] },
    Line { typed: "disk disk0 read 0", shows: &["Sluice test disk"] },
    Line { typed: "ps", shows: &["   6  nvme-driver "] },
    // Two more, beside it.
    Line { typed: "sriov 02:00.0 3", shows: &["3 virtual functions of 2"] },
    Line { typed: "sriov 02:00.0 2", shows: &["0000:02:00.1\n", "0000:02:00.2\n"] },
    Line { typed: "lspci", shows: &["0000:02:00.2  1b36:0010"] },
    Line {
        typed: "start nvme-driver 0 02:00.0 disk",
        shows: &["02:00.0: 0000:02:00.0 has a driver already"],
    },
    Line {
        typed: "start nvme-driver 0 02:00.1 disk",
        shows: &["process 7 (nvme-driver) makes a disk of 0000:02:00.1"],
    },
    Line {
        typed: "start nvme-driver 1 02:00.2 disk",
        shows: &["process 8 (nvme-driver) makes a disk of 0000:02:00.2"],
    },
    Line {
        typed: "disk",
        shows: &["disk1    0000:02:00.1  nvme-driver ", "disk2    0000:02:00.2  nvme-driver "],
    },
    Line { typed: "ps", shows: &["   6  nvme-driver ", "   7  nvme-driver ", "   8  nvme-driver "] },
    Line { typed: "kill 7", shows: &["process 7 (nvme-driver) killed"] },
    Line { typed: "disk disk1 read 0", shows: &["the device is out of order"] },
    Line { typed: "disk disk2 read 0", shows: &["00 00 00 00"] },
    Line { typed: "disk disk0 read 0", shows: &["Sluice test disk"] },
    Line {
        typed: "start nvme-driver 0 02:00.1 disk",
        shows: &["process 9 (nvme-driver) makes a disk of 0000:02:00.1"],
    },
    Line {
        typed: "sriov 02:00.0 0",
        shows: &[
            "02:00.0 has no virtual functions",
            "process 8 (nvme-driver): 0000:02:00.2 was taken from it",
            "process 9 (nvme-driver): 0000:02:00.1 was taken from it",
        ],
    },
    Line { typed: "disk disk1 read 0", shows: &["there is no disk disk1"] },
    Line { typed: "start nvme-driver 0 02:00.1 disk", shows: &["there is no function 02:00.1"] },
    Line { typed: "disk disk0 read 0", shows: &["Sluice test disk"] },
    Line { typed: "sriov 02:00.0 1", shows: &["0000:02:00.1\n"] },
    Line {
        typed: "start nvme-driver 0 02:00.1 disk",
        shows: &["process 10 (nvme-driver) makes a disk of 0000:02:00.1"],
    },
    Line { typed: "exit", shows: &[] },
];
