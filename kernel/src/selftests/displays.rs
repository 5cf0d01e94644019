//! Displays in the hands of programs: somebody looks at what is on their screens, and the next program at what is left
//! of it.

use alloc::{sync::Arc, vec};

use drivers::pci::Id;
use harness::{Context, Failure, check, check_eq, failure, test};
use iommu::PciAddress;
use mm::table::x86::X86Access;
use program::Program;
use suites::{Machine, lacks, reports};
use x86::msr::{IA32_PAT, rdmsr};

use super::process::end_of;
use crate::{
    arch::{
        Cpu,
        clock::{self, NS_PER_MS, NS_PER_S},
        keyboard,
        memory_types::{PAT, UNCACHED, WRITE_COMBINING},
    },
    process::{self, Ending, GiveError, Giver, PAGES_MAX, Process, Space},
    programs,
    shell::processes::giver,
    smp,
    sync::{IrqMutex, Rank},
    threads,
};

/// How long the host may take to see a picture. It looks for 100 s, and calls a kernel hung that says nothing for 120
/// s.
const LOOK_NS: u64 = 110 * NS_PER_S;

const BOCHS: Id = Id { vendor: 0x1234, device: 0x1111 };
const VIRTIO_GPU: Id = Id { vendor: 0x1af4, device: 0x1050 };
/// Its memory, and its registers.
const BOCHS_MEMORY: u64 = 0;
const BOCHS_REGISTERS: u64 = 2;
/// Its registers, in a prefetchable BAR.
const VIRTIO_REGISTERS: u64 = 4;

/// A display, and what the host calls it.
struct Display<'a> {
    name: &'static str,
    machine: &'a Machine,
    giver: Giver,
    function: PciAddress,
}

impl<'a> Display<'a> {
    /// The one with this id that is behind a port, or on a root bus.
    fn find(context: &'a Context<'_>, name: &'static str, id: Id, is_behind: bool) -> Result<Self, Failure> {
        let machine = Machine::of(context)?;
        let mut functions = machine.functions.iter();
        let found = functions.find(|found| found.id == id && found.parent.is_some() == is_behind);
        let function = found.ok_or(failure!("no {name}"))?.address;
        Ok(Self { name, machine, giver: giver(machine), function })
    }

    fn bochs(context: &'a Context<'_>) -> Result<Self, Failure> {
        Self::find(context, "bochs", BOCHS, true)
    }

    fn gpu(context: &'a Context<'_>) -> Result<Self, Failure> {
        Self::find(context, "gpu", VIRTIO_GPU, false)
    }

    /// Starts a process that finds nothing in the memory that it gets, and shows a picture, and waits until that is on
    /// the screen.
    fn show(&self, context: &Context<'_>, picture: u32) -> Result<Arc<Process>, Failure> {
        let devices = vec![self.giver.give(self.function)?];
        let process = process::start("display", picture.into(), devices)?;
        self.look(context, picture, &|| match process.wait(0) {
            Some(ending) => Err(failure!("picture {picture}: {process} {ending}")),
            None => Ok(()),
        })?;
        Ok(process)
    }

    /// Has the host look at the screen, and waits until it has seen what there has to be, while `goes_on`.
    fn look(
        &self,
        context: &Context<'_>,
        picture: u32,
        goes_on: &dyn Fn() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        // Of another time.
        keyboard::was_pressed();
        context.look(self.name, picture);
        let deadline_ns = clock::now_ns() + LOOK_NS;
        while !keyboard::was_pressed() {
            goes_on()?;
            if clock::now_ns() > deadline_ns {
                return Err(failure!("nobody has seen picture {picture} on {}", self.name));
            }
            threads::sleep_until(clock::now_ns() + NS_PER_MS);
        }
        Ok(())
    }

    /// Takes the display from the process that has it.
    fn take_back(&self, process: &Process) -> Result<(), Failure> {
        process.kill();
        check_eq!(end_of(process)?, Ending::Killed);
        check_eq!(process::total_pages(), 0, "pages of processes");
        let group = reports::group(&self.machine.iommu, self.function).ok_or(failure!("no group"))?;
        check!(group.domain.is_none(), "{} has a domain", self.function);
        check_eq!(group.faults, 0, "faults of {}", self.function);
        Ok(())
    }
}

test! {
    /// What is in a display's own memory is gone before the next process can look at it, and both of them draw there.
    deadline_ms = 900_000,
    lacks = lacks::displays,
    fn a_picture_in_the_displays_memory_is_not_for_the_next_process(context) {
        let display = Display::bochs(context)?;
        for picture in [1, 2] {
            let process = display.show(context, picture)?;
            display.take_back(&process)?;
        }
    }
}

test! {
    /// A display fetches a picture by DMA from the process that has it, is taken back while it does, shows nothing of
    /// it then, and fetches another one from the next process.
    deadline_ms = 900_000,
    lacks = lacks::displays,
    fn a_picture_that_is_fetched_by_dma_goes_with_its_process(context) {
        let display = Display::gpu(context)?;
        let mappings = display.machine.iommu.live_mappings();
        for picture in [3, 4] {
            let process = display.show(context, picture)?;
            display.take_back(&process)?;
            check!(display.machine.iommu.live_mappings() <= mappings, "something is still mapped");
            display.look(context, 0, &|| Ok(()))?;
        }
    }
}

test! {
    /// A process sees the memory of its display with writes combined, and registers as they are, prefetchable or not.
    lacks = lacks::displays,
    fn memory_is_combined_and_registers_are_not(context) {
        let caching = X86Access::CACHE_DISABLE | X86Access::WRITE_THROUGH;
        for (display, bars) in [
            (Display::bochs(context)?, &[(BOCHS_MEMORY, WRITE_COMBINING), (BOCHS_REGISTERS, UNCACHED)][..]),
            (Display::gpu(context)?, &[(VIRTIO_REGISTERS, UNCACHED)]),
        ] {
            let mut given = display.giver.give(display.function)?;
            let file = programs::find("display").ok_or(failure!("no program"))?;
            let mut space = Space::new(PAGES_MAX).ok_or(failure!("no memory"))?;
            space.load(&Program::read(file.bytes)?).ok_or(failure!("no memory"))?;
            for &(bar, expected) in bars {
                let start = given.map_bar(bar, &mut space).map_err(|error| failure!("BAR {bar}: {error:?}"))?;
                let bytes = given.bar_bytes(bar).map_err(|error| failure!("BAR {bar}: {error:?}"))?;
                for address in [start, start + bytes - 1] {
                    let access = space.access_at(address).ok_or(failure!("BAR {bar}: nothing is there"))?;
                    check_eq!(access & caching, expected, "{} BAR {bar}", display.name);
                    check!(access.contains(X86Access::USER | X86Access::WRITE | X86Access::NO_EXECUTE));
                }
            }
        }
    }
}

test! {
    /// A display on a root bus has no reset: no process gets it.
    lacks = lacks::displays,
    fn a_display_that_cannot_be_reset_is_not_given(context) {
        let display = Display::find(context, "fixed", BOCHS, false)?;
        check!(matches!(display.giver.give(display.function), Err(GiveError::Claim(_))), "it was given");
    }
}

test! {
    /// Memory types mean the same to every CPU.
    fn each_cpu_has_the_same_memory_types(context) {
        for cpu in smp::online().map(Cpu::index) {
            let seen = Arc::new(IrqMutex::new(Rank::Device, None));
            let result = seen.clone();
            // SAFETY: reading it changes nothing.
            let look = alloc::boxed::Box::new(move || *result.lock() = Some(unsafe { rdmsr(IA32_PAT) }));
            let thread = threads::spawn_on(cpu, "look", look).map_err(|error| failure!("{error}"))?;
            check!(thread.join(context.now_ns() + 20 * NS_PER_S), "cpu {cpu} does not answer");
            check_eq!(*seen.lock(), Some(PAT), "cpu {cpu}");
        }
    }
}
