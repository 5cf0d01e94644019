//! Scalable mode programmed by hand: what the model keeps, and what it complains of.

mod by_hand;

use by_hand::*;
use iommu::platform::Registers;
use vtd_model::{Denied, MachineConfig, Reason, Rule, UnitConfig};

const SCALABLE: u64 = 1 << 10;
const WIDE: u64 = 1 << 11;
const IOVA: u64 = 0x5000;

/// Descriptors of 256 bits, and where the next one goes.
struct Wide {
    bench: Bench,
    tail: u64,
}

/// What leads to the second-stage table of [`SOURCE`].
struct Chain {
    context: u64,
    directory: u64,
    pasid: u64,
}

impl Wide {
    /// A unit in scalable mode, on, with everything forgotten and an empty root table.
    fn new() -> Self {
        Self::of(MachineConfig::scalable(1))
    }

    fn of(config: MachineConfig) -> Self {
        let mut wide = Self { bench: Bench::off(config), tail: 0 };
        let bench = &wide.bench;
        bench.registers.write64(IQT, 0);
        bench.registers.write64(IQA, bench.queue | WIDE);
        bench.command(QIE, true);
        bench.set_root(bench.root | SCALABLE);
        wide.forget(&[context_global(), pasid_cache(3, 0), iotlb_global()]);
        wide.bench.command(TE, true);
        wide
    }

    fn post(&mut self, (low, high): (u64, u64)) {
        let slot = self.bench.queue + self.tail;
        [low, high, 0, 0]
            .into_iter()
            .zip((slot..).step_by(8))
            .for_each(|(word, at)| self.bench.put(at, word));
        self.tail = (self.tail + 32) % 4096;
    }

    fn wait(&mut self) {
        self.bench.put(self.bench.status, 0);
        self.post(self.bench.wait_descriptor(7));
        self.bench.registers.write64(IQT, self.tail);
        assert!(self.bench.wait_for(|bench| bench.load(bench.status) as u32 == 7), "the queue is stuck");
    }

    /// Each with a wait of its own.
    fn forget(&mut self, descriptors: &[(u64, u64)]) {
        for &descriptor in descriptors {
            self.post(descriptor);
            self.wait();
        }
    }

    /// One page mapped for [`SOURCE`] in `domain`.
    fn one_page(&mut self, domain: u64) -> (Chain, u64) {
        let memory = self.bench.lend(1);
        let top = self.bench.page();
        self.bench.map(top, IOVA, memory | RW);
        let [table, directory, pasid] = [(); 3].map(|()| self.bench.page());
        self.bench.put(pasid + 8, domain);
        self.bench.put(pasid, second_stage(top));
        self.bench.put(directory, pasid | 1);
        let context = table + u64::from(SOURCE) * 32;
        self.bench.put(context, directory | 1);
        self.bench.put(self.bench.root, table | 1);
        (Chain { context, directory, pasid }, memory)
    }
}

/// The first word of a PASID entry for a table of 48 bits.
fn second_stage(table: u64) -> u64 {
    table | 2 << 6 | 2 << 2 | 1
}

/// Of what is cached of the second stage: domain 3, or the page at [`IOVA`] there.
fn iotlb_of_second_stage(granularity: u64) -> (u64, u64) {
    (2 | granularity << 4 | 3 << 6 | 3 << 16, if granularity == 3 { IOVA } else { 0 })
}

fn pasid_cache(granularity: u64, domain: u64) -> (u64, u64) {
    (7 | granularity << 4 | domain << 16, 0)
}

fn denied(reason: Reason) -> Result<u64, Denied> {
    Err(Denied::Fault(reason))
}

#[test]
fn a_pasid_entry_stays_until_its_domain_is_invalidated() {
    let mut wide = Wide::new();
    let (chain, memory) = wide.one_page(3);
    let device = wide.bench.device();
    assert_eq!(probe(&device, IOVA), Ok(memory));
    // Entries are looked at when something is invalidated.
    wide.forget(&[iotlb_global()]);
    wide.bench.put(chain.pasid, 0);
    wide.forget(&[context_global(), pasid_cache(0, 4), iotlb_global()]);
    assert_eq!(probe(&device, IOVA), Ok(memory), "still by the entry that was cached");
    wide.forget(&[pasid_cache(0, 3)]);
    assert_eq!(probe(&device, IOVA), denied(Reason::PasidNotPresent));
    let rules = wide.bench.rules();
    assert!(rules.contains(&Rule::ChangedWhilePresent), "{rules:?}: below a context entry that was present");
}

#[test]
fn each_entry_on_the_way_has_reasons_of_its_own() {
    type Spoil = fn(&Bench, &Chain);
    let spoilt: [(Spoil, Reason); 8] = [
        (|bench, chain| bench.put(chain.context, chain.directory), Reason::ScalableContextNotPresent),
        (
            |bench, chain| bench.put(chain.context, chain.directory | 1 << 5 | 1),
            Reason::ScalableContextReserved,
        ),
        (|bench, chain| bench.put(chain.context + 8, 1), Reason::RequestPasid),
        (
            |bench, chain| bench.put(chain.context, chain.directory | 1 << 3 | 1),
            Reason::ScalableContextInvalid,
        ),
        (|bench, chain| bench.put(chain.directory, 0), Reason::PasidDirectoryNotPresent),
        (|bench, chain| bench.put(chain.directory, chain.pasid | 1 << 2 | 1), Reason::PasidDirectoryReserved),
        (|bench, chain| bench.put(chain.pasid + 16, 1), Reason::PasidReserved),
        (|bench, chain| bench.put(chain.pasid, chain.pasid | 4 << 6 | 1), Reason::PasidInvalid),
    ];
    for (spoil, reason) in spoilt {
        let mut wide = Wide::new();
        let (chain, _) = wide.one_page(3);
        spoil(&wide.bench, &chain);
        assert_eq!(probe(&wide.bench.device(), IOVA), denied(reason));
    }
    let wide = Wide::new();
    assert_eq!(probe(&wide.bench.device(), IOVA), denied(Reason::ScalableRootNotPresent));
}

#[test]
fn the_queue_and_the_mode_must_fit() {
    let bench = Bench::off(MachineConfig::scalable(1));
    bench.set_root(bench.root | SCALABLE);
    bench.registers.write64(IQA, bench.queue);
    bench.command(QIE, true);
    bench.command(TE, true);
    assert_eq!(bench.rules(), [Rule::CommandOrder], "narrow descriptors");
    let bench = Bench::off(MachineConfig::plain(1));
    bench.set_root(bench.root | SCALABLE);
    assert_eq!(bench.rules(), [Rule::ReservedBits], "a unit that has no scalable mode");
    let mut bench = Bench::new(MachineConfig::scalable(1));
    bench.registers.write64(RTADDR, bench.root | SCALABLE);
    bench.command(SRTP, true);
    assert_eq!(bench.rules(), [Rule::CommandOrder], "another mode while translation is on");
    bench = Bench::new(MachineConfig::scalable(1));
    bench.post(&[pasid_cache(3, 0)]);
    assert!(bench.wait_for(|bench| bench.registers.read32(FSTS) & 1 << 4 != 0), "refused in legacy mode");
    assert_eq!(bench.rules(), [Rule::BadInvalidation]);
}

#[test]
fn only_a_wait_keeps_caches_apart() {
    for batch in [[context_global(), pasid_cache(3, 0)], [pasid_cache(3, 0), iotlb_global()]] {
        let mut wide = Wide::new();
        batch.into_iter().for_each(|descriptor| wide.post(descriptor));
        wide.wait();
        assert_eq!(wide.bench.rules(), [Rule::InvalidationOrder]);
    }
}

#[test]
fn the_first_stage_is_not_invalidated_as_the_second() {
    let complaints = |config: MachineConfig, descriptor| {
        let mut wide = Wide::of(config);
        wide.forget(&[descriptor]);
        wide.bench.rules()
    };
    for granularity in [2, 3] {
        let descriptor = iotlb_of_second_stage(granularity);
        assert_eq!(complaints(MachineConfig::scalable(1), descriptor), []);
        assert_eq!(complaints(MachineConfig::first_stage(1), descriptor), [Rule::BadInvalidation]);
    }
    assert_eq!(complaints(MachineConfig::first_stage(1), iotlb_global()), []);
}

/// Of a unit that has both stages, what counts is which of them a domain is translated by.
#[test]
fn a_domain_of_the_first_stage_is_not_invalidated_as_one_of_the_second() {
    const FIRST_STAGE_RW: u64 = 0x67;
    let mut config = MachineConfig::scalable(1);
    config.units[0].first_stage = true;
    let mut wide = Wide::of(config);
    let (chain, memory) = wide.one_page(3);
    let table = wide.bench.load(chain.pasid) & !0xfff;
    let mut slot = table;
    for level in (1..=4).rev() {
        slot = (slot & !0xfff) + (IOVA >> (12 + 9 * (level - 1)) & 0x1ff) * 8;
        let next = wide.bench.load(slot) & !0xfff;
        wide.bench.put(slot, next | FIRST_STAGE_RW);
        slot = next;
    }
    wide.bench.put(chain.pasid + 16, table);
    wide.bench.put(chain.pasid, 1 << 6 | 1);
    assert_eq!(probe(&wide.bench.device(), IOVA), Ok(memory));
    wide.forget(&[iotlb_of_second_stage(2)]);
    assert_eq!(wide.bench.rules(), [Rule::BadInvalidation]);
}

#[test]
fn the_capability_registers_say_what_the_mode_has() {
    let plain = UnitConfig::plain(0).ecap();
    assert_eq!(UnitConfig::scalable(0).ecap(), plain | 1 << 43 | 1 << 46);
    let first = UnitConfig { scalable_coherent: true, ..UnitConfig::first_stage(0) };
    assert_eq!(first.ecap(), plain | 1 << 43 | 1 << 47 | 1 << 48);
    assert_eq!(first.cap(), UnitConfig::plain(0).cap() | 1 << 56);
}
