//! What a scenario is: a machine, a kernel command line, and what has to come of it. The list is [`crate::matrix`].

use std::fmt;

use anyhow::Result;

use crate::hands::Device;
use crate::qemu::{Qemu, Version};
use crate::typist::Line;
use crate::workspace::Build;

/// One machine and what is expected of the kernel on it. [`Scenario::DEFAULT`] has the common values.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    /// What it shows, in one line.
    pub about: &'static str,
    pub build: Build,
    /// Properties of the `intel-iommu` device; `None` leaves the device out.
    pub iommu: Option<&'static str>,
    pub memory_mib: u64,
    /// How many CPUs, and what else QEMU's `-smp` is to know of them.
    pub cpus: &'static str,
    /// APIC ids of CPUs that `qemu` adds to those.
    pub added_apic_ids: &'static [u32],
    /// QEMU runs all CPUs in one thread. In several it aborts (`iotlb_to_section`) when one of them uses registers
    /// while another moves some, as each reset of a device with its BARs does.
    pub one_thread: bool,
    pub disk: DiskPlace,
    pub drive: Drive,
    /// There is no medium behind the disk: it reads as zeros and forgets what is written.
    pub hollow: bool,
    /// The network devices.
    pub nics: &'static [Nic],
    /// How much the guest fetches by each of them, in MiB.
    pub fetch_mib: u64,
    /// How many visitors each of the guest's servers has.
    pub visitors: usize,
    /// Firmware's tables are ours ([`crate::firmware`]), with memory reserved for a device.
    pub reserves: bool,
    /// Further QEMU arguments.
    pub qemu: &'static [&'static str],
    /// What can be plugged in while the guest runs.
    pub devices: &'static [Device],
    /// Whether somebody is at the machine who looks at the screens of displays, or keeps it from running, when the
    /// guest asks for it.
    pub attended: bool,
    /// What somebody types into the guest's shell, which ends the boot. No tests run by themselves then.
    pub typed: &'static [Line],
    /// Words of the kernel's command line besides those that every test boot has.
    pub cmdline: &'static str,
    /// Which in-kernel tests run.
    pub tests: &'static str,
    /// What the machine lacks, in the words of the tests that need it. Tests skipped for anything else fail.
    pub lacks: &'static [&'static str],
    /// What the QEMU and the host must offer.
    pub needs: &'static [Need],
    pub expect: Expect,
    /// Words that the last lines of some boot that broke off must have.
    pub last_words: &'static [&'static str],
    /// How long the guest may be silent before it counts as hung.
    pub silence_s: u64,
}

/// Where the disk is plugged in, which decides its requester id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskPlace {
    RootBus,
    RootPort,
    /// Behind a PCIe-to-PCI bridge: the IOMMU sees the bridge's alias, not the disk.
    ConventionalBridge,
}

/// What the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    VirtioBlk,
    Nvme,
}

/// A network device, on QEMU's user networking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nic {
    Virtio,
    E1000e,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    AtLeast(Version),
    /// A device model with this property.
    Property(&'static str, &'static str),
    /// So much memory and swap that the host can promise the guest its own.
    HostMemoryMib(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Every test passes, and so many disk ranges at least are compared with the host's side.
    AllPass { disk_reads: usize, disk_writes: usize },
    /// Exactly these tests fail, each taking the guest down; every other test runs and passes.
    TheseFail(&'static [&'static str]),
    /// The power goes while the guest writes. Whether all that was flushed is there afterwards.
    PowerCut { keeps: bool },
    /// Each line that is typed brings up what it should, and the guest powers off.
    Session,
    /// The kernel refuses to boot, and its last words have this among them.
    Refusal(&'static str),
}

impl Scenario {
    pub const DEFAULT: Scenario = Scenario {
        name: "",
        about: "",
        build: Build::Shipped,
        iommu: Some("intremap=on"),
        memory_mib: 1024,
        cpus: "1",
        added_apic_ids: &[],
        one_thread: false,
        disk: DiskPlace::RootBus,
        drive: Drive::VirtioBlk,
        hollow: false,
        nics: &[Nic::Virtio],
        fetch_mib: 2,
        visitors: 20,
        reserves: false,
        qemu: &[],
        devices: &[],
        attended: false,
        typed: &[],
        cmdline: "",
        tests: "*",
        lacks: &[],
        needs: &[],
        expect: Expect::AllPass { disk_reads: 2, disk_writes: 2 },
        last_words: &[],
        silence_s: 120,
    };

    /// The APIC ids of all CPUs, in order: those of `cpus` are numbered from 0 on.
    pub fn apic_ids(&self) -> Vec<u32> {
        let count = self.cpus.split(',').next().and_then(|count| count.parse().ok()).unwrap_or(1);
        (0..count).chain(self.added_apic_ids.iter().copied()).collect()
    }

    /// Whether there are [`hands`](crate::hands) at the machine.
    pub fn has_hands(&self) -> bool {
        self.attended || !self.devices.is_empty()
    }

    /// Whether somebody does something to the machine: plugs, looks, types, or cuts its power.
    pub fn needs_somebody(&self) -> bool {
        self.has_hands() || !self.typed.is_empty() || matches!(self.expect, Expect::PowerCut { .. })
    }

    /// Why this QEMU on this host cannot run the scenario, if it cannot.
    pub fn obstacle(&self, qemu: &Qemu, host_memory_mib: u64) -> Result<Option<Obstacle>> {
        for &need in self.needs {
            let met = match need {
                Need::AtLeast(version) => qemu.version >= version,
                Need::Property(device, property) => qemu.offers(device, property)?,
                Need::HostMemoryMib(mib) => host_memory_mib >= mib,
            };
            if !met {
                return Ok(Some(Obstacle { need, version: qemu.version, host_memory_mib }));
            }
        }
        Ok(None)
    }
}

/// A need that is not met, and by what.
#[derive(Debug)]
pub struct Obstacle {
    need: Need,
    version: Version,
    host_memory_mib: u64,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Need::AtLeast(version) => write!(f, "QEMU {version}"),
            Need::Property(device, property) => write!(f, "{device} with {property}"),
            Need::HostMemoryMib(mib) => write!(f, "{mib} MiB of memory and swap"),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.need {
            Need::HostMemoryMib(_) => write!(f, "needs {}, the host has {}", self.need, self.host_memory_mib),
            _ => write!(f, "needs {}, this is QEMU {}", self.need, self.version),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qemu(version: Version) -> Qemu {
        // No need that these tests state makes anyone start it.
        Qemu { program: "/nonexistent/qemu".into(), version }
    }

    #[test]
    fn an_unmet_need_says_what_is_missing() {
        let scenario = Scenario {
            needs: &[Need::AtLeast(Version(10, 0)), Need::HostMemoryMib(7000)],
            ..Scenario::DEFAULT
        };
        let reason = |version, memory| {
            scenario.obstacle(&qemu(version), memory).unwrap().map(|obstacle| obstacle.to_string())
        };
        assert_eq!(reason(Version(10, 0), 8000), None);
        assert_eq!(reason(Version(7, 2), 8000).unwrap(), "needs QEMU 10.0, this is QEMU 7.2");
        assert_eq!(
            reason(Version(10, 1), 4000).unwrap(),
            "needs 7000 MiB of memory and swap, the host has 4000"
        );
    }

    #[test]
    fn a_qemu_that_cannot_be_asked_is_an_error_and_no_skipped_scenario() {
        let scenario = Scenario { needs: &[Need::Property("edu", "dma_mask")], ..Scenario::DEFAULT };
        assert!(scenario.obstacle(&qemu(Version(10, 0)), 8000).is_err());
    }
}
