//! What can be invalidated.

use core::num::NonZeroU8;

use crate::{
    Iova, SourceId,
    vtd::{
        capability::Capability,
        mode::TableStage,
        spec::{Descriptor, DeviceTlbScope, DomainId, FunctionMask, Granularity},
    },
};

/// One thing that a unit, or a device behind it, is to forget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Invalidation {
    /// Context entries.
    Context(ContextScope),
    /// PASID entries, which a unit has in scalable mode.
    Pasid(PasidScope),
    /// Translations in the unit.
    Iotlb(IotlbScope),
    /// Translations in a device.
    DeviceTlb {
        /// The device.
        source: SourceId,
        /// As in [`CachingDevice`].
        physical_function: u16,
        /// How many invalidations the device takes at a time (1 to 32).
        queue_depth: NonZeroU8,
        /// How much.
        scope: DeviceTlbScope,
    },
    /// Interrupt-remapping entries.
    InterruptEntries(InterruptScope),
}

/// A device with a TLB of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CachingDevice {
    /// The device.
    pub source: SourceId,
    /// Requester id of the physical function that the device is or belongs to, where the unit asks for it
    /// ([`Capability::names_physical_function`]), else 0.
    pub physical_function: u16,
    /// How many invalidations the device takes at a time (1 to 32).
    pub queue_depth: NonZeroU8,
}

impl CachingDevice {
    /// The invalidation of `scope`.
    #[must_use]
    pub const fn invalidation(self, scope: DeviceTlbScope) -> Invalidation {
        let Self { source, physical_function, queue_depth } = self;
        Invalidation::DeviceTlb { source, physical_function, queue_depth, scope }
    }
}

/// Which context entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContextScope {
    /// All.
    Global,
    /// Those of a domain.
    Domain(DomainId),
    /// That of one function.
    Device {
        /// The domain id in the entry that may be cached: the *old* one. Entries that were not present are cached
        /// under id 0.
        domain: DomainId,
        /// The function.
        source: SourceId,
        /// Which functions besides.
        mask: FunctionMask,
    },
}

/// Which PASID entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PasidScope {
    /// All.
    Global,
    /// Those of a domain: the one in the entry that may be cached.
    Domain(DomainId),
}

/// Which translations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IotlbScope {
    /// All.
    Global,
    /// All of a domain.
    Domain(DomainId),
    /// 2^`order` pages from `first`, which is a multiple of that size.
    Pages {
        /// The domain.
        domain: DomainId,
        /// First address.
        first: Iova,
        /// log2 of the number of pages: at most [`Capability::page_selective_order`], or 18 where the first stage
        /// translates.
        order: u8,
        /// Only leaves changed, so that cached upper levels may stay.
        leaf_only: bool,
    },
}

/// Which interrupt-remapping entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptScope {
    /// All.
    Global,
    /// 2^`order` entries from `first`, which is a multiple of that number.
    Entries {
        /// Index of the first entry.
        first: u16,
        /// log2 of their number.
        order: u8,
    },
}

/// In which order invalidations must complete.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(in crate::vtd) enum Stage {
    /// Context entries: translations made by a stale one must not outlive it.
    Contexts,
    /// PASID entries, which are found through context entries.
    Pasids,
    /// The unit's other caches.
    Translations,
    /// Device TLBs, which are filled from the unit's.
    Devices,
}

impl Stage {
    /// One after the other.
    pub(in crate::vtd) const ALL: [Self; 4] =
        [Self::Contexts, Self::Pasids, Self::Translations, Self::Devices];
}

impl Invalidation {
    #[inline]
    pub(in crate::vtd) const fn stage(&self) -> Stage {
        match self {
            Self::Context(_) => Stage::Contexts,
            Self::Pasid(_) => Stage::Pasids,
            Self::Iotlb(_) | Self::InterruptEntries(_) => Stage::Translations,
            Self::DeviceTlb { .. } => Stage::Devices,
        }
    }

    /// The same of everything that this is about: what is tried when a unit refuses the selective form.
    pub(super) const fn coarse(self) -> Self {
        match self {
            Self::Context(_) => Self::Context(ContextScope::Global),
            Self::Pasid(_) => Self::Pasid(PasidScope::Global),
            Self::Iotlb(_) => Self::Iotlb(IotlbScope::Global),
            Self::InterruptEntries(_) => Self::InterruptEntries(InterruptScope::Global),
            Self::DeviceTlb { source, physical_function, queue_depth, .. } => {
                Self::DeviceTlb { source, physical_function, queue_depth, scope: DeviceTlbScope::All }
            }
        }
    }

    #[inline]
    pub(super) fn descriptor(self, capability: &Capability, stage: TableStage) -> Descriptor {
        match self {
            Self::Context(scope) => scope.descriptor(),
            Self::Pasid(PasidScope::Global) => Descriptor::PasidCache { domain: None },
            Self::Pasid(PasidScope::Domain(domain)) => Descriptor::PasidCache { domain: Some(domain) },
            Self::Iotlb(scope) => scope.descriptor(capability, stage),
            Self::DeviceTlb { source, physical_function, queue_depth, scope } => {
                Descriptor::DeviceTlb { source: source.requester, physical_function, queue_depth, scope }
            }
            Self::InterruptEntries(scope) => {
                let entries = match scope {
                    InterruptScope::Entries { first, order }
                        if order <= capability.interrupt_entries_order() =>
                    {
                        Some((first, order))
                    }
                    _ => None,
                };
                Descriptor::InterruptEntries { entries }
            }
        }
    }
}

const NO_DOMAIN: DomainId = DomainId::new(0);

impl ContextScope {
    const fn descriptor(self) -> Descriptor {
        let (granularity, domain, source, mask) = match self {
            Self::Global => (Granularity::Global, NO_DOMAIN, 0, FunctionMask::Exact),
            Self::Domain(domain) => (Granularity::Domain, domain, 0, FunctionMask::Exact),
            Self::Device { domain, source, mask } => (Granularity::Selective, domain, source.requester, mask),
        };
        Descriptor::Context { granularity, domain, source, mask }
    }
}

impl IotlbScope {
    /// For translations of `stage`. Requests in flight are always drained where the unit can: the memory is given to
    /// somebody else next. What is cached of the first stage is tagged with a PASID besides. Its descriptors do not ask
    /// for draining: a unit of major version 2 or later always drains.
    #[inline(always)]
    pub(super) fn descriptor(self, capability: &Capability, stage: TableStage) -> Descriptor {
        match (stage, self) {
            (TableStage::Second, _) | (TableStage::First, Self::Global) => self.of_second_stage(capability),
            (TableStage::First, Self::Domain(domain)) => Descriptor::PasidIotlb { domain, pages: None },
            (TableStage::First, Self::Pages { domain, first, order, leaf_only }) => {
                Descriptor::PasidIotlb { domain, pages: Some((first, order, leaf_only)) }
            }
        }
    }

    #[inline(always)]
    fn of_second_stage(self, capability: &Capability) -> Descriptor {
        let nowhere = Iova::new(0);
        let (granularity, domain, first, order, leaf_only) = match self {
            Self::Global => (Granularity::Global, NO_DOMAIN, nowhere, 0, false),
            Self::Domain(domain) => (Granularity::Domain, domain, nowhere, 0, false),
            Self::Pages { domain, first, order, leaf_only } => {
                (Granularity::Selective, domain, first, order, leaf_only)
            }
        };
        Descriptor::Iotlb {
            granularity,
            domain,
            first,
            order,
            leaf_only,
            drain_writes: capability.drains_writes(),
            drain_reads: capability.drains_reads(),
        }
    }
}
