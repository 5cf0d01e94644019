//! A device that faults without end: it ends in quarantine, and nobody else notices.

use alloc::{boxed::Box, sync::Arc};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use drivers::{
    block::{BlockDevice, BlockError, Completions, Operation, Request, Transfer, transfer},
    edu::{Edu, Transfer as EduTransfer, Way},
    host::Host,
};
use harness::{Failure, check, check_eq, failure, test};
use iommu::{
    Bidirectional, ClaimError, DmaError, FromDevice, Incident, PageBuffer, PciAddress, dump::GroupStanding,
    options::Quarantine, policy::Limits,
};

use crate::{
    edu::BYTES,
    faults::Expected,
    machine::{Machine, lacks},
    pattern, reports,
};

/// How long a storm may rage, and a thread may take to notice that it is to end.
const DEADLINE_NS: u64 = 20_000_000_000;

/// Commands of the flood: as many faults, if nobody stopped it.
const FLOOD: usize = 20_000;

/// Commands after which a unit's events are masked: many times as many as it may raise at once
/// ([`iommu`] allows some hundreds, and one a millisecond).
const BURST: usize = 4_000;

/// Lines in the log that a storm may not come to: those of its first faults, and what becomes of the attacker.
const LINES_MAX: u64 = 20;

/// Sectors that are read over and over, and pages that hold them.
const SECTORS: u32 = 64;
const PAGES: usize = SECTORS as usize * 512 / 4096;

/// Far less than the ten seconds that a disk has for a request.
const AT_ONCE_NS: u64 = 5_000_000_000;

/// Requests that a disk has when it is taken away.
const IN_FLIGHT: u64 = 4;

/// Waits for what is about to happen.
pub fn wait(machine: &Machine, what: &str, mut done: impl FnMut() -> bool) -> Result<(), Failure> {
    let deadline_ns = machine.host.now_ns().saturating_add(DEADLINE_NS);
    while !done() {
        check!(machine.host.now_ns() < deadline_ns, "{what} did not happen");
        machine.host.relax();
    }
    Ok(())
}

fn standing(machine: &Machine, function: PciAddress) -> Option<GroupStanding> {
    reports::group(&machine.iommu, function)?.standing
}

/// Reads the same sectors over and over, in a thread of its own.
struct Reader {
    shared: Arc<Progress>,
}

#[derive(Default)]
struct Progress {
    stop: AtomicBool,
    ended: AtomicBool,
    right: AtomicUsize,
    wrong: AtomicUsize,
}

fn read(host: &Arc<dyn Host>, disk: &dyn BlockDevice) -> Option<PageBuffer> {
    let buffer = PageBuffer::zeroed(PAGES)?;
    transfer(host, disk, Operation::Read(Transfer { first: 0, blocks: SECTORS, buffer })).ok()?
}

impl Reader {
    fn start(machine: &Machine) -> Result<Self, Failure> {
        let (host, shared) = (machine.host.clone(), Arc::<Progress>::default());
        let disk = machine.disk()?;
        let wanted =
            read(&host, &*disk).ok_or_else(|| failure!("the disk cannot be read before the storm"))?;
        let progress = shared.clone();
        let body = move || {
            while !progress.stop.load(Ordering::Relaxed) {
                let is_right = read(&host, &*disk).is_some_and(|got| got[..] == wanted[..]);
                let count = if is_right { &progress.right } else { &progress.wrong };
                count.fetch_add(1, Ordering::Relaxed);
            }
            progress.ended.store(true, Ordering::Release);
        };
        machine.host.spawn("reader", Box::new(body))?;
        Ok(Self { shared })
    }

    /// Ends the thread. All that it read must have been right.
    fn finish(self, machine: &Machine) -> Result<usize, Failure> {
        self.shared.stop.store(true, Ordering::Relaxed);
        wait(machine, "the end of the reader", || self.shared.ended.load(Ordering::Acquire))?;
        check_eq!(self.shared.wrong.load(Ordering::Relaxed), 0);
        Ok(self.shared.right.load(Ordering::Relaxed))
    }
}

test! {
    /// The fast attacker keeps its queue full at addresses that are not mapped, and every claimed `edu` joins in, while
    /// the disk is read. The attacker is stopped at the threshold, what the disk gives stays right, interrupts still
    /// count exactly, and after its release the attacker is a device like any other.
    deadline_ms = 90_000,
    lacks = lacks::isolated_nvme_and_disk,
    fn the_offender_is_quarantined_and_the_disk_goes_on(context) {
        let machine = Machine::of(context)?;
        // The host may pause the machine between any two faults for longer than the quiet period.
        let limits = Limits::default().without_decay();
        let _limits = machine.with_fault_limits(limits);
        let (live, logged) = (machine.iommu.live_mappings(), (machine.lines_logged)());
        let mut nvme = machine.nvme_as_any_device()?;
        let dma = nvme.dma().clone();
        let function = dma.function();
        let mapping = dma.dma_map(pattern::pages(1, 1)?, FromDevice)?;
        let told = Arc::new(AtomicUsize::new(0));
        let counter = told.clone();
        dma.on_incident(Arc::new(move |incident| {
            if incident == Incident::Quarantined {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }));
        let mut edus = (0..machine.edus()).map(|index| machine.edu(index)).collect::<Result<alloc::vec::Vec<_>, _>>()?;
        let reader = Reader::start(machine)?;
        for edu in &mut edus {
            edu.device.start(EduTransfer { way: Way::ToMemory, iova: machine.fresh_page(), offset: 0, bytes: BYTES })?;
        }
        let before = dma.fault_counts().own;
        let finished = nvme.flood(machine.fresh_page(), FLOOD)?;
        wait(machine, "quarantine", || told.load(Ordering::Relaxed) != 0)?;
        let Some(GroupStanding::Quarantined { on_scratch_page, condemned_at: Some(condemned_at) }) =
            standing(machine, function)
        else {
            return Err(failure!("condemned for no fault: {:?}", standing(machine, function)));
        };
        check_eq!(on_scratch_page, machine.options.quarantine == Quarantine::ScratchPage);
        let put_up_with = condemned_at - before;
        check!(
            (1..=u64::from(limits.quarantine_at())).contains(&put_up_with),
            "{put_up_with} faults were recorded before the verdict"
        );
        check!(finished < FLOOD, "the flood was not stopped");
        check_eq!(told.load(Ordering::Relaxed), 1);
        // Nothing more for it, and nothing back yet.
        check_eq!(machine.iommu.claim(function).map(drop), Err(ClaimError::Quarantined { function }));
        check_eq!(mapping.unmap().map(drop), Err(DmaError::Revoked));
        for edu in &mut edus {
            edu.device.finish()?;
            for round in 1..=10 {
                edu.device.raise_interrupt(round)?;
            }
            check!(!edu.device.await_interrupt(0), "an interrupt came that nobody raised");
            check_eq!(standing(machine, edu.device.function()), Some(GroupStanding::Claimed));
        }
        let lines = (machine.lines_logged)() - logged;
        check!(lines < LINES_MAX, "the storm wrote {lines} lines to the log");
        let reads = reader.finish(machine)?;
        check!(reads > 0, "the disk was not read");
        machine.reopen_nvme(nvme)?;
        let mut nvme = machine.nvme_as_any_device()?;
        check_eq!(nvme.identify()?.model(), "QEMU NVMe Ctrl");
        check_eq!(standing(machine, function), Some(GroupStanding::Claimed));
        wait(machine, "the return of all that was mapped", || machine.iommu.live_mappings() <= live)?;
    }
}

test! {
    /// Several devices fault at once, more than the unit has records for. It says so, which puts the requests of all
    /// its devices in doubt, and goes on recording: the next fault is there.
    deadline_ms = 60_000,
    lacks = lacks::two_isolated_edus,
    fn an_overflow_of_the_records_is_counted_and_ends(context) {
        let machine = Machine::of(context)?;
        let _limits = machine.with_fault_limits(Limits::none());
        let mut edus = (0..machine.edus()).map(|index| machine.edu(index)).collect::<Result<alloc::vec::Vec<_>, _>>()?;
        if machine.has_nvme() {
            // Afterwards the unit's events may be masked. That ends too.
            machine.nvme()?.flood(machine.fresh_page(), BURST)?;
        }
        let counts = edus[0].dma.fault_counts();
        // How close their transfers come to each other is the host's to say.
        wait(machine, "an overflow", || {
            for edu in &mut edus {
                let transfer = EduTransfer { way: Way::ToMemory, iova: machine.fresh_page(), offset: 0, bytes: BYTES };
                let _ = edu.device.start(transfer);
            }
            edus.iter_mut().for_each(|edu| {
                let _ = edu.device.finish();
            });
            edus[0].dma.fault_counts().unattributed > counts.unattributed
        })?;
        for edu in &mut edus {
            // The record of the last one may still be full when the next comes, if the host lets the CPU wait: that is
            // one more overflow, and over like the first.
            wait(machine, "a fault that is counted as its own", || {
                let (page, before) = (machine.fresh_page(), edu.dma.fault_counts());
                let recorded = edu.push(page, BYTES).is_ok()
                    && Expected::write(edu.device.function(), page).await_recorded(machine).is_ok();
                let after = edu.dma.fault_counts();
                recorded && (after.own, after.unattributed) == (before.own + 1, before.unattributed)
            })?;
        }
    }
}

test! {
    /// A device that masters the bus again in quarantine reaches nothing that it had, and is not heard. On a scratch
    /// page it finds what it wrote itself, anywhere.
    deadline_ms = 60_000,
    lacks = lacks::isolated_edu,
    fn in_quarantine_a_device_reaches_nothing_that_it_had(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        let function = edu.device.function();
        let page = machine.fresh_page();
        let mapping = edu.dma.dma_map_at(pattern::pages(1, 2)?, Bidirectional, page)?;
        edu.load(3)?;
        machine.iommu.quarantine(function)?;
        let faults = edu.dma.fault_count();
        // Its interrupts are taken away too.
        let mut rogue = Edu::open_polled(&machine.host, machine.function(function)?)?;
        for (way, iova) in [(Way::ToMemory, page), (Way::FromMemory, machine.fresh_page())] {
            rogue.transfer(EduTransfer { way, iova, offset: 0, bytes: BYTES })?;
        }
        drop(rogue);
        check_eq!(edu.dma.fault_count(), faults);
        machine.reopen_edu(edu)?;
        pattern::expect(&mapping.unmap()?, 2, "the page that was mapped")?;
        let read = machine.edu(0)?.contents()?;
        match machine.options.quarantine {
            Quarantine::Basic => check!(read[..BYTES].iter().all(|&byte| byte == 0), "it read something"),
            Quarantine::ScratchPage => pattern::expect(&read[..BYTES], 3, "what it wrote itself")?,
        }
    }
}

test! {
    /// What was mapped for a device comes back when its driver goes, whether the driver unmaps it or not, and the next
    /// driver of the device finds nothing of it.
    deadline_ms = 60_000,
    lacks = lacks::isolated_edu,
    fn a_device_changes_hands(context) {
        let machine = Machine::of(context)?;
        let edu = machine.edu(0)?;
        let function = edu.device.function();
        let page = machine.fresh_page();
        let live = machine.iommu.live_mappings();
        let kept = edu.dma.dma_map_at(pattern::pages(1, 2)?, FromDevice, page)?;
        let dropped = edu.dma.dma_map(pattern::pages(1, 3)?, FromDevice)?;
        machine.reopen_edu(edu)?;
        drop(dropped);
        pattern::expect(&kept.unmap()?, 2, "the old driver's page")?;
        wait(machine, "the return of what was dropped", || machine.iommu.live_mappings() <= live)?;
        let mut edu = machine.edu(0)?;
        check_eq!(edu.device.function(), function);
        let before = edu.dma.fault_count();
        edu.push(page, BYTES)?;
        check!(edu.dma.fault_count() > before, "the new driver's device reaches the old one's page");
        let mapping = edu.dma.dma_map_at(pattern::pages(1, 4)?, FromDevice, page)?;
        edu.load(5)?;
        edu.push(page, BYTES)?;
        pattern::expect(&mapping.unmap()?[..BYTES], 5, "the new driver's page")?;
    }
}

test! {
    /// A device whose driver does not start after a release is lent to nobody, and can be tried again.
    deadline_ms = 60_000,
    lacks = lacks::isolated_edu,
    fn a_restart_that_failed_is_tried_again(context) {
        let machine = Machine::of(context)?;
        let edu = machine.edu(0)?;
        let function = edu.dma.function();
        check!(machine.edu(0).is_err(), "two have the device");
        check!(edu.reopen(machine, |_, _| Err("out of order".into())).is_err(), "it has a driver");
        check_eq!(machine.edu(0).map(drop).map_err(|error| alloc::format!("{error}")), Err("out of order".into()));
        check!(machine.restart(function)?, "it has no driver");
        machine.edu(0)?.load(6)?;
    }
}

test! {
    /// The disk loses its driver and gets another; a request from before fails, and what comes after is right.
    deadline_ms = 60_000,
    lacks = lacks::isolated_disk,
    fn the_disk_is_taken_away_and_given_back(context) {
        let machine = Machine::of(context)?;
        let before = read(&machine.host, &*machine.disk()?).ok_or_else(|| failure!("the disk cannot be read"))?;
        let function = machine.disk()?.dma().function();
        let disk = machine.disk()?;
        let completions = Completions::new(&machine.host, IN_FLIGHT as usize)?;
        for tag in 0..IN_FLIGHT {
            let buffer = PageBuffer::zeroed(PAGES).ok_or_else(|| failure!("no memory"))?;
            let operation = Operation::Read(Transfer { first: 0, blocks: SECTORS, buffer });
            disk.submit(Request { tag, operation }, &completions).map_err(|rejected| rejected.reason)?;
        }
        let start_ns = machine.host.now_ns();
        machine.iommu.quarantine(function)?;
        for _ in 0..IN_FLIGHT {
            let done = completions.wait(start_ns + AT_ONCE_NS);
            let done = done.ok_or_else(|| failure!("a request waits for its deadline"))?;
            // What was done before is done; but for that, nothing succeeds. A driver that saw its device fail before it
            // was told has reset it, and unmapped what it had: that comes back. A device that a process drives never
            // had a buffer.
            let was_reset = matches!(done.result, Err(BlockError::Reset));
            let may_come_back = done.result.is_ok() || was_reset || machine.served_disk;
            check!(may_come_back || done.buffer.is_none(), "{:?} with a buffer", done.result);
        }
        check!(read(&machine.host, &*disk).is_none(), "a disk in quarantine was read");
        drop(disk);
        machine.reopen_disk(0)?;
        let after = read(&machine.host, &*machine.disk()?).ok_or_else(|| failure!("the disk cannot be read again"))?;
        check!(before[..] == after[..], "the disk reads differently");
    }
}
