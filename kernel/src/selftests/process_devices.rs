//! Devices in the hands of programs that are not trusted.

use alloc::{sync::Arc, vec, vec::Vec};

use attacker::{Attack, LEFT, REFUSED};
use drivers::{
    edu,
    hotplug::{Drivers, Hotplug},
    pci::{Apertures, Bar, BarError, BarKind, Claimant, Claims, Device, Function, Misplaced},
};
use harness::{Context, Failure, check, check_eq, failure, test};
use iommu::{ClaimError, PciAddress, dump::DomainKind};
use mm::{PAGE_BYTES, PhysAddr, PhysRange};
use suites::{Machine, lacks, reports};

use super::process::end_of;
use crate::{
    arch::{
        clock::{self, NS_PER_MS},
        random,
    },
    memory::{self, layout},
    process::{self, Ending, GiveError, Giver, Process},
    shell::processes::giver,
    smp, threads,
};

/// What is blocked, whether the device has its process's addresses or memory that was shared with it.
pub(super) const OUT_OF_REACH: [Attack; 5] = [
    Attack::EduReachesKernel,
    Attack::EduReachesKernelsHalf,
    Attack::EduReachesDirectMap,
    Attack::EduReachesWhatItHad,
    Attack::EduWritesWhatItMayRead,
];

/// The `edu` that nobody has, and what it takes to give it to a process.
pub(super) struct Edu<'a> {
    pub machine: &'a Machine,
    pub giver: Giver,
    pub function: PciAddress,
}

impl<'a> Edu<'a> {
    pub fn of(context: &'a Context<'_>) -> Result<Self, Failure> {
        let machine = Machine::of(context)?;
        let function = machine.idle_edu().ok_or(failure!("no edu"))?;
        Ok(Self { machine, giver: giver(machine), function })
    }

    /// The same, to be given with the addresses of its process, or not.
    pub fn sharing(mut self, shares_spaces: bool) -> Self {
        self.giver.shares_spaces = shares_spaces;
        self
    }

    pub fn start(&self, attack: Attack) -> Result<Arc<Process>, Failure> {
        let devices = vec![self.giver.give(self.function)?];
        Ok(process::start("attacker", attack as u64, devices)?)
    }

    pub fn run(&self, attack: Attack) -> Result<Ending, Failure> {
        end_of(&*self.start(attack)?)
    }

    /// A process has it do each of `attacks`: that is blocked and recorded, and nothing is left.
    pub fn expect_blocked(&self, attacks: &[Attack]) -> Result<(), Failure> {
        for &attack in attacks {
            let faults = self.faults();
            check_eq!(self.run(attack)?, Ending::Exited(LEFT), "{attack:?}");
            check!(self.awaits_faults_beyond(faults), "{attack:?}: no fault was recorded");
            self.check_free()?;
        }
        Ok(())
    }

    /// Whether it has more faults than `before`. The event of one takes a while to be handled, on whatever CPU.
    pub fn awaits_faults_beyond(&self, before: u64) -> bool {
        let deadline_ns = clock::now_ns() + 2000 * NS_PER_MS;
        while self.faults() <= before && clock::now_ns() < deadline_ns {
            threads::sleep_until(clock::now_ns() + NS_PER_MS);
        }
        self.faults() > before
    }

    pub fn faults(&self) -> u64 {
        reports::group(&self.machine.iommu, self.function).map_or(0, |group| group.faults)
    }

    /// `process` comes to its end because its device was taken. One that waits for an interrupt may be told so first,
    /// and exit.
    pub fn expect_loss(&self, process: &Process) -> Result<(), Failure> {
        let ending = end_of(process)?;
        check!(
            matches!(ending, Ending::Killed | Ending::Exited(REFUSED)),
            "{} was lost: {ending:?}",
            self.function
        );
        Ok(())
    }

    /// Nobody has it, and nothing is left of what a process had shared with it.
    pub fn check_free(&self) -> Result<(), Failure> {
        let group = reports::group(&self.machine.iommu, self.function).ok_or(failure!("no group"))?;
        check!(group.domain.is_none(), "{} has a domain", self.function);
        // What was taken from a process while others took its device comes back by the reaper.
        let deadline_ns = clock::now_ns() + 2000 * NS_PER_MS;
        while process::total_pages() != 0 && clock::now_ns() < deadline_ns {
            threads::sleep_until(clock::now_ns() + NS_PER_MS);
        }
        check_eq!(process::total_pages(), 0, "pages of processes");
        Ok(())
    }
}

test! {
    /// A process drives the device that it was given: registers, memory that they share, and its interrupt. Afterwards
    /// the device is free, and the next process finds it as the first one did.
    lacks = lacks::idle_remapped_edu,
    fn a_process_drives_its_device(context) {
        let edu = Edu::of(context)?;
        let (faults, mappings) = (edu.faults(), edu.machine.iommu.live_mappings());
        for _ in 0..2 {
            check_eq!(edu.run(Attack::EduCopies)?, Ending::Exited(LEFT));
            edu.check_free()?;
        }
        check_eq!(edu.faults(), faults);
        check!(edu.machine.iommu.live_mappings() <= mappings, "something is still mapped");
    }
}

test! {
    /// What a process has its device do to memory that it has not shared with it, or not so, is blocked and recorded:
    /// the kernel's, its own, and what it shared before.
    lacks = lacks::idle_remapped_edu,
    fn memory_that_was_not_shared_is_out_of_reach(context) {
        const CODE_BYTES: usize = 64;
        let code = || {
            // SAFETY: code of the kernel, which can be read.
            unsafe { core::slice::from_raw_parts(layout::text().start as *const u8, CODE_BYTES) }.to_vec()
        };
        let before = code();
        let edu = Edu::of(context)?;
        edu.expect_blocked(&OUT_OF_REACH)?;
        check!(code() == before, "the kernel's code has changed");
    }
}

test! {
    /// A process sees the registers of its device and nothing behind them, and no call about a device takes hostile
    /// arguments.
    lacks = lacks::idle_remapped_edu,
    fn registers_end_where_they_end(context) {
        let edu = Edu::of(context)?;
        let Ending::Fault(exception) = edu.run(Attack::EduBeyondRegisters)? else {
            return Err(failure!("there is something behind the registers"));
        };
        let fault = exception.page_fault.ok_or(failure!("{exception}"))?;
        check!(!fault.is_protection() && fault.address.is_multiple_of(PAGE_BYTES), "{exception}");
        check_eq!(edu.run(Attack::EduCalls)?, Ending::Exited(LEFT));
        edu.check_free()?;
    }
}

test! {
    /// A process that is killed in the middle of a transfer, at any moment of it, leaves a quiet device, whose memory
    /// comes back, and which the next process can have. As often as `kills=` says, 3 times otherwise.
    deadline_ms = 900_000,
    lacks = lacks::idle_remapped_edu,
    fn a_killed_process_leaves_its_device_quiet(context) {
        let edu = Edu::of(context)?;
        let (faults, mappings) = (edu.faults(), edu.machine.iommu.live_mappings());
        for _ in 0..edu.machine.kills {
            let process = edu.start(Attack::EduWritesForEver)?;
            // A transfer takes 100 ms.
            threads::sleep_until(context.now_ns() + 10 * NS_PER_MS + random::seed() % (100 * NS_PER_MS));
            check_eq!(process.wait(0), None);
            process.kill();
            check_eq!(end_of(&process)?, Ending::Killed);
            edu.check_free()?;
        }
        check_eq!(edu.faults(), faults, "faults of a device that did nothing wrong");
        check!(edu.machine.iommu.live_mappings() <= mappings, "something is still mapped");
        check_eq!(edu.run(Attack::EduCopies)?, Ending::Exited(LEFT));
    }
}

test! {
    /// A process whose device is put in quarantine ends, and its device is free then.
    lacks = lacks::idle_remapped_edu,
    fn a_process_ends_with_its_device(context) {
        let edu = Edu::of(context)?;
        let process = edu.start(Attack::EduWritesForEver)?;
        threads::sleep_until(context.now_ns() + 30 * NS_PER_MS);
        check_eq!(process.wait(0), None);
        edu.machine.iommu.quarantine(edu.function)?;
        check_eq!(end_of(&process)?, Ending::Killed);
        edu.check_free()?;
        drop(edu.giver.give(edu.function)?);
    }
}

test! {
    /// No process gets a device that somebody has, one that cannot be isolated from others, a bridge, or none at all.
    lacks = lacks::idle_remapped_edu,
    fn not_every_device_is_given(context) {
        let edu = Edu::of(context)?;
        let _given = edu.giver.give(edu.function)?;
        check!(matches!(edu.giver.give(edu.function), Err(GiveError::Claim(_))), "it was given twice");
        let has_neighbours =
            |function: PciAddress| edu.machine.iommu.group(function).is_ok_and(|group| group.len() > 1);
        let functions = edu.machine.hotplug.functions()?;
        let shared = functions.iter().find(|found| has_neighbours(found.address));
        let shared = shared.ok_or(failure!("every function is alone in its group"))?.address;
        check!(matches!(edu.giver.give(shared), Err(GiveError::NotAlone { .. })), "{shared} was given");
        let absent = PciAddress::from_devfn(0, 0xff, 0xff);
        check!(matches!(edu.giver.give(absent), Err(GiveError::Absent)), "nothing was given");
        let giver = &edu.giver;
        let is_lone = |function| edu.machine.iommu.group(function).is_ok_and(|group| group.len() == 1);
        let open = |found| Device::open(giver.host.clone(), found);
        let is_bridge = |found| open(found).is_some_and(|device| device.is_bridge());
        let bridge = functions.iter().find(|found| is_lone(found.address) && is_bridge(found));
        let bridge = bridge.ok_or(failure!("no bridge is alone in its group"))?.address;
        check!(matches!(giver.give(bridge), Err(GiveError::Bridge)), "{bridge} was given");
    }
}

test! {
    /// Where a device can raise every interrupt no process gets any.
    lacks = lacks::idle_unremapped_edu,
    fn without_remapped_interrupts_none_is_given(context) {
        let edu = Edu::of(context)?;
        check!(matches!(edu.giver.give(edu.function), Err(GiveError::Interrupts)), "it was given");
    }
}

test! {
    /// That drivers' devices are trusted with all of RAM says nothing about those of processes.
    lacks = lacks::trusted_edu,
    fn passthrough_is_not_for_processes(context) {
        let edu = Edu::of(context)?;
        let given = edu.giver.give(edu.function)?;
        let group = reports::group(&edu.machine.iommu, given.function()).ok_or(failure!("no group"))?;
        check!(group.domain.is_some_and(|domain| domain.kind == DomainKind::Assigned), "{:?}", group.domain);
    }
}

test! {
    /// A process whose device is taken from it without a word ends as well, and the next owner keeps what it has then.
    lacks = lacks::idle_remapped_edu,
    fn a_process_ends_when_its_device_is_released(context) {
        let edu = Edu::of(context)?;
        let process = edu.start(Attack::EduWritesForEver)?;
        threads::sleep_until(context.now_ns() + 30 * NS_PER_MS);
        check_eq!(process.wait(0), None);
        edu.machine.release(edu.function)?;
        edu.expect_loss(&process)?;
        edu.check_free()?;
        check_eq!(edu.run(Attack::EduCopies)?, Ending::Exited(LEFT));
    }
}

test! {
    /// A process that ends while somebody else is taking its device waits for that, and keeps nothing then.
    lacks = lacks::idle_remapped_edu,
    fn a_process_ends_while_its_device_is_being_released(context) {
        let edu = Edu::of(context)?;
        let process = edu.start(Attack::EduWritesForEver)?;
        threads::sleep_until(context.now_ns() + 30 * NS_PER_MS);
        check_eq!(process.wait(0), None);
        let is_quiet = |member| {
            // The process has been told, and asks for the device again and again.
            threads::sleep_until(clock::now_ns() + 300 * NS_PER_MS);
            edu.machine.hotplug.is_quiet(&[edu.function], member)
        };
        edu.machine.iommu.release(edu.function, is_quiet)?;
        edu.expect_loss(&process)?;
        edu.check_free()?;
    }
}

test! {
    /// The end of a process takes no memory: there may be none.
    lacks = lacks::idle_remapped_edu,
    fn a_process_ends_without_memory(context) {
        let edu = Edu::of(context)?;
        check_eq!(edu.run(Attack::EduCopies)?, Ending::Exited(LEFT));
        let process = edu.start(Attack::EduWritesForEver)?;
        threads::sleep_until(context.now_ns() + 30 * NS_PER_MS);
        check_eq!(process.wait(0), None);
        let mut pieces: Vec<Vec<u8>> = Vec::with_capacity(1 << 16);
        let exhausted = memory::Exhausted::new();
        for bytes in [2048, 512, 128, 32, 8] {
            let piece = || {
                let mut piece = Vec::new();
                piece.try_reserve_exact(bytes).map(|()| piece)
            };
            while pieces.len() < pieces.capacity()
                && let Ok(piece) = piece()
            {
                pieces.push(piece);
            }
        }
        process.kill();
        let ending = process.wait(clock::now_ns() + 20_000 * NS_PER_MS);
        drop((exhausted, pieces));
        check_eq!(ending, Some(Ending::Killed));
        edu.check_free()?;
        check_eq!(edu.run(Attack::EduCopies)?, Ending::Exited(LEFT));
    }
}

test! {
    /// However often a device is given, it takes addresses for its registers once.
    lacks = lacks::idle_remapped_edu,
    fn a_device_is_given_again_and_again(context) {
        const TIMES: usize = 32;
        let edu = Edu::of(context)?;
        drop(edu.giver.give(edu.function)?);
        let (before, flushes) = (memory::window_bytes(), smp::flushes());
        for _ in 0..TIMES {
            drop(edu.giver.give(edu.function)?);
        }
        check_eq!(memory::window_bytes(), before, "bytes of the kernel's addresses");
        check!(smp::flushes() - flushes < TIMES as u64, "what stays mapped was flushed");
    }
}

/// Nobody drives what is plugged in.
struct Nobody;

impl Drivers for Nobody {
    fn bind(&self, _function: &Function) {}

    fn unbind(&self, _function: PciAddress, _is_gone: bool) {}
}

fn remapped_nvme(context: &Context<'_>) -> Option<&'static str> {
    lacks::isolated_nvme(context).or_else(|| lacks::idle_remapped_edu(context))
}

test! {
    /// A device that says that its registers are where somebody else's are is given to nobody: the kernel sets up its
    /// interrupts there.
    lacks = remapped_nvme,
    fn a_device_in_the_place_of_another_is_not_given(context) {
        let machine = Machine::of(context)?;
        let nvme = machine.nvme_as_any_device()?;
        let function = nvme.dma().function();
        machine.release(function)?;
        let mut known = machine.hotplug.functions()?;
        known.retain(|known| known.address == function);
        let bars = known.first().and_then(|known| known.bars).ok_or(failure!("{function} was not measured"))?;
        let bar = bars[0].ok_or(failure!("{function} has no registers"))?;
        let mut claims = Claims::new();
        claims.add(bar.base, bar.base + bar.bytes - 1, Claimant::Chipset)?;
        let (host, iommu) = (&machine.host, &machine.iommu);
        let hotplug = Hotplug::start(host, iommu, known, Apertures::nothing(), claims, Arc::new(Nobody));
        let refused = Giver { hotplug, ..giver(machine) }.give(function).err();
        machine.reopen_nvme(nvme)?;
        let is_misplaced = matches!(refused, Some(GiveError::Misplaced(Misplaced::Taken { .. })));
        check!(is_misplaced, "{function} in another one's place: {refused:?}");
    }
}

test! {
    /// Registers are a process's if nobody else can answer where its device says that they are.
    lacks = lacks::idle_remapped_edu,
    fn registers_of_others_are_not_lent(context) {
        let edu = Edu::of(context)?;
        let hotplug = &edu.machine.hotplug;
        let page = |first: u64| PhysRange::new(PhysAddr::new(first & !(PAGE_BYTES - 1)), PAGE_BYTES);
        let mut kinds = (false, false, false);
        for claim in hotplug.claims().iter() {
            for address in [claim.first, claim.last] {
                let refused = hotplug.check_registers(edu.function, page(address));
                check!(matches!(refused, Err(Misplaced::Taken { .. })), "{claim}: {refused:?}");
            }
            match claim.by {
                Claimant::Memory => kinds.0 = true,
                Claimant::ConfigurationSpace => kinds.1 = true,
                Claimant::RemappingUnit => kinds.2 = true,
                _ => {}
            }
        }
        check_eq!(kinds, (true, true, true), "memory, configuration space, a unit");
        let (mut own, mut others) = (0, 0);
        for function in hotplug.each() {
            let bars = function.bars.ok_or(failure!("{} was not measured", function.address))?;
            let is_placed = |bar: &&Bar| bar.kind != BarKind::Port && bar.base != 0;
            for bar in bars.iter().flatten().filter(is_placed) {
                let found = hotplug.check_registers(edu.function, page(bar.base));
                if function.address == edu.function {
                    check_eq!(found, Ok(()));
                    own += 1;
                } else {
                    check!(matches!(found, Err(Misplaced::Taken { .. })), "{bar:?} of {}", function.address);
                    others += 1;
                }
            }
        }
        check!(own > 0 && others > 1, "{own} BARs of its own, {others} of others");
    }
}

test! {
    /// A driver of the kernel's does not map what its device says to have and somebody else has. What every device
    /// has was compared when it was found.
    lacks = lacks::idle_remapped_edu,
    fn registers_of_others_are_not_for_the_kernels_drivers(context) {
        let edu = Edu::of(context)?;
        let (host, hotplug) = (&edu.machine.host, &edu.machine.hotplug);
        let unit = reports::units(&edu.machine.iommu).first().map(|unit| unit.base.as_u64());
        let mut functions = hotplug.functions()?;
        let unsettled = functions.iter().find(|found| found.places.is_none());
        check!(unsettled.is_none(), "nobody has compared the registers of {unsettled:?}");
        let index = functions.iter().position(|found| found.address == edu.function).ok_or(failure!("no edu"))?;
        drop(edu::Edu::open_polled(host, &functions[index])?);
        let bar = functions[index].bars.as_mut().and_then(|bars| bars[0].as_mut()).ok_or(failure!("no registers"))?;
        bar.base = unit.ok_or(failure!("no unit"))?;
        // Until it is compared it counts for nothing, and then it is refused.
        drop(edu::Edu::open_polled(host, &functions[index])?);
        hotplug.claims().settle(&**host, &mut functions, 0);
        let (before, opened) = (memory::window_bytes(), edu::Edu::open_polled(host, &functions[index]).err());
        let Some(edu::EduError::Bar(BarError::Misplaced { index: 0, why: Misplaced::Taken { .. } })) = opened else {
            return Err(failure!("it was opened: {opened:?}"));
        };
        check_eq!(memory::window_bytes(), before);
    }
}

test! {
    /// A device that firmware keeps memory for is no process's: firmware may have it use that at any time.
    lacks = lacks::reserved_edu,
    fn firmwares_reserved_memory_keeps_a_device_from_processes(context) {
        let edu = Edu::of(context)?;
        let function = edu.function;
        let refused = edu.giver.give(function).map(drop);
        check!(matches!(refused, Err(GiveError::Claim(ClaimError::Reserved { .. }))), "{refused:?}");
        let group = reports::group(&edu.machine.iommu, function).ok_or(failure!("no group"))?;
        check_eq!(group.mappings.len(), group.reserved.len(), "it was not left as it was");
    }
}
