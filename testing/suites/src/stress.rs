//! Many threads on all CPUs, for a while: mapping, unmapping, retiring and dropping in shared and in separate domains,
//! while devices move data, one changes hands again and again, and an interrupt moves from CPU to CPU. At the end
//! everything is as it was.

use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};
use core::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

use drivers::{host::Host, lock::Lock, nvme::Controller};
use harness::{Failure, check, check_eq, test};
use iommu::{
    Bidirectional, DmaDevice, DmaError, FromDevice, Iommu, Iova, Mapping, PageBuffer, PciAddress, Rejected,
    dma::{Late, Retired},
};

use crate::{
    machine::{ClaimedEdu, Machine, lacks},
    mapping::await_live_mappings,
    pattern, reports,
};

const NS_PER_S: u64 = 1_000_000_000;
/// Mappings that a thread holds at most.
const HELD_MAX: usize = 24;
/// Retired buffers that a thread has not waited for at most.
const RETIRED_MAX: usize = 8;
/// Pages of one mapping at most.
const PAGES_MAX: u64 = 12;
/// Bytes that `edu` moves in one transfer.
const EDU_BYTES: usize = 256;
/// The fast attacker's rounds for one of `edu`, which takes 0.1 s.
const ROUNDS_PER_SAMPLE: u64 = 200;
/// How long a driver keeps the function that changes hands, in turns that it leaves to others.
const TENANCY_ROUNDS: usize = 4;
const INTERRUPT_DEADLINE_NS: u64 = 5 * NS_PER_S;
/// Frames that may be kept for the next time: tables, nodes and stores of three domains, and threads' stacks.
const FRAMES_KEPT_MAX: u64 = 4096;

/// What the threads have in common.
struct Common {
    host: Arc<dyn Host>,
    stop: AtomicBool,
    running: AtomicUsize,
    operations: AtomicUsize,
    /// How often the function of [`Tenancy`] was claimed and taken back.
    tenancies: AtomicUsize,
    problem: Lock<Option<String>>,
}

impl Common {
    /// Runs `body` in a thread until it fails or is told to stop.
    fn spawn(
        self: &Arc<Self>,
        mut body: impl FnMut() -> Result<(), Failure> + Send + 'static,
    ) -> Result<(), Failure> {
        let common = self.clone();
        self.running.fetch_add(1, SeqCst);
        let spawned = self.host.spawn(
            "stress",
            Box::new(move || {
                while !common.stop.load(Relaxed) {
                    if let Err(problem) = body() {
                        common.fail(&problem);
                    }
                    common.operations.fetch_add(1, Relaxed);
                }
                drop(body);
                common.running.fetch_sub(1, SeqCst);
            }),
        );
        if let Err(error) = spawned {
            self.running.fetch_sub(1, SeqCst);
            return Err(error.into());
        }
        Ok(())
    }

    fn fail(&self, problem: &Failure) {
        self.problem.lock().get_or_insert_with(|| format!("{problem}"));
        self.stop.store(true, SeqCst);
    }

    /// Stops the threads and waits until they have ended.
    fn finish(&self) -> Result<(), Failure> {
        self.stop.store(true, SeqCst);
        let deadline_ns = self.host.now_ns() + 10 * NS_PER_S;
        while self.running.load(SeqCst) > 0 {
            check!(self.host.now_ns() < deadline_ns, "{} threads do not end", self.running.load(SeqCst));
            self.host.relax();
        }
        match self.problem.lock().take() {
            Some(problem) => Err(Failure::new(problem)),
            None => Ok(()),
        }
    }
}

/// Random numbers (xorshift).
struct Random(u64);

impl Random {
    /// A number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A thread that maps, unmaps, retires and drops for one device, at random.
struct Mapper {
    dma: DmaDevice,
    held: Vec<(Mapping<PageBuffer, Bidirectional>, u64)>,
    /// Nobody waits for these yet.
    retired: Vec<(Retired<PageBuffer, Bidirectional>, u64)>,
    random: Random,
}

impl Mapper {
    fn new(dma: DmaDevice, seed: u64) -> Self {
        let (held, retired) = (Vec::with_capacity(HELD_MAX), Vec::with_capacity(RETIRED_MAX));
        Self { dma, held, retired, random: Random(seed) }
    }

    fn step(&mut self) -> Result<(), Failure> {
        if self.retired.len() == RETIRED_MAX || !self.retired.is_empty() && self.random.below(4) == 0 {
            return self.take_back();
        }
        let full = self.held.len() == HELD_MAX;
        if self.held.is_empty() || !full && self.random.below(2) == 0 {
            let (pages, seed) = (1 + self.random.below(PAGES_MAX), self.random.below(1 << 40));
            let buffer = pattern::pages(pages as usize, seed)?;
            self.held.push((self.dma.dma_map(buffer, Bidirectional)?, seed));
            return Ok(());
        }
        let victim = self.random.below(self.held.len() as u64) as usize;
        let (mapping, seed) = self.held.swap_remove(victim);
        match self.random.below(8) {
            // Left to the reaper.
            0 => drop(mapping),
            1 => drop(mapping.retire()),
            2..4 => self.retired.push((mapping.retire(), seed)),
            _ => pattern::expect(&mapping.unmap()?, seed, "a buffer that no device was told of")?,
        }
        Ok(())
    }

    /// Waits for a retired buffer, or takes it if it happens to be there.
    fn take_back(&mut self) -> Result<(), Failure> {
        let (retired, seed) = self.retired.swap_remove(self.random.below(self.retired.len() as u64) as usize);
        let buffer = match self.random.below(2) {
            0 => retired.wait()?,
            _ => match retired.poll()? {
                Late::Ready(buffer) => buffer,
                Late::Pending(retired) => {
                    self.retired.push((retired, seed));
                    return Ok(());
                }
            },
        };
        pattern::expect(&buffer, seed, "a retired buffer that no device was told of")
    }
}

/// A function that changes hands while threads of its drivers map and unmap.
struct Tenancy {
    iommu: Iommu,
    function: PciAddress,
    /// Of the driver that has it now, or had it last.
    dma: Lock<Option<DmaDevice>>,
}

impl Tenancy {
    /// One driver: the function is attached to a new domain, used for a moment, and taken back with all that is mapped.
    fn change_hands(&self, common: &Common) -> Result<(), Failure> {
        *self.dma.lock() = Some(self.iommu.claim(self.function)?);
        (0..TENANCY_ROUNDS).for_each(|_| common.host.relax());
        // Nobody has made the device do anything, so it is quiet.
        self.iommu.release(self.function, |_| true)?;
        common.tenancies.fetch_add(1, Relaxed);
        Ok(())
    }

    /// One thing that a driver does, who may find that the function is not its own any more.
    fn use_up(&self, random: &mut Random, common: &Common) -> Result<(), Failure> {
        let Some(dma) = self.dma.lock().clone() else {
            common.host.relax();
            return Ok(());
        };
        let seed = random.below(1 << 40);
        let buffer = pattern::pages(1 + random.below(PAGES_MAX) as usize, seed)?;
        let mapping = match dma.dma_map(buffer, Bidirectional) {
            Ok(mapping) => mapping,
            Err(Rejected { error: DmaError::Revoked, .. }) => return Ok(()),
            Err(rejected) => return Err(rejected.into()),
        };
        if random.below(4) == 0 {
            common.host.relax();
        }
        match random.below(4) {
            0 => drop(mapping),
            _ => match mapping.unmap() {
                Ok(buffer) => pattern::expect(&buffer, seed, "a buffer of a driver that came and went")?,
                // The reaper frees it.
                Err(DmaError::Revoked) => {}
                Err(error) => return Err(error.into()),
            },
        }
        Ok(())
    }
}

/// Starts a thread that has `function` change hands, and two that use it.
fn spawn_tenancy(common: &Arc<Common>, iommu: &Iommu, function: PciAddress) -> Result<(), Failure> {
    let dma = Lock::new(common.host.clone(), None);
    let tenancy = Arc::new(Tenancy { iommu: iommu.clone(), function, dma });
    for seed in 1..=2 {
        let (tenancy, common, mut random) = (tenancy.clone(), common.clone(), Random(seed << 20));
        common.clone().spawn(move || tenancy.use_up(&mut random, &common))?;
    }
    let shared = common.clone();
    common.spawn(move || tenancy.change_hands(&shared))
}

/// Moves the interrupt of `edu` to `cpu` while one is on its way: it arrives.
fn steer(edu: &mut ClaimedEdu, cpu: usize) -> Result<(), Failure> {
    edu.device.send_interrupt();
    edu.device.retarget_interrupt(cpu)?;
    check!(edu.device.await_interrupt(INTERRUPT_DEADLINE_NS), "an interrupt that moved to CPU {cpu} is lost");
    Ok(())
}

/// The fast attacker: one buffer after the other at the same address. After each unmap the device writes there, and
/// reaches the newer buffer, never the one that was unmapped.
struct Attacker {
    page: Iova,
    /// What was unmapped last at `page`, and what it contains.
    older: Option<(PageBuffer, u64)>,
}

impl Attacker {
    /// One buffer; false if another thread was given the address in between, which ends the row.
    fn attack(&mut self, nvme: &mut Controller, seed: u64) -> Result<bool, Failure> {
        let mapping = match nvme.dma().dma_map_at(pattern::pages(1, seed + 2)?, FromDevice, self.page) {
            Ok(mapping) => mapping,
            Err(Rejected { error: DmaError::IovaTaken { .. }, .. }) => {
                self.older = None;
                return Ok(false);
            }
            Err(rejected) => return Err(rejected.into()),
        };
        nvme.write_at(self.page)?;
        let mut newer = mapping.unmap()?;
        check_eq!(newer[..2], [0x36, 0x1b], "vendor id");
        if let Some((older, seed)) = &self.older {
            pattern::expect(older, *seed, "a buffer that was unmapped before")?;
        }
        pattern::fill(&mut newer, seed);
        self.older = Some((newer, seed));
        Ok(true)
    }
}

/// A transfer of the slow device, into a buffer that is then unmapped.
fn sample(edu: &mut ClaimedEdu, seed: u64) -> Result<(), Failure> {
    edu.load(seed)?;
    let mapping = edu.dma.dma_map(pattern::pages(1, seed + 1)?, FromDevice)?;
    edu.push(mapping.iova(), EDU_BYTES)?;
    pattern::expect(&mapping.unmap()?[..EDU_BYTES], seed, "what the slow device wrote")
}

/// What has to be the same afterwards: domain ids in use, and each function's mapped pages and faults.
fn balance(machine: &Machine, functions: &[PciAddress]) -> (usize, Vec<(u64, u64)>) {
    let of = |&function: &PciAddress| {
        let group = reports::group(&machine.iommu, function).unwrap_or_default();
        (group.domain.map_or(0, |domain| domain.mapped_pages), group.faults)
    };
    let domains = reports::units(&machine.iommu).iter().map(|unit| unit.domains).sum();
    (domains, functions.iter().map(of).collect())
}

test! {
    /// As long as `stress=` says, 5 s otherwise.
    deadline_ms = 300_000,
    lacks = |context| {
        let lacks = lacks::two_isolated_edus(context).or_else(|| lacks::idle_edu(context));
        lacks.or_else(|| lacks::isolated_nvme(context))
    },
    fn everything_at_once(context) {
        let machine = Machine::of(context)?;
        let (mut slow, mut other, mut nvme) = (machine.edu(0)?, machine.edu(1)?, machine.nvme()?);
        let idle = machine.idle_edu().ok_or_else(|| Failure::new("no unclaimed edu"))?;
        let functions = [slow.dma.function(), other.dma.function(), nvme.dma().function(), idle];
        // What an earlier test has dropped may still be with the reaper: afterwards there may be fewer, and not more.
        let live = machine.iommu.live_mappings();
        let before = balance(machine, &functions);
        let frames = machine.memory.free_frames();
        let common = Arc::new(Common {
            host: machine.host.clone(),
            stop: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            operations: AtomicUsize::new(0),
            tenancies: AtomicUsize::new(0),
            problem: Lock::new(machine.host.clone(), None),
        });
        let handles = [&slow.dma, &other.dma, nvme.dma(), nvme.dma()].map(DmaDevice::clone);
        for (number, dma) in handles.iter().cycle().take(2 * machine.host.cpus() + 2).enumerate() {
            let mut mapper = Mapper::new(dma.clone(), 0x9e37_79b9 + number as u64);
            common.spawn(move || mapper.step())?;
        }
        drop(handles);
        spawn_tenancy(&common, &machine.iommu, idle)?;

        let end_ns = machine.host.now_ns() + machine.stress_s * NS_PER_S;
        let mut attacker = Attacker { page: machine.fresh_page(), older: None };
        let (mut rounds, mut attacks, mut moves) = (0, 0, 0);
        while machine.host.now_ns() < end_ns && !common.stop.load(Relaxed) {
            let result = match rounds % ROUNDS_PER_SAMPLE {
                0 => sample(&mut slow, rounds).map(|()| true),
                _ => attacker.attack(&mut nvme, rounds),
            };
            match result {
                Ok(true) => attacks += 1,
                Ok(false) => attacker.page = machine.fresh_page(),
                Err(problem) => common.fail(&problem),
            }
            match steer(&mut other, moves % machine.host.cpus()) {
                Ok(()) => moves += 1,
                Err(problem) => common.fail(&problem),
            }
            rounds += 1;
        }
        drop(attacker);
        common.finish()?;

        await_live_mappings(machine, live)?;
        check_eq!(balance(machine, &functions), before, "domain ids, and pages and faults of each");
        let kept = frames.saturating_sub(machine.memory.free_frames());
        check!(kept <= FRAMES_KEPT_MAX, "{kept} frames are gone");
        let operations = common.operations.load(Relaxed);
        let tenancies = common.tenancies.load(Relaxed);
        let done = format!("{operations} operations, {tenancies} claims and releases, {attacks} attacks, {moves} moves");
        check!(operations > 0 && tenancies > 0 && attacks > 0 && moves > 0, "{done}");
        log::info!("{done}; {kept} frames kept");
    }
}
