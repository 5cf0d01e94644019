//! Where the translations of a domain may be cached: its tags.

use core::sync::atomic::{AtomicU64, Ordering};

use mm::PhysAddr;

use super::{format::TableFormat, hardware::Vtd, queue::CachingDevice, spec::DomainId};
use crate::{
    Platform, SourceId,
    dma::{DmaError, Silent},
    platform::LockClass,
    sync::IrqLock,
};

/// Units that one domain can span.
const MAX_DOMAIN_UNITS: usize = 8;

/// Where the translations of one domain may be cached, and what its table looks like.
pub(crate) struct Tags {
    pub(super) root: PhysAddr,
    pub(super) format: TableFormat,
    pub(super) list: IrqLock<TagList>,
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
    #[inline]
    pub fn only_unit(&self) -> Option<Tag> {
        let [first, second, ..] = self.units;
        first.filter(|_| second.is_none() && self.device.is_none())
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
            silent: SilentDevice(AtomicU64::new(0)),
        }
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
        Ok(domain)
    }

    /// Undoes one [`add_tag`](Self::add_tag). Nothing in the unit, nor in the TLB of the source, is tagged for it any
    /// more.
    pub(super) fn remove_tag(&self, tags: &Tags, unit: usize, source: SourceId) {
        let mut list = tags.list.lock(&*self.platform);
        list.device = list.device.filter(|tag| tag.device.source != source);
        let Some(slot) = list.units.iter_mut().find(|slot| slot.is_some_and(|tag| tag.unit == unit)) else {
            return;
        };
        let Some(tag) = slot else { return };
        tag.sources -= 1;
        if tag.sources == 0 {
            self.free_domain(unit, tag.domain);
            *slot = None;
            // The list has no gaps.
            list.units.sort_unstable_by_key(Option::is_none);
        }
    }
}
