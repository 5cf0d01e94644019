//! A source that comes to a domain, or leaves it, while a mapping goes: in every order.

use core::ptr::NonNull;
use std::{
    sync::{Arc, Mutex, Weak},
    vec::Vec,
};

use loom::thread;

use super::*;
use crate::{
    arc::{Room, TryArc},
    dma::{
        Access, Bidirectional, DmaBuffer, Late, RawBuffer, Retired,
        segment::{Ends, Segment},
        space::{Live, Space},
    },
    options::Flush,
    sync::explore,
    vtd::{
        Vtd,
        spec::Descriptor,
        testing::{Executed, FakePlatform, units_up},
    },
};

const CAP: u64 = 0x00d2_008c_222f_0606;
const ECAP: u64 = 0x00f0_0f4a;
/// Where the unit keeps the address of its root table.
const ROOT_TABLE: usize = 0x20;

/// The one page that is mapped.
const PAGE: u64 = 0x8000_0000;
const SOURCE: SourceId = SourceId { segment: 0, requester: 0x0108 };

struct Model {
    platform: Arc<FakePlatform>,
    domain: TryArc<Domain<Vtd<FakePlatform>>>,
    /// When the unit cached the translation of the page: the length of its log, and the domain id.
    cached: Mutex<Vec<(usize, u16)>>,
}

impl Model {
    /// A domain with one page in it, and nobody who translates through it.
    fn new() -> Arc<Self> {
        let platform = Arc::new(FakePlatform::new(CAP, ECAP));
        let domain = with_one_page(&platform, Kind::Own);
        Arc::new(Self { platform, domain, cached: Mutex::new(Vec::new()) })
    }

    /// The device reads the page: if the tables lead there, the unit caches the translation.
    fn device_reads(&self) {
        self.platform.memory.step(Ordering::Relaxed);
        let at = self.platform.unit.log().len();
        self.cached.lock().unwrap().extend(self.walk().map(|domain| (at, domain)));
    }

    /// The domain id under which the tables lead the device to the page at this moment.
    fn walk(&self) -> Option<u16> {
        let word = |address| self.platform.memory.word(address).load(Ordering::SeqCst);
        let entry = |table, index, words| word((table & 0xf_ffff_ffff_f000) + index * words * 8);
        let SourceId { requester, .. } = SOURCE;
        let (bus, devfn) = (u64::from(requester >> 8), u64::from(requester & 0xff));
        let root_entry = entry(self.platform.unit.peek64(ROOT_TABLE), bus, 2);
        let present = |entry: u64| (entry & 1 != 0).then_some(entry);
        let context = (present(root_entry)? & !0xfff) + devfn * 16;
        let (low, high) = (present(word(context))?, word(context + 8));
        let levels = (high & 7) + 2;
        let leaf = (0..levels).rev().try_fold(low, |table, level| {
            let next = entry(table, PAGE >> (12 + 9 * level) & 511, 1);
            (next & 3 != 0).then_some(next)
        });
        leaf.map(|_| (high >> 8) as u16)
    }

    /// Whether the unit can still translate the page, by what it has cached or by the tables.
    fn is_reachable(&self) -> bool {
        let log = self.platform.unit.log();
        let is_flush = |event: &Executed, id: u16| match event {
            Executed::Descriptor(Descriptor::Iotlb { domain, .. }) => domain.as_u16() == id,
            _ => false,
        };
        let cached = self.cached.lock().unwrap();
        let stale = cached.iter().any(|&(at, id)| !log[at..].iter().any(|event| is_flush(event, id)));
        stale || self.walk().is_some()
    }

    fn unmap(&self) {
        self.domain.unmap(&segment(), Access { read: true, write: true }).unwrap();
        assert!(!self.is_reachable(), "the page is unmapped and can be reached");
    }

    /// Runs `work` beside an unmap, and a device that reads when it likes.
    fn run_beside_an_unmap(self: Arc<Self>, work: impl FnOnce(&Self) + 'static) {
        let worker = {
            let model = self.clone();
            thread::spawn(move || work(&model))
        };
        let device = {
            let model = self.clone();
            thread::spawn(move || model.device_reads())
        };
        self.unmap();
        [worker, device].into_iter().for_each(|thread| thread.join().unwrap());
        self.device_reads();
        assert!(!self.is_reachable(), "the page is unmapped and can be reached again");
    }
}

/// A domain with one page in it, as if a driver had mapped it.
fn with_one_page(platform: &Arc<FakePlatform>, kind: Kind) -> TryArc<Domain<Vtd<FakePlatform>>> {
    let vtd = units_up(platform);
    let reaper = Arc::new(Reaper::new(platform.clone(), Flush::Strict));
    // Reserved memory, which stands for a mapping here, has none.
    reaper.reserve().unwrap();
    let page = PhysRange::new(PhysAddr::new(PAGE), PAGE_BYTES);
    let units = UnitSet::default().with(0);
    let making = Making { number: 1, backend: vtd, reaper, units, registers: Arc::default() };
    let room = Room::try_new().unwrap();
    let domain = Domain::new(making, kind).map(|domain| room.fill(domain)).unwrap();
    domain.enter(units, &[page]).unwrap();
    domain
}

/// The mapping of that page.
fn segment() -> Segment {
    Segment { iova: Iova::new(PAGE), buffer: Nowhere.into_raw(), ends: Ends::NONE }
}

/// A page that nobody looks at.
struct Nowhere;

// SAFETY: there is no memory that anybody could reach.
unsafe impl DmaBuffer for Nowhere {
    fn into_raw(self) -> RawBuffer {
        RawBuffer { first: NonNull::dangling(), bytes: PAGE_BYTES as usize, cookie: 0 }
    }

    unsafe fn from_raw(_: RawBuffer) -> Self {
        Self
    }
}

/// A domain over a table that is there as long as somebody keeps it.
fn over_a_shared_table(platform: &Arc<FakePlatform>) -> (Arc<Domain<Vtd<FakePlatform>>>, Weak<()>) {
    let vtd = units_up(platform);
    let reaper = Arc::new(Reaper::new(platform.clone(), Flush::Strict));
    let units = UnitSet::default().with(0);
    let format = vtd.format(units).unwrap();
    let making = Making { number: 1, backend: vtd, reaper, units, registers: Arc::default() };
    let root = platform.tables().allocate().unwrap();
    // SAFETY: nothing is mapped, and nobody looks at it.
    let named = |tables| Ok(unsafe { PageTable::named(format, tables, root) });
    let domain = Domain::over(making, Kind::Shared, format, named).unwrap();
    let keeper = Arc::new(());
    let table = Arc::downgrade(&keeper);
    domain.members.lock(&**platform).keeper = Some(keeper);
    (Arc::new(domain), table)
}

#[test]
fn a_shared_table_is_kept_for_who_comes_while_its_domain_ends() {
    explore(2, || {
        let platform = Arc::new(FakePlatform::new(CAP, ECAP));
        let (domain, table) = over_a_shared_table(&platform);
        let is_there = || table.strong_count() > 0;
        let ending = {
            let domain = domain.clone();
            thread::spawn(move || domain.close().unwrap())
        };
        if domain.enter(UnitSet::default().with(0), &[]).is_ok() {
            domain.attach(0, SOURCE, None).unwrap();
            assert!(is_there(), "the unit walks it");
            domain.begin_revoking();
            domain.block(0, SOURCE).unwrap();
            domain.leave(&[]);
            assert!(is_there(), "the device may be writing");
            drop(domain.set_quiet());
        }
        ending.join().unwrap();
        assert!(!is_there(), "nobody needs it");
    });
}

#[test]
fn a_shared_table_goes_with_who_did_not_come_in_while_its_domain_ended() {
    explore(2, || {
        let platform = Arc::new(FakePlatform::new(CAP, ECAP));
        let (domain, table) = over_a_shared_table(&platform);
        let ending = {
            let domain = domain.clone();
            thread::spawn(move || domain.close().unwrap())
        };
        if domain.enter(UnitSet::default().with(0), &[]).is_ok() {
            domain.leave(&[]);
        }
        ending.join().unwrap();
        assert_eq!(table.strong_count(), 0, "nobody needs it");
    });
}

/// A driver takes [`DmaError::Restless`] for another device of its domain: here there is none.
#[test]
fn a_domain_of_one_group_ends_when_the_group_is_taken_out() {
    explore(3, || {
        let model = Model::new();
        let owner = {
            let model = model.clone();
            thread::spawn(move || model.domain.begin_revoking())
        };
        for result in [model.domain.admit(), model.domain.admit_return()] {
            assert!(matches!(result, Ok(()) | Err(DmaError::Revoked)), "{result:?}");
        }
        owner.join().unwrap();
        assert_eq!(model.domain.admit_return(), Err(DmaError::Revoked));
    });
}

/// The driver of one device does not lose its buffer because another one leaves their domain.
#[test]
fn a_retired_buffer_that_is_polled_waits_for_who_leaves() {
    explore(3, || {
        let platform = Arc::new(FakePlatform::new(CAP, ECAP));
        let domain = with_one_page(&platform, Kind::Assigned);
        let space: TryArc<dyn Space> = domain.clone().into();
        let retired = Retired::<Nowhere, Bidirectional>::new(Live { space, segment: segment() });
        domain.pay_what_is_due(u64::MAX);
        let owner = {
            let domain = domain.clone();
            thread::spawn(move || domain.begin_revoking())
        };
        match retired.poll() {
            Ok(Late::Ready(_)) => owner.join().unwrap(),
            Ok(Late::Pending(retired)) => {
                owner.join().unwrap();
                drop(domain.set_quiet());
                assert!(matches!(retired.poll(), Ok(Late::Ready(_))), "all are quiet");
            }
            Err(error) => panic!("{error}"),
        }
    });
}

#[test]
fn an_unmap_misses_no_source_that_attaches() {
    explore(3, || {
        Model::new().run_beside_an_unmap(|model| model.domain.attach(0, SOURCE, None).unwrap());
    });
}

#[test]
fn an_unmap_misses_no_source_that_leaves() {
    explore(2, || {
        let model = Model::new();
        model.domain.attach(0, SOURCE, None).unwrap();
        model.device_reads();
        assert!(model.is_reachable());
        model.run_beside_an_unmap(|model| model.domain.block(0, SOURCE).unwrap());
    });
}
