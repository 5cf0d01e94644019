//! What comes from outside: somebody types, or the power goes.

use super::{DEFAULT, processes::VIRTUAL_DISKS};
use crate::qemu::Version;
use crate::scenario::{Drive, Expect, Need, Scenario};
use crate::shell_session::{SHELL, SHELL_DISKS};

pub(super) const SCENARIOS: &[Scenario] = &[
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
];
