//! Where the translations of a domain may be cached: its tags.

use mm::PhysAddr;

use super::{format::TableFormat, hardware::Vtd, queue::CachingDevice, spec::DomainId};
use crate::{
    Platform, SourceId,
    dma::{DmaError, Silent},
    platform::LockClass,
    sync::{
        IrqLock,
        atomic::{AtomicU32, AtomicU64, Ordering, fence},
    },
};

/// Units that one domain can span.
const MAX_DOMAIN_UNITS: usize = 8;

/// Where the translations of one domain may be cached, and what its table looks like.
pub(crate) struct Tags {
    pub(super) root: PhysAddr,
    pub(super) format: TableFormat,
    pub(super) list: IrqLock<TagList>,
    only: OnlyUnit,
    silent: SilentDevice,
}

/// The caches that know a domain.
#[derive(Clone, Copy)]
pub(super) struct TagList {
    /// The units; the first `None` ends them.
    pub units: [Option<Tag>; MAX_DOMAIN_UNITS],
    /// The device whose TLB knows it: then the only one that uses the domain.
    pub device: Option<DeviceTag>,
}

impl TagList {
    /// The unit that knows the domain, if that is one, and no device does.
    fn only_unit(&self) -> Option<Tag> {
        let [first, second, ..] = self.units;
        first.filter(|_| second.is_none() && self.device.is_none())
    }

    /// One source less behind `unit`. Returns the id that the domain had there, if none is left.
    fn remove_source(&mut self, unit: usize) -> Option<DomainId> {
        let slot = self.units.iter_mut().find(|slot| slot.is_some_and(|tag| tag.unit == unit))?;
        let tag = slot.as_mut()?;
        tag.sources -= 1;
        let unused = (tag.sources == 0).then_some(tag.domain);
        if unused.is_some() {
            *slot = None;
            // The list has no gaps.
            self.units.sort_unstable_by_key(Option::is_none);
        }
        unused
    }
}

/// What [`TagList::only_unit`] says, to be read without the lock. Written under it.
struct OnlyUnit(AtomicU32);

impl OnlyUnit {
    const THERE_IS_ONE: u32 = 1 << 31;

    fn set(&self, tag: Option<Tag>) {
        // Units are fewer than 64.
        let bits = |tag: Tag| Self::THERE_IS_ONE | (tag.unit as u32) << 16 | u32::from(tag.domain.as_u16());
        self.0.store(tag.map_or(0, bits), Ordering::Release);
    }

    #[inline(always)]
    fn get(&self) -> Option<(usize, DomainId)> {
        let bits = self.0.load(Ordering::Acquire);
        let unit = (bits & !Self::THERE_IS_ONE) >> 16;
        (bits & Self::THERE_IS_ONE != 0).then_some((unit as usize, DomainId::new(bits as u16)))
    }
}

/// One unit that knows a domain.
#[derive(Clone, Copy)]
pub(super) struct Tag {
    pub unit: usize,
    pub domain: DomainId,
    /// Sources that translate through it.
    sources: usize,
}

/// A device behind a unit whose TLB knows a domain.
#[derive(Clone, Copy)]
pub(super) struct DeviceTag {
    pub unit: usize,
    pub device: CachingDevice,
}

/// The device of a domain that did not empty its TLB, once there is one. It never gets better.
struct SilentDevice(AtomicU64);

impl SilentDevice {
    const FOUND: u64 = 1 << 32;

    /// Returns whether there was none before.
    fn set(&self, SourceId { segment, requester }: SourceId) -> bool {
        let source = u64::from(segment) << 16 | u64::from(requester);
        self.0.swap(Self::FOUND | source, Ordering::Relaxed) & Self::FOUND == 0
    }

    #[inline]
    fn get(&self) -> Option<SourceId> {
        let bits = self.0.load(Ordering::Relaxed);
        let source = || SourceId { segment: (bits >> 16) as u16, requester: bits as u16 };
        (bits & Self::FOUND != 0).then(source)
    }
}

impl Tags {
    pub(super) fn new(root: PhysAddr, format: TableFormat) -> Self {
        let list = TagList { units: [None; MAX_DOMAIN_UNITS], device: None };
        Self {
            root,
            format,
            list: IrqLock::new(LockClass::Tags, list),
            only: OnlyUnit(AtomicU32::new(0)),
            silent: SilentDevice(AtomicU64::new(0)),
        }
    }

    /// The unit that knows the domain, if that is one, and no device does. It is read after the leaves were cleared,
    /// with a fence in between; with another after it was written, before the unit can walk the tables. So whoever does
    /// not find a unit here has cleared the leaves before the unit could see them.
    #[inline(always)]
    pub(super) fn only_unit(&self) -> Option<(usize, DomainId)> {
        self.only.get()
    }

    /// Fails once a device of the domain did not empty its TLB.
    #[inline]
    pub(super) fn check_devices(&self) -> Result<(), Silent> {
        self.silent.get().map_or(Ok(()), |source| Err(Silent { source }))
    }

    /// Notes that the device `source` did not empty its TLB. Returns whether that is news.
    pub(super) fn set_silent(&self, source: SourceId) -> bool {
        self.silent.set(source)
    }
}

impl<P: Platform> Vtd<P> {
    /// The tag of a domain in `unit`, with one more source, and the TLB of that source.
    pub(super) fn add_tag(
        &self,
        tags: &Tags,
        unit: usize,
        device: Option<CachingDevice>,
    ) -> Result<DomainId, DmaError> {
        let mut list = tags.list.lock(&*self.platform);
        let list = &mut *list;
        let domain = if let Some(tag) = list.units.iter_mut().flatten().find(|tag| tag.unit == unit) {
            tag.sources += 1;
            tag.domain
        } else {
            let free = list.units.iter_mut().find(|slot| slot.is_none());
            let free = free.ok_or(DmaError::OutOfDomainIds { unit })?;
            let domain = self.allocate_domain(unit)?;
            *free = Some(Tag { unit, domain, sources: 1 });
            domain
        };
        debug_assert!(device.is_none() || list.device.is_none(), "a device with a TLB shares its domain");
        list.device = device.map(|device| DeviceTag { unit, device }).or(list.device);
        tags.only.set(list.only_unit());
        // The tag can be read before the unit can walk the tables: see `Tags::only_unit`.
        fence(Ordering::SeqCst);
        Ok(domain)
    }

    /// Undoes one [`add_tag`](Self::add_tag). Nothing in the unit, nor in the TLB of the source, is tagged for it any
    /// more.
    pub(super) fn remove_tag(&self, tags: &Tags, unit: usize, source: SourceId) {
        let mut list = tags.list.lock(&*self.platform);
        list.device = list.device.filter(|tag| tag.device.source != source);
        let unused = list.remove_source(unit);
        tags.only.set(list.only_unit());
        if let Some(domain) = unused {
            self.free_domain(unit, domain);
        }
    }
}
