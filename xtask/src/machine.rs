//! The machine: QEMU's command line for a scenario.

use std::ffi::OsString;
use std::path::Path;

use crate::scenario::{DiskPlace, Drive, Nic, Scenario};
use crate::{disk, firmware};

/// Processor and accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processor {
    /// Emulated, with every feature that QEMU can emulate.
    Emulated,
    /// Emulated, one tick of the time-stamp counter for each instruction: exactly reproducible.
    Counting,
    /// The same, but while no CPU has anything to do the clock goes as the host's does, so that devices get their time.
    CountingWithDevices,
    /// The host's own, through KVM.
    Kvm,
}

/// How the guest's serial console is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// Standard input and output, with QEMU's monitor behind Ctrl-A C.
    Terminal,
    /// Standard output only.
    Output,
    /// Standard input and output, and nothing else on them.
    Typed,
    /// The log only.
    Silent,
}

/// The files of one boot.
pub struct Files<'a> {
    pub kernel: &'a Path,
    pub disk: &'a Path,
    /// Where QEMU keeps a log of what reaches the disk.
    pub write_log: Option<&'a Path>,
    /// All that the guest wrote on its console, whatever `Console` is.
    pub console_log: &'a Path,
    pub control: &'a Path,
}

/// Everything that decides one QEMU command line.
pub struct Machine<'a> {
    pub scenario: &'a Scenario,
    pub processor: Processor,
    pub console: Console,
    pub cmdline: &'a str,
    /// A port of the host's for each network device: what comes there goes to the guest's web server.
    pub ports: &'a [u16],
    pub files: Files<'a>,
}

/// The guest's power switch writes here: QEMU ends with `(value << 1) | 1`.
const EXIT_PORT: &str = "0xf4";
/// Where on the root bus the first network device is.
const FIRST_NIC: u32 = 0x8;
/// The control channel's port (see `control`).
const CONTROL_PORT: &str = "0xe9";

impl Machine<'_> {
    pub fn arguments(&self) -> Vec<OsString> {
        let mut list = List::default();
        self.board(&mut list);
        self.channels(&mut list);
        // The IOMMU comes before the devices it translates for: QEMU gives each its address space on creation.
        if let Some(properties) = self.scenario.iommu {
            list.option("-device", format!("intel-iommu,{properties}"));
        }
        self.disk(&mut list);
        attackers(&mut list);
        self.nics(&mut list);
        list.0.extend(self.scenario.qemu.iter().map(OsString::from));
        list.file("-kernel", "", self.files.kernel);
        list.option("-append", self.cmdline.to_string());
        list.0
    }

    fn board(&self, list: &mut List) {
        let (machine, processor) = match self.processor {
            Processor::Emulated if self.scenario.one_thread => {
                ("q35", &["-accel", "tcg,thread=single", "-cpu", "max"][..])
            }
            Processor::Emulated => ("q35", &["-accel", "tcg", "-cpu", "max"][..]),
            Processor::Counting => ("q35", &["-cpu", "qemu64", "-icount", "shift=0,sleep=off"][..]),
            Processor::CountingWithDevices => ("q35", &["-cpu", "qemu64", "-icount", "shift=0,sleep=on"][..]),
            // Interrupt remapping needs the IOAPIC in QEMU, not in KVM.
            Processor::Kvm => ("q35,kernel-irqchip=split", &["-accel", "kvm", "-cpu", "host"][..]),
        };
        let acpi = if self.scenario.reserves { ",acpi=off" } else { "" };
        list.option("-M", format!("{machine}{acpi}"));
        if let (true, Some(folder)) = (self.scenario.reserves, self.files.control.parent()) {
            list.0.extend(firmware::arguments(folder));
        }
        list.0.extend(processor.iter().map(OsString::from));
        list.option("-smp", self.scenario.cpus.to_string());
        list.option("-m", format!("{}M", self.scenario.memory_mib));
        // A triple fault ends QEMU instead of booting again.
        list.0
            .extend(["-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"].map(OsString::from));
    }

    fn channels(&self, list: &mut List) {
        let console = match self.console {
            Console::Terminal => "stdio,id=console,mux=on,signal=off,logfile=",
            Console::Output | Console::Typed => "stdio,id=console,signal=off,logfile=",
            Console::Silent => "file,id=console,path=",
        };
        list.file("-chardev", console, self.files.console_log);
        list.option("-serial", "chardev:console".into());
        if self.console == Console::Terminal {
            list.option("-mon", "chardev=console".into());
        }
        if self.scenario.has_hands() && self.console == Console::Silent {
            list.option("-chardev", "stdio,id=monitor,signal=off".into());
            list.option("-mon", "chardev=monitor,mode=control".into());
        }
        list.file("-chardev", "file,id=control,path=", self.files.control);
        list.option("-device", format!("isa-debugcon,iobase={CONTROL_PORT},chardev=control"));
        list.option("-device", format!("isa-debug-exit,iobase={EXIT_PORT},iosize=4"));
    }

    fn disk(&self, list: &mut List) {
        let bus = match self.scenario.disk {
            DiskPlace::RootBus => "pcie.0,addr=0x3",
            DiskPlace::RootPort => {
                list.option(
                    "-device",
                    "pcie-root-port,id=disk-port,bus=pcie.0,addr=0x3,chassis=1,slot=1".into(),
                );
                "disk-port"
            }
            DiskPlace::ConventionalBridge => {
                list.option("-device", "pcie-pci-bridge,id=disk-bridge,bus=pcie.0,addr=0x3".into());
                "disk-bridge,addr=0x1"
            }
        };
        self.medium(list);
        let device = match self.scenario.drive {
            // Without iommu_platform=on QEMU's virtio devices reach memory past the IOMMU; a legacy interface
            // cannot negotiate it. Without an IOMMU the same device takes physical addresses.
            Drive::VirtioBlk => {
                format!("virtio-blk-pci,drive=disk,bus={bus},iommu_platform=on,disable-legacy=on")
            }
            Drive::Nvme => format!("nvme,serial=disk,drive=disk,bus={bus}"),
        };
        list.option("-device", device);
    }

    fn nics(&self, list: &mut List) {
        for ((number, nic), port) in (0..).zip(self.scenario.nics).zip(self.ports) {
            list.option("-netdev", format!("user,id=net{number},hostfwd=tcp:127.0.0.1:{port}-:80"));
            // As for the disk. Without `romfile=` firmware would have a network boot program for it.
            let device = match nic {
                Nic::Virtio => "virtio-net-pci,iommu_platform=on,disable-legacy=on",
                Nic::E1000e => "e1000e",
            };
            let place = FIRST_NIC + number;
            list.option(
                "-device",
                format!("{device},romfile=,netdev=net{number},bus=pcie.0,addr={place:#x}"),
            );
        }
    }

    /// What the disk stores its blocks in: the image, below a log of what reaches it if there is to be one, below two
    /// sectors that fail.
    fn medium(&self, list: &mut List) {
        if self.scenario.hollow {
            let bytes = disk::SECTORS * disk::SECTOR_BYTES as u64;
            let medium = format!("driver=null-co,node-name=disk,size={bytes},read-zeroes=on");
            return list.option("-blockdev", medium);
        }
        list.file("-blockdev", "driver=file,node-name=image,filename=", self.files.disk);
        let below = match self.files.write_log {
            None => "image",
            Some(log) => {
                list.file("-blockdev", "driver=file,node-name=log,filename=", log);
                list.option(
                    "-blockdev",
                    "driver=blklogwrites,node-name=logged,file=image,log=log,log-sector-size=512".into(),
                );
                "logged"
            }
        };
        let fails = |index, kind, sector| {
            format!(
                ",inject-error.{index}.event=none,inject-error.{index}.iotype={kind},inject-error.{index}.sector={sector}"
            )
        };
        let failures = fails(0, "read", disk::UNREADABLE) + &fails(1, "write", disk::UNWRITABLE);
        list.option("-blockdev", format!("driver=blkdebug,node-name=disk,image={below}{failures}"));
    }
}

/// The devices that try to reach memory they were not given: three `edu` functions (two to claim, one of them
/// behind a root port, and one that stays unclaimed) and an NVMe controller, the fast one.
fn attackers(list: &mut List) {
    const EDU: &str = "edu,dma_mask=0xffffffffffffffff";
    list.option("-device", format!("{EDU},bus=pcie.0,addr=0x4"));
    list.option("-device", "pcie-root-port,id=edu-port,bus=pcie.0,addr=0x5,chassis=2,slot=2".into());
    list.option("-device", format!("{EDU},bus=edu-port"));
    list.option("-device", format!("{EDU},bus=pcie.0,addr=0x6"));
    list.option("-device", "nvme,serial=attacker,bus=pcie.0,addr=0x7".into());
}

#[derive(Default)]
struct List(Vec<OsString>);

impl List {
    fn option(&mut self, name: &str, value: String) {
        self.0.extend([name.into(), value.into()]);
    }

    /// An option whose value ends in a path. QEMU splits option values at commas and takes a doubled one as itself.
    fn file(&mut self, name: &str, prefix: &str, path: &Path) {
        let path = path.to_string_lossy();
        let path = if prefix.is_empty() { path.into_owned() } else { path.replace(',', ",,") };
        self.option(name, format!("{prefix}{path}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(scenario: &Scenario, processor: Processor, console: Console) -> String {
        let files = Files {
            kernel: Path::new("/k,1"),
            disk: Path::new("/d,1"),
            write_log: None,
            console_log: Path::new("/console"),
            control: Path::new("/control"),
        };
        let machine =
            Machine { scenario, processor, console, cmdline: "exit test=*", ports: &[4080, 4081], files };
        let words: Vec<String> =
            machine.arguments().into_iter().map(|word| word.into_string().unwrap()).collect();
        words.join(" ")
    }

    #[test]
    fn the_default_machine_has_its_devices_behind_the_iommu() {
        let line = line(&Scenario::DEFAULT, Processor::Emulated, Console::Silent);
        let iommu = line.find("-device intel-iommu,intremap=on").unwrap();
        assert!(iommu < line.find("virtio-blk-pci").unwrap() && iommu < line.find("edu,").unwrap());
        assert!(line.contains("iommu_platform=on,disable-legacy=on"));
        assert_eq!(line.matches("edu,dma_mask=0xffffffffffffffff").count(), 3);
        assert!(line.ends_with("-append exit test=*"));
    }

    #[test]
    fn there_are_as_many_cpus_as_the_scenario_says() {
        let scenario = Scenario { cpus: "2,maxcpus=4", ..Scenario::DEFAULT };
        assert!(line(&scenario, Processor::Emulated, Console::Silent).contains("-smp 2,maxcpus=4 "));
        assert!(line(&Scenario::DEFAULT, Processor::Emulated, Console::Silent).contains("-smp 1 "));
    }

    #[test]
    fn without_an_iommu_none_is_asked_for() {
        let scenario = Scenario { iommu: None, ..Scenario::DEFAULT };
        assert!(!line(&scenario, Processor::Emulated, Console::Silent).contains("intel-iommu"));
    }

    #[test]
    fn commas_in_paths_do_not_end_an_option() {
        let line = line(&Scenario::DEFAULT, Processor::Emulated, Console::Silent);
        assert!(line.contains("filename=/d,,1") && line.contains("-kernel /k,1"));
    }

    #[test]
    fn the_disk_goes_where_the_scenario_says() {
        for (place, bus) in [
            (DiskPlace::RootBus, "bus=pcie.0,addr=0x3,iommu_platform"),
            (DiskPlace::RootPort, "bus=disk-port,iommu_platform"),
            (DiskPlace::ConventionalBridge, "bus=disk-bridge,addr=0x1,iommu_platform"),
        ] {
            let scenario = Scenario { disk: place, ..Scenario::DEFAULT };
            assert!(line(&scenario, Processor::Emulated, Console::Silent).contains(bus), "{bus}");
        }
    }

    #[test]
    fn the_disk_is_what_the_scenario_says() {
        let scenario = Scenario { drive: Drive::Nvme, ..Scenario::DEFAULT };
        let nvme = line(&scenario, Processor::Emulated, Console::Silent);
        assert!(nvme.contains("-device nvme,serial=disk,drive=disk,bus=pcie.0,addr=0x3 "));
        assert!(!nvme.contains("virtio-blk"));
    }

    #[test]
    fn network_devices_are_behind_the_iommu_and_reachable_from_loopback_alone() {
        let scenario = Scenario { nics: &[Nic::Virtio, Nic::E1000e], ..Scenario::DEFAULT };
        let line = line(&scenario, Processor::Emulated, Console::Silent);
        assert!(line.contains("-netdev user,id=net0,hostfwd=tcp:127.0.0.1:4080-:80 -device virtio-net-pci,"));
        assert!(line.contains("disable-legacy=on,romfile=,netdev=net0,bus=pcie.0,addr=0x8"));
        assert!(line.contains("hostfwd=tcp:127.0.0.1:4081-:80 -device e1000e,romfile=,netdev=net1"));
    }

    #[test]
    fn only_a_terminal_gets_the_monitor_and_only_counting_counts() {
        let terminal = line(&Scenario::DEFAULT, Processor::Kvm, Console::Terminal);
        assert!(terminal.contains("-mon chardev=console") && terminal.contains("logfile=/console"));
        assert!(terminal.contains("kernel-irqchip=split") && !terminal.contains("icount"));
        let counting = line(&Scenario::DEFAULT, Processor::Counting, Console::Output);
        assert!(counting.contains("-cpu qemu64 -icount shift=0,sleep=off") && !counting.contains("-mon"));
    }
}
