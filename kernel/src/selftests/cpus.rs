//! Several CPUs at once. On a machine with one CPU these tests show the same of that one.

use alloc::{
    boxed::Box,
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};
use core::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

use harness::{Failure, check, check_eq, failure, test};
use iommu::platform::MAX_CPUS;
use mm::{PAGE_BYTES, PhysRange};

use crate::{
    arch::{
        Cpu, InterruptGuard,
        apic::{self, Ipi},
        clock::{self, NS_PER_MS, NS_PER_S},
        interrupts, probe,
    },
    memory::{self, Alias, frames},
    smp,
    sync::{IrqMutex, Rank},
    threads::{self, Event},
};

/// What tests wait at most. A host with other things to do keeps emulated CPUs waiting for seconds, each at another
/// time.
const PATIENCE_NS: u64 = 40 * NS_PER_S;

/// A place where all CPUs meet: nobody goes on before everybody came, as often as they like.
struct Meeting {
    arrived: AtomicUsize,
    members: usize,
    deadline_ns: u64,
}

impl Meeting {
    fn new(members: usize, deadline_ns: u64) -> Self {
        Self { arrived: AtomicUsize::new(0), members, deadline_ns }
    }

    /// Called with interrupts off or on. False if somebody did not come in time, now or before.
    fn attend(&self) -> bool {
        let ticket = self.arrived.fetch_add(1, SeqCst);
        let everybody = (ticket / self.members + 1) * self.members;
        while self.arrived.load(SeqCst) < everybody {
            if clock::now_ns() > self.deadline_ns {
                return false;
            }
            smp::serve_flush();
            core::hint::spin_loop();
        }
        true
    }
}

/// Runs `body` on every CPU at the same time, each in a thread bound to it, and returns what they found, by number of
/// the CPU.
fn on_every_cpu<R: Send + 'static>(
    deadline_ns: u64,
    body: impl Fn(&Meeting) -> R + Send + Sync + 'static,
) -> Result<Vec<R>, Failure> {
    let cpus = smp::count();
    let shared = Arc::new((Meeting::new(cpus, deadline_ns), body));
    let found = Arc::new(IrqMutex::new(Rank::Device, Vec::from_iter((0..cpus).map(|_| None))));
    let threads = (0..cpus).map(|cpu| {
        let (shared, found) = (shared.clone(), found.clone());
        threads::spawn_on(
            cpu,
            "on-every-cpu",
            Box::new(move || {
                let (meeting, body) = &*shared;
                if meeting.attend() {
                    let result = body(meeting);
                    found.lock()[cpu] = Some(result);
                }
            }),
        )
    });
    for thread in threads.collect::<Result<Vec<_>, _>>()? {
        check!(thread.join(deadline_ns + NS_PER_S), "a cpu did not finish");
    }
    check!(clock::now_ns() < deadline_ns, "the cpus did not come together in time");
    let found = core::mem::take(&mut *found.lock());
    found
        .into_iter()
        .map(|result| result.ok_or(failure!("the cpus did not all run at the same time")))
        .collect()
}

test! {
    /// A bound thread runs on its CPU, and all of them at the same time: each with interrupts off waits for the others.
    deadline_ms = 60_000,
    fn every_cpu_runs_its_threads(context) {
        let found = on_every_cpu(context.now_ns() + PATIENCE_NS, |meeting| {
            let _guard = InterruptGuard::new();
            (meeting.attend(), Cpu::current().index())
        })?;
        check_eq!(found, Vec::from_iter((0..smp::count()).map(|cpu| (true, cpu))));
        check_eq!(smp::count(), smp::listed().clamp(1, MAX_CPUS), "CPUs that run, and that firmware lists");
        let mut ids: Vec<u32> = smp::online().map(Cpu::apic_id).collect();
        ids.sort_unstable();
        ids.dedup();
        check_eq!(ids.len(), smp::count(), "two CPUs have one APIC id");
        // The host knows which there are.
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        context.value("apic-ids", format_args!("{}", ids.join(" ")));
    }
}

test! {
    /// Threads that are bound to no CPU spread over all.
    deadline_ms = 60_000,
    fn threads_go_where_there_is_room(context) {
        let deadline = context.now_ns() + PATIENCE_NS;
        let meeting = Arc::new(Meeting::new(smp::count(), deadline));
        let threads = (0..smp::count()).map(|_| {
            let meeting = meeting.clone();
            threads::spawn("anywhere", Box::new(move || {
                // Never switched away from, so each needs a CPU of its own.
                let _guard = InterruptGuard::new();
                meeting.attend();
            }))
        });
        for thread in threads.collect::<Result<Vec<_>, _>>()? {
            check!(thread.join(deadline), "a thread did not end");
        }
        check!(context.now_ns() < deadline, "not all had a CPU");
    }
}

test! {
    /// A page that one CPU unmaps is unmapped on all, although each has just used it.
    deadline_ms = 60_000,
    fn an_unmapped_page_is_gone_everywhere(context) {
        const ROUNDS: usize = 8;
        let deadline = context.now_ns() + PATIENCE_NS;
        let frame = frames::allocate_zeroed(1).ok_or(failure!("no frame"))?;
        let shared: Arc<IrqMutex<Option<Alias>>> = Arc::new(IrqMutex::new(Rank::Device, None));
        let found = on_every_cpu(deadline, move |meeting| {
            let mut wrong = 0;
            for round in 0..ROUNDS {
                let cpu = Cpu::current().index();
                let is_owner = cpu == round % smp::count();
                if is_owner {
                    // SAFETY: a frame that nothing else uses.
                    *shared.lock() = unsafe { Alias::writable(PhysRange::new(frame, PAGE_BYTES)) };
                }
                meeting.attend();
                let address = shared.lock().as_ref().map_or(0, |alias| alias.as_ptr() as u64);
                // SAFETY: the frame may be read at any time.
                wrong += usize::from(unsafe { probe::read(address) }.is_err());
                meeting.attend();
                if is_owner {
                    let alias = shared.lock().take();
                    drop(alias);
                }
                meeting.attend();
                // SAFETY: as above.
                wrong += usize::from(unsafe { probe::read(address) }.is_ok());
                meeting.attend();
            }
            wrong
        })?;
        // SAFETY: allocated above; no mapping is left.
        unsafe { frames::free(frame, 1) };
        check!(found.iter().all(|&wrong| wrong == 0), "wrong accesses by cpu: {found:?}");
    }
}

test! {
    /// All CPUs flush all others at the same time, with interrupts off, and while others want a lock.
    deadline_ms = 60_000,
    fn cpus_flush_each_other_at_once(context) {
        const ROUNDS: u64 = 5;
        let (before, started) = (smp::flushes(), clock::now_ns());
        let lock = Arc::new(IrqMutex::new(Rank::Device, ()));
        on_every_cpu(context.now_ns() + PATIENCE_NS, move |meeting| {
            for _ in 0..ROUNDS {
                let guard = InterruptGuard::new();
                meeting.attend();
                smp::flush_all_cpus();
                drop(guard);
                let held = lock.lock();
                smp::flush_all_cpus();
                drop(held);
            }
        })?;
        check_eq!(smp::flushes() - before, 2 * ROUNDS * smp::count() as u64);
        log::debug!("{} ns a flush", (clock::now_ns() - started) / (2 * ROUNDS * smp::count() as u64));
    }
}

test! {
    /// A CPU that is not there is left out after a while, and the page that it would have started at is unmapped again.
    deadline_ms = 60_000,
    fn a_cpu_that_does_not_come_is_left_out(_context) {
        let cpus = smp::count();
        let nobody = (1..=0xfe).rev().find(|&id| smp::online().all(|cpu| cpu.apic_id() != id));
        let nobody = nobody.ok_or(failure!("there is every CPU"))?;
        let started = smp::start_one(nobody, 20 * NS_PER_MS);
        check_eq!(started, Err(smp::StartError::NoAnswer));
        check_eq!(smp::count(), cpus);
        let page = memory::start_page().ok_or(failure!("no page to start at"))?;
        super::memory::check_unmapped(page.as_u64())?;
    }
}

test! {
    /// Firmware that lists CPUs without end is believed for a few of them.
    deadline_ms = 60_000,
    fn cpus_that_are_not_there_are_not_asked_for_ever(_context) {
        let nobody = |id: &u32| smp::online().all(|cpu| cpu.apic_id() != *id);
        let listed: Vec<u32> = (1..=0xfe).rev().filter(nobody).collect();
        let cpus = smp::count();
        check_eq!(smp::start_all(&listed, 20 * NS_PER_MS), smp::MAX_LEFT_OUT);
        check_eq!(smp::count(), cpus);
    }
}

test! {
    /// Interrupts arrive at the CPU that they are sent to, and devices get all CPUs in turn.
    deadline_ms = 60_000,
    fn interrupts_arrive_where_they_are_sent(context) {
        let deadline = context.now_ns() + PATIENCE_NS;
        let seen = Arc::new(AtomicU64::new(0));
        let handler = {
            let seen = seen.clone();
            interrupts::allocate(Box::new(move || {
                seen.fetch_or(1 << Cpu::current().index(), SeqCst);
            }))
        };
        let vector = handler.ok_or(failure!("no vector is free"))?;
        let mut expected = 0;
        for _ in 0..smp::count() {
            let cpu = smp::next_cpu(|_| true);
            expected |= 1_u64 << cpu.index();
            apic::send(cpu.apic_id(), Ipi::Vector(vector.number()));
            while seen.load(SeqCst) != expected && context.now_ns() < deadline {
                core::hint::spin_loop();
            }
            check_eq!(seen.load(SeqCst), expected, "after one to cpu {}", cpu.index());
        }
        check_eq!(expected.count_ones() as usize, smp::count(), "some CPU had no turn");
        check_eq!(smp::next_cpu(|_| false).index(), 0, "where none is reachable");
    }
}

test! {
    /// A thread that becomes ready wakes its idle CPU, which does not sleep on until something else happens there.
    deadline_ms = 60_000,
    fn idle_cpus_wake_at_once(context) {
        const ROUNDS: usize = 3;
        for cpu in 0..smp::count() {
            let (request, answer) = (Arc::new(Event::new()), Arc::new(Event::new()));
            let sleeper = {
                let (request, answer) = (request.clone(), answer.clone());
                let deadline = context.now_ns() + PATIENCE_NS;
                threads::spawn_on(cpu, "sleeper", Box::new(move || {
                    for _ in 0..=ROUNDS {
                        answer.signal();
                        request.wait(deadline);
                    }
                }))?
            };
            for round in 0..=ROUNDS {
                // A host that is busy may not run the CPU for a while.
                check!(answer.wait(context.now_ns() + 8 * NS_PER_S), "cpu {cpu} slept on in round {round}");
                // Time for the CPU to become idle.
                threads::sleep_until(context.now_ns() + 2 * NS_PER_MS);
                request.signal();
            }
            check!(sleeper.join(context.now_ns() + 8 * NS_PER_S), "cpu {cpu} slept on");
        }
    }
}

test! {
    /// Signals between CPUs that are all busy reach their threads.
    deadline_ms = 60_000,
    fn no_wake_up_is_lost_under_load(context) {
        const ROUNDS: usize = 15;
        let deadline = context.now_ns() + PATIENCE_NS;
        let stop = Arc::new(AtomicBool::new(false));
        let cpus = smp::count();
        let mut load = Vec::new();
        for cpu in 0..cpus {
            let stop = stop.clone();
            load.push(threads::spawn_on(cpu, "load", Box::new(move || {
                while !stop.load(Relaxed) {
                    threads::yield_now();
                }
            }))?);
        }
        let mut players = Vec::new();
        let lost = Arc::new(AtomicUsize::new(0));
        for pair in 0..cpus + 1 {
            let (there, back) = (Arc::new(Event::new()), Arc::new(Event::new()));
            for (own, other) in [(there.clone(), back.clone()), (back, there.clone())] {
                let lost = lost.clone();
                let body = Box::new(move || {
                    for _ in 0..ROUNDS {
                        lost.fetch_add(usize::from(!own.wait(deadline)), Relaxed);
                        other.signal();
                    }
                });
                // Half of them stay on two neighbouring CPUs.
                let cpu = (pair + players.len()) % cpus;
                players.push(if pair % 2 == 0 {
                    threads::spawn_on(cpu, "bound", body)?
                } else {
                    threads::spawn("free", body)?
                });
            }
            there.signal();
        }
        let stuck = players.iter().filter(|player| !player.join(deadline)).count();
        stop.store(true, Relaxed);
        check_eq!(stuck, 0, "players that waited in vain");
        for thread in load {
            check!(thread.join(deadline), "a thread that only yields did not end");
        }
        check_eq!(lost.load(Relaxed), 0, "signals lost");
    }
}

test! {
    /// A lock excludes the other CPUs, and sleepers on all of them wake.
    deadline_ms = 60_000,
    fn locks_hold_on_all_cpus(context) {
        const ROUNDS: u64 = 2_000;
        let count = Arc::new(IrqMutex::new(Rank::Device, 0_u64));
        let shared = count.clone();
        on_every_cpu(context.now_ns() + PATIENCE_NS, move |_| {
            for round in 0..ROUNDS {
                let mut count = shared.lock();
                let seen = core::hint::black_box(*count);
                core::hint::spin_loop();
                *count = seen + 1;
                drop(count);
                if round % 500 == 0 {
                    threads::sleep_until(clock::now_ns() + NS_PER_MS);
                }
            }
        })?;
        check_eq!(*count.lock(), ROUNDS * smp::count() as u64);
    }
}

test! {
    /// No CPU is ever behind what another one has seen of the time.
    deadline_ms = 60_000,
    fn all_cpus_have_one_clock(context) {
        const ROUNDS: usize = 5_000;
        let latest = AtomicU64::new(0);
        let behind = on_every_cpu(context.now_ns() + PATIENCE_NS, move |_| {
            let mut behind_ns = 0;
            for _ in 0..ROUNDS {
                let before = latest.load(SeqCst);
                let now = clock::now_ns();
                behind_ns = behind_ns.max(before.saturating_sub(now));
                latest.fetch_max(now, SeqCst);
            }
            behind_ns
        })?;
        check!(behind.iter().all(|&ns| ns == 0), "ns behind, by cpu: {behind:?}");
    }
}

test! {
    /// Frames that one CPU takes are no other's, and what another one gives back is not lost.
    deadline_ms = 60_000,
    fn frames_belong_to_one_cpu_at_a_time(context) {
        const FRAMES: usize = 100;
        let deadline = context.now_ns() + PATIENCE_NS;
        let cpus = smp::count();
        let before = frames::statistics().free;
        let handed_on: Arc<[IrqMutex<Vec<_>>]> =
            (0..cpus).map(|_| IrqMutex::new(Rank::Device, Vec::with_capacity(FRAMES))).collect();
        let wrong = on_every_cpu(deadline, move |meeting| {
            let cpu = Cpu::current().index();
            let mut wrong = 0;
            for _ in 0..FRAMES {
                let Some(frame) = frames::allocate(1) else { continue };
                let word = memory::layout::direct(frame) as *mut u64;
                // SAFETY: the frame is this thread's.
                unsafe { word.write_volatile(frame.as_u64() ^ cpu as u64) };
                handed_on[cpu].lock().push(frame);
            }
            meeting.attend();
            let neighbour = (cpu + 1) % smp::count();
            for frame in handed_on[neighbour].lock().drain(..) {
                let word = memory::layout::direct(frame) as *const u64;
                // SAFETY: the frame is this thread's now, and its neighbour wrote it.
                wrong += usize::from(unsafe { word.read_volatile() } != frame.as_u64() ^ neighbour as u64);
                // SAFETY: as above; nobody uses it any more.
                unsafe { frames::free(frame, 1) };
            }
            wrong
        })?;
        check!(wrong.iter().all(|&wrong| wrong == 0), "frames overwritten, by cpu: {wrong:?}");
        // Stacks of the threads above are kept for others, and their tables.
        let kept = cpus * (memory::stacks::STACK_PAGES + 1);
        let lost = before.saturating_sub(frames::statistics().free);
        check!(lost <= kept, "{lost} frames lost");
    }
}
