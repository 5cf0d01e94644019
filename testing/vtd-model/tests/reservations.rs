//! Addresses reserved first and buffers linked later: any order of steps against an oracle, what each step costs, and
//! what comes back.

mod part;

use driven::Driven;
use iommu::{
    Bidirectional, DmaDevice, DmaError, Options, PageBuffer, ToDevice,
    dma::{Reservation, ScatterList, ScatterMapping, SegmentLimits, Stuck},
    options::Mode,
};
use part::{BESIDE, Part};
use vtd_model::{Access, Device, MachineConfig, ModelBuffer, Random, UnitConfig};

const PAGE: usize = 4096;

fn start_on(mut config: MachineConfig, options: Options) -> (Driven, DmaDevice, Device) {
    config.relax_ns = 1_000_000;
    let driven = Driven::start_with(config, options).expect("units that work");
    let function = driven.function(0);
    let handle = driven.iommu.claim(function).expect("a free function");
    driven.enable(function);
    let device = driven.device(function);
    (driven, handle, device)
}

fn start() -> (Driven, DmaDevice, Device) {
    start_on(MachineConfig::plain(1), Options::default())
}

fn caching() -> MachineConfig {
    let mut config = MachineConfig::plain(1);
    config.units[0] = UnitConfig { caching_mode: true, ..UnitConfig::plain(config.units[0].base) };
    config
}

fn writes<R>(driven: &Driven, work: impl FnOnce() -> R) -> (u64, R) {
    let before = driven.machine.register_writes(0);
    let result = work();
    (driven.machine.register_writes(0) - before, result)
}

/// Pages that `bytes` bytes at `offset` in a page touch.
fn touched(offset: usize, bytes: usize) -> usize {
    (offset + bytes).div_ceil(PAGE)
}

/// What one of the reservations is, and what the oracle says that it holds.
struct Held {
    stage: Stage,
    pages: usize,
    linked_pages: usize,
    content: Vec<Vec<u8>>,
}

enum Stage {
    Reserved(Reservation<Part, Bidirectional>),
    Synced(ScatterMapping<Part, Bidirectional>),
}

struct Bench {
    driven: Driven,
    handle: DmaDevice,
    device: Device,
    random: Random,
    held: Vec<Held>,
    caching: bool,
}

impl Bench {
    fn new(seed: u64, caching_mode: bool) -> Self {
        let config = if caching_mode { caching() } else { MachineConfig::plain(1) };
        let (driven, handle, device) = start_on(config, Options::default());
        Self { driven, handle, device, random: Random::new(seed), held: Vec::new(), caching: caching_mode }
    }

    fn step(&mut self) {
        if self.held.is_empty() || self.held.len() < 4 && self.random.once_in(4) {
            return self.reserve();
        }
        let index = self.random.index(self.held.len());
        match self.held[index].stage {
            Stage::Reserved(_) if !self.random.once_in(5) => self.link(index),
            Stage::Reserved(_) if !self.random.once_in(3) => self.sync(index),
            Stage::Synced(_) if !self.random.once_in(3) => self.transfer(index),
            _ => self.end(index),
        }
    }

    fn reserve(&mut self) {
        let bytes = self.random.between(1, 12 * PAGE as u64) as usize;
        let (cost, reserved) =
            writes(&self.driven, || self.handle.dma_reserve(4, bytes, Bidirectional).expect("room"));
        assert_eq!(cost, 0);
        let (stage, pages) = (Stage::Reserved(reserved), touched(0, bytes));
        self.held.push(Held { stage, pages, linked_pages: 0, content: Vec::new() });
    }

    fn link(&mut self, index: usize) {
        let held = &mut self.held[index];
        let Stage::Reserved(reservation) = &mut held.stage else { return };
        let whole = self.random.once_in(2);
        let offset = if whole { 0 } else { self.random.index(PAGE) };
        let bytes = if whole { PAGE << self.random.below(2) } else { 1 + self.random.index(2 * PAGE) };
        let content: Vec<u8> = (0..bytes).map(|_| self.random.below(BESIDE.into()) as u8).collect();
        let part = Part::holding(offset, &content);
        let (cost, linked) = writes(&self.driven, || reservation.link(part));
        assert_eq!(cost, 0, "nothing is told to the unit before the sync");
        let (pages, left) = (touched(offset, bytes), held.pages - held.linked_pages);
        match linked {
            Ok(()) => {
                assert!(pages <= left);
                held.linked_pages += pages;
                held.content.push(content);
            }
            Err(rejected) => {
                let (bytes, left_bytes) = ((pages * PAGE) as u64, (left * PAGE) as u64);
                assert_eq!(rejected.error, DmaError::BeyondReservation { bytes, left_bytes });
                assert!(pages > left && rejected.buffer.expect("the part").bytes() == content);
            }
        }
        assert_eq!(reservation.len(), held.content.len());
    }

    fn sync(&mut self, index: usize) {
        let mut held = self.held.swap_remove(index);
        let Stage::Reserved(reservation) = held.stage else { return };
        let (cost, mapping) = writes(&self.driven, || reservation.sync());
        assert_eq!(cost, u64::from(self.caching && held.linked_pages > 0), "one flush in caching mode");
        held.stage = Stage::Synced(mapping);
        self.held.push(held);
    }

    /// The device reads all of it, and writes something else.
    fn transfer(&mut self, index: usize) {
        let held = &mut self.held[index];
        let Stage::Synced(mapping) = &held.stage else { return };
        let mut expected = held.content.iter_mut().flatten();
        for segment in mapping.segments() {
            let mut bytes = vec![0; segment.bytes as usize];
            self.device.read(segment.iova.as_u64(), &mut bytes).expect("mapped");
            for byte in &mut bytes {
                let held = expected.next().expect("no more than was linked");
                assert_eq!(byte, held);
                *held = self.random.below(BESIDE.into()) as u8;
                *byte = *held;
            }
            self.device.write(segment.iova.as_u64(), &bytes).expect("mapped");
        }
        assert_eq!(expected.count(), 0);
    }

    fn end(&mut self, index: usize) {
        let held = self.held.swap_remove(index);
        let before = self.device.reach_of_tables().expect("translated");
        let drops = self.random.once_in(3);
        let flushes = u64::from(held.linked_pages > 0);
        let (cost, list) = writes(&self.driven, || match held.stage {
            Stage::Reserved(reservation) if drops => drop_and_reap(&self.driven, reservation),
            Stage::Synced(mapping) if drops => drop_and_reap(&self.driven, mapping),
            Stage::Reserved(reservation) => Some(reservation.unlink().expect("a unit that works")),
            Stage::Synced(mapping) => Some(mapping.unmap().expect("a unit that works")),
        });
        assert_eq!(cost, flushes, "one flush for all that was linked");
        if let Some(mut list) = list {
            for content in held.content.iter().rev() {
                let part = list.pop().expect("as many as were linked");
                assert!(part.bytes() == content && part.is_intact());
            }
            assert!(list.is_empty());
        }
        // A unit in caching mode now holds that nothing is there.
        for run in before {
            let gone = self.device.reach_of_tables().expect("translated");
            if !gone.iter().any(|left| left.address <= run.address && run.address < left.address + left.bytes)
            {
                assert!(self.device.probe(run.address, Access::Write).is_err());
            }
        }
    }

    fn check(&self) {
        let reach = self.device.reach_of_tables().expect("translated");
        let pages: u64 = reach.iter().map(|run| run.bytes / PAGE as u64).sum();
        assert_eq!(pages as usize, self.held.iter().map(|held| held.linked_pages).sum::<usize>());
        assert_eq!(self.driven.iommu.live_mappings(), self.held.len());
        self.driven.assert_content("after a step");
    }
}

fn drop_and_reap<T>(driven: &Driven, dropped: T) -> Option<ScatterList<Part>> {
    drop(dropped);
    driven.iommu.reap();
    None
}

#[test]
fn any_order_of_steps_is_as_the_oracle_says() {
    for seed in 0..12 {
        let mut bench = Bench::new(seed, seed % 2 == 0);
        for _ in 0..150 {
            bench.step();
            bench.check();
        }
        while !bench.held.is_empty() {
            bench.end(0);
            bench.check();
        }
    }
}

#[test]
fn pieces_of_whole_pages_are_one_segment_where_they_were_linked() {
    let (driven, handle, device) = start();
    let mut request = handle.dma_reserve(3, 6 * PAGE, ToDevice).expect("room");
    let mut memory = Vec::new();
    for pages in [1, 3, 2] {
        let buffer = driven.machine.allocate_buffer(pages, 1).expect("memory");
        memory.extend((0..u64::from(pages)).map(|page| buffer.physical() + page * PAGE as u64));
        request.link(buffer).expect("room");
    }
    let mapping = request.sync();
    let segments: Vec<_> = mapping.segments().collect();
    let [segment] = segments[..] else { panic!("{segments:?}") };
    assert_eq!(segment.bytes, 6 * PAGE as u64);
    for (index, physical) in memory.into_iter().enumerate() {
        let address = segment.iova.as_u64() + (index * PAGE) as u64;
        assert_eq!(device.probe(address, Access::Read), Ok(physical));
        assert!(device.probe(address, Access::Write).is_err(), "what it only reads");
    }
}

#[test]
fn segments_keep_to_the_limits_and_the_range_to_the_mask() {
    let (_driven, handle, _) = start();
    handle.set_address_bits(24);
    handle.set_segment_limits(SegmentLimits { max_bytes: 6000, boundary: 8192 });
    let mut request = handle.dma_reserve(1, 9 * PAGE, ToDevice).expect("room");
    request.link(PageBuffer::zeroed(9).expect("memory")).expect("room");
    let mapping = request.sync();
    let mut total = 0;
    for segment in mapping.segments() {
        let last = segment.iova.as_u64() + segment.bytes - 1;
        assert!(segment.bytes <= 6000 && last < 1 << 24 && segment.iova.as_u64() / 8192 == last / 8192);
        total += segment.bytes;
    }
    assert_eq!(total, 9 * PAGE as u64);
}

#[test]
fn the_range_comes_back_whole_however_much_of_it_was_linked() {
    let (driven, handle, _) = start();
    // A device with room for two such ranges.
    handle.set_address_bits(17);
    for round in 0..40 {
        let mut request = handle.dma_reserve(4, 10 * PAGE, Bidirectional).expect("room");
        for _ in 0..round % 4 {
            request.link(driven.machine.allocate_buffer(1, 1).expect("memory")).expect("room");
        }
        match round % 3 {
            0 => drop(request.unlink().expect("a unit that works")),
            1 => drop(request.sync().unmap().expect("a unit that works")),
            _ => drop(request),
        }
        driven.pump();
        assert_eq!(driven.iommu.live_mappings(), 0);
    }
    driven.assert_content("after many reservations");
}

#[test]
fn no_bytes_and_more_than_there_are_cannot_be_reserved() {
    let (driven, handle, _) = start();
    let reserve = |bytes| handle.dma_reserve::<Part, _>(1, bytes, ToDevice).map(drop);
    assert_eq!(reserve(0), Err(DmaError::BadLength { count: 0 }));
    assert_eq!(reserve(usize::MAX), Err(DmaError::BadLength { count: usize::MAX }));
    assert!(matches!(reserve(1 << 60), Err(DmaError::NoIova { .. })));
    let pieces = handle.dma_reserve::<Part, _>(usize::MAX, PAGE, ToDevice).map(drop);
    assert_eq!((pieces, driven.iommu.live_mappings()), (Err(DmaError::OutOfMemory), 0));
}

#[test]
fn one_of_a_device_that_was_taken_away_takes_nothing_more_and_is_the_reapers() {
    let (driven, handle, _) = start();
    let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
    let memory = buffer.physical();
    let mut linked = handle.dma_reserve(2, 2 * PAGE, Bidirectional).expect("room");
    linked.link(buffer).expect("room");
    let empty = handle.dma_reserve::<ModelBuffer, _>(1, PAGE, Bidirectional).expect("room");
    driven.iommu.quarantine(handle.function()).expect("a unit that works");
    let late = linked.link(driven.machine.allocate_buffer(1, 1).expect("memory"));
    assert!(late.is_err_and(|r| r.error == DmaError::Revoked && r.buffer.is_some()));
    let new = handle.dma_reserve::<ModelBuffer, _>(1, PAGE, Bidirectional).map(drop);
    assert_eq!(new, Err(DmaError::Revoked));
    assert_eq!(linked.sync().unmap().map(drop), Err(DmaError::Revoked));
    assert_eq!(empty.unlink().map(drop), Err(DmaError::Revoked));
    driven.pump();
    assert!(driven.machine.is_lent(memory), "too early");
    driven.iommu.release(handle.function(), |_| true).expect("a quiet device");
    driven.pump();
    assert!(!driven.machine.is_lent(memory));
    assert_eq!(driven.iommu.live_mappings(), 0);
    driven.assert_content("after a revocation");
}

#[test]
fn behind_a_unit_that_does_not_answer_what_was_linked_stays_pinned() {
    let (driven, handle, _) = start_on(caching(), Options::default());
    let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
    let memory = buffer.physical();
    let mut request = handle.dma_reserve(1, PAGE, Bidirectional).expect("room");
    request.link(buffer).expect("room");
    driven.machine.misbehave(0, |unit| unit.statuses_lost = true);
    assert_eq!(request.sync().unmap().map(drop), Err(DmaError::Stuck(Stuck { unit: 0 })));
    driven.pump();
    assert!(driven.machine.is_lent(memory));
}

#[test]
fn without_isolation_pieces_lie_where_their_memory_does() {
    let options = Options { mode: Mode::Off, ..Options::default() };
    let (driven, handle, device) = start_on(MachineConfig::plain(1), options);
    let mut request = handle.dma_reserve(2, 3 * PAGE, Bidirectional).expect("nothing to reserve");
    request.link(Part::new(3, 100)).expect("room");
    request.link(Part::new(0, 5000)).expect("room");
    let left_bytes = 0;
    let refused = request.link(Part::new(0, 1)).expect_err("no room");
    assert_eq!(refused.error, DmaError::BeyondReservation { bytes: PAGE as u64, left_bytes });
    let mapping = request.sync();
    for segment in mapping.segments() {
        device.write(segment.iova.as_u64(), &vec![8; segment.bytes as usize]).expect("all of memory");
    }
    let mut parts = mapping.unmap().expect("nothing to flush");
    assert_eq!(parts.len(), 2);
    while let Some(part) = parts.pop() {
        assert!(part.is_intact() && part.bytes().iter().all(|&byte| byte == 8));
    }
    drop(handle.dma_reserve::<Part, _>(1, PAGE, Bidirectional));
    driven.pump();
    assert_eq!(driven.iommu.live_mappings(), 0);
}
