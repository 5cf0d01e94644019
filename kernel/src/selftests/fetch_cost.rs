//! What a file costs that is fetched from the host by TCP: the driver, the DMA API, the interrupts, and all of TCP/IP,
//! checksums by the CPU among it.
//!
//! `fetch_cost` counts instructions, leaving out the ticks in which the CPU has nothing to do; it wants one CPU, and a
//! tick for each instruction. `fetch_speed` measures time.

use alloc::{format, sync::Arc, vec::Vec};

use harness::{Bencher, Failure, check_eq};
use net::{Interface, Sink};
use suites::{Machine, lacks, network, reports};

use crate::arch::{Cpu, clock};

/// Rounds that are measured, after one that is not. Odd, so that there is a median.
const ROUNDS: usize = 11;
/// What a round fetches.
const MIB: u64 = 8;

/// Nobody keeps what comes.
struct Nowhere;

impl Sink for Nowhere {
    fn take(&mut self, _: &[u8]) {}
}

/// What a round took.
struct Round {
    instructions: u64,
    ns: u64,
    doorbells: u64,
}

fn round(machine: &Machine, interface: &Interface) -> Result<Round, Failure> {
    let doorbells = || reports::units(&machine.iommu).iter().map(|unit| unit.doorbells).sum::<u64>();
    let (rung, busy, start_ns) = (doorbells(), Cpu::current().busy_ticks(), clock::now_ns());
    let bytes = MIB << 20;
    let fetched = network::fetch(machine, interface, &format!("/data/{bytes}"), Nowhere)??;
    let (instructions, ns) = (Cpu::current().busy_ticks() - busy, clock::now_ns() - start_ns);
    check_eq!(fetched.bytes, bytes);
    Ok(Round { instructions, ns, doorbells: doorbells() - rung })
}

/// By the first interface.
fn rounds(bencher: &Bencher<'_>) -> Result<Vec<Round>, Failure> {
    let machine = Machine::of(bencher.context())?;
    let all = network::interfaces(machine)?;
    let interface: &Arc<Interface> = all.first().ok_or_else(|| Failure::new("no interface"))?;
    round(machine, interface)?;
    (0..ROUNDS).map(|_| round(machine, interface)).collect()
}

harness::bench! {
    lacks = lacks::net_host,
    fn tcp_8m(bencher) {
        let rounds = rounds(bencher)?;
        let each = |value: fn(&Round) -> u64| rounds.iter().map(value).collect();
        bencher.report("instructions/MiB", each(|round| round.instructions / MIB));
        bencher.report("doorbells/MiB", each(|round| round.doorbells / MIB));
    }
}

mod fetch_speed {
    use super::{MIB, clock, lacks, rounds};

    harness::bench! {
        lacks = lacks::net_host,
        fn tcp_8m(bencher) {
            let rounds = rounds(bencher)?;
            let per_second = |ns: u64| MIB * 1000 * clock::NS_PER_S / ns.max(1);
            bencher.report("KiB/s", rounds.iter().map(|round| per_second(round.ns) * 1024 / 1000).collect());
        }
    }
}
