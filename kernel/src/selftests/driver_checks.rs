//! `iommu=debug`: a driver that does what no safe code can do is found out, and the kernel's own drivers are not.

use alloc::vec::Vec;
use core::ptr::NonNull;

use harness::{Context, Failure, check, check_eq, failure, test};
use iommu::{
    DmaDevice, FromDevice, PageBuffer, ToDevice,
    checks::Misuse,
    dma::{Direction, DmaBuffer, RawBuffer},
    dump::Visitor,
    platform::Unshareable,
};
use suites::{Machine, lacks};

use crate::{arch::clock::NS_PER_S, memory::layout};

/// What a driver that lets its device go has to drop what it mapped, and as much again for the thread that looks.
const GRACE_NS: u64 = NS_PER_S;
const PATIENCE_NS: u64 = 10 * NS_PER_S;

/// A buffer that is none: memory that belongs to somebody else.
struct Astray(NonNull<u8>, usize);

// SAFETY: it is a number, which nothing here reads or writes through.
unsafe impl Send for Astray {}

// SAFETY: it breaks what the trait asks for, which is what the tests are about. Each of them maps only what is refused,
// or memory that is still in the hands of another mapping, and lets no device write to the latter.
unsafe impl DmaBuffer for Astray {
    fn into_raw(self) -> RawBuffer {
        RawBuffer { first: self.0, bytes: self.1, cookie: 0 }
    }

    unsafe fn from_raw(raw: RawBuffer) -> Self {
        Self(raw.first, raw.bytes)
    }
}

/// What was found so far: how much, and the last of it.
#[derive(Default)]
struct Findings {
    found: u64,
    unchecked: u64,
    kept: Vec<Misuse>,
}

impl Visitor for Findings {
    fn misuse(&mut self, misuse: &Misuse) {
        self.kept.push(*misuse);
    }

    fn checks(&mut self, found: u64, unchecked: u64) {
        (self.found, self.unchecked) = (found, unchecked);
    }
}

fn findings(machine: &Machine) -> Findings {
    let mut findings = Findings::default();
    machine.iommu.visit(&mut findings);
    findings
}

/// What is found in the next seconds, if anything is.
fn next_finding(context: &Context<'_>, machine: &Machine, before: u64) -> Result<Misuse, Failure> {
    let deadline_ns = context.now_ns() + PATIENCE_NS;
    loop {
        let Findings { found, kept, .. } = findings(machine);
        match kept.last() {
            Some(&misuse) if found > before => return Ok(misuse),
            _ if context.now_ns() > deadline_ns => return Err(Failure::new("nothing was found")),
            _ => machine.host.relax(),
        }
    }
}

fn page() -> Result<PageBuffer, Failure> {
    PageBuffer::zeroed(1).ok_or_else(|| Failure::new("no memory"))
}

/// What is said of memory at `address` that a driver wants to map.
fn refused(machine: &Machine, dma: &DmaDevice, address: u64) -> Result<Unshareable, Failure> {
    let first = NonNull::new(address as *mut u8).ok_or_else(|| Failure::new("nothing is there"))?;
    let before = findings(machine).found;
    check!(dma.dma_map(Astray(first, 64), FromDevice).is_err(), "{address:#x} was mapped");
    let Findings { found, kept, .. } = findings(machine);
    check_eq!(found, before + 1);
    match kept.last() {
        Some(Misuse::NotForDevices { function, kind, address: seen, bytes: 64, origin }) => {
            check_eq!((*function, *seen as u64, origin.file()), (dma.function(), address, file!()));
            Ok(*kind)
        }
        other => Err(failure!("{other:?}")),
    }
}

fn lacks_checks(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    (!machine.options.debug).then_some("iommu=debug").or_else(|| lacks::isolated_edu(context))
}

fn map_astray<D: Direction>(
    dma: &DmaDevice,
    first: NonNull<u8>,
    direction: D,
) -> Result<iommu::Mapping<Astray, D>, Failure> {
    dma.dma_map(Astray(first, 4096), direction).map_err(|rejected| failure!("{}", rejected.error))
}

test! {
    /// First of these, after those of the disk.
    lacks = lacks_checks,
    fn all_is_well_with_the_kernels_own_drivers(context) {
        let Findings { found, unchecked, kept } = findings(Machine::of(context)?);
        check_eq!((found, unchecked), (0, 0), "{kept:?}");
    }
}

test! {
    /// The kernel's image and stacks are refused, and named.
    lacks = lacks_checks,
    fn kernel_memory_is_named(context) {
        let machine = Machine::of(context)?;
        let edu = machine.edu(0)?;
        let local = [0_u8; 64];
        check_eq!(refused(machine, &edu.dma, layout::text().start)?, Unshareable::Code);
        check_eq!(refused(machine, &edu.dma, layout::rodata().end - 8)?, Unshareable::Constants);
        check_eq!(refused(machine, &edu.dma, layout::data().start)?, Unshareable::Variables);
        check_eq!(refused(machine, &edu.dma, local.as_ptr() as u64)?, Unshareable::Stack);
        check_eq!(refused(machine, &edu.dma, layout::WINDOW.start)?, Unshareable::Other);
    }
}

test! {
    /// A page that a device may write is mapped for it once more.
    lacks = lacks_checks,
    fn memory_lent_twice_is_noticed(context) {
        let machine = Machine::of(context)?;
        let edu = machine.edu(0)?;
        let page = page()?;
        let first = NonNull::from(&page[..]).cast();
        let mapping = edu.dma.dma_map(page, FromDevice)?;
        let before = findings(machine).found;
        let line = line!() + 1;
        let again = map_astray(&edu.dma, first, ToDevice)?;
        let misuse = next_finding(context, machine, before)?;
        let Misuse::Overlap { new, old } = misuse else { return Err(failure!("{misuse}")) };
        check_eq!((new.iova, old.iova, new.memory), (again.iova(), mapping.iova(), old.memory));
        check!(new.origin.file() == file!() && old.origin.line() < line, "{misuse}");
        again.unmap()?;
        mapping.unmap()?;
        check_eq!(findings(machine).found, before + 1);
    }
}

test! {
    /// The device writes while the CPU has the page.
    lacks = lacks_checks,
    fn devices_out_of_turn_are_noticed(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        edu.load(3)?;
        let mapping = edu.dma.dma_map(page()?, FromDevice)?;
        let iova = mapping.iova();
        let before = findings(machine).found;
        let mapping = mapping.sync_for_cpu().sync_for_device();
        check_eq!(findings(machine).found, before);
        let synced = mapping.sync_for_cpu();
        edu.push(iova, 16)?;
        let mapping = synced.sync_for_device();
        let misuse = next_finding(context, machine, before)?;
        let Misuse::WrittenWhileSynced { lent, .. } = misuse else { return Err(failure!("{misuse}")) };
        check_eq!((lent.function, lent.iova), (edu.dma.function(), iova));
        mapping.unmap()?;
    }
}

test! {
    /// A driver ends, and a page of its is still mapped.
    deadline_ms = 30_000,
    lacks = lacks_checks,
    fn what_a_driver_leaves_behind_is_named(context) {
        let machine = Machine::of(context)?;
        let edu = machine.edu(0)?;
        let function = edu.dma.function();
        let leaked = edu.dma.dma_map(page()?, FromDevice)?;
        let (iova, before) = (leaked.iova(), findings(machine).found);
        let start_ns = context.now_ns();
        core::mem::forget(leaked);
        machine.reopen_edu(edu)?;
        let misuse = next_finding(context, machine, before)?;
        check!(context.now_ns() - start_ns >= GRACE_NS, "it had no time to give it back");
        let Misuse::Leaked(lent) = misuse else { return Err(failure!("{misuse}")) };
        check_eq!((lent.function, lent.iova, lent.origin.file()), (function, iova, file!()));
        check_eq!(findings(machine).found, before + 1);
    }
}
