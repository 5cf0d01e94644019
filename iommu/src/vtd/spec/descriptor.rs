//! Invalidation descriptors: what software writes into the queue.

use core::num::NonZeroU8;

use mm::PhysAddr;

use super::DomainId;
use crate::Iova;

/// A descriptor as it lies in the queue. With 256-bit descriptors the upper half is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawDescriptor(pub u128);

impl RawDescriptor {
    /// Bits 63:0.
    #[must_use]
    #[inline]
    pub const fn low(self) -> u64 {
        self.0 as u64
    }

    /// Bits 127:64.
    #[must_use]
    #[inline]
    pub const fn high(self) -> u64 {
        (self.0 >> 64) as u64
    }

    /// The descriptor of these two halves.
    #[must_use]
    pub const fn from_halves(low: u64, high: u64) -> Self {
        Self(low as u128 | (high as u128) << 64)
    }
}

/// FM: which bits of the function number in a source id are ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FunctionMask {
    /// The function alone.
    Exact = 0,
    /// Bit 2 is ignored.
    Bit2 = 1,
    /// Bits 2:1 are ignored.
    Bits21 = 2,
    /// All functions of the device.
    Device = 3,
}

impl FunctionMask {
    pub(super) const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Exact,
            1 => Self::Bit2,
            2 => Self::Bits21,
            _ => Self::Device,
        }
    }
}

/// G of context and IOTLB invalidations: how much of the cache goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Granularity {
    /// Everything.
    Global = 1,
    /// All of one domain.
    Domain = 2,
    /// One function (context) or a run of pages (IOTLB).
    Selective = 3,
}

/// How much of a device's TLB goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceTlbScope {
    /// Everything.
    All,
    /// 2^`order` pages from `first`, which is a multiple of that size.
    Pages {
        /// First address.
        first: Iova,
        /// log2 of the number of pages, at most [`DeviceTlbScope::MAX_ORDER`].
        order: u8,
    },
}

impl DeviceTlbScope {
    /// Highest order of a run of pages: the size lies in the address bits above 11 and stops short of the value that
    /// means everything.
    pub const MAX_ORDER: u8 = 50;
}

/// What tells that a wait descriptor is done. There is no variant for both: some units cannot do that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Completion {
    /// SW: `value` is written to `address`, which is a multiple of 4.
    Status {
        /// Where to.
        address: PhysAddr,
        /// What.
        value: u32,
    },
    /// IF: the invalidation completion event.
    Interrupt,
}

/// A wait descriptor: it completes after everything before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wait {
    /// What tells so.
    pub completion: Completion,
    /// FN: nothing after it starts before it is done.
    pub fence: bool,
}

/// A descriptor by its meaning. Reserved combinations cannot be said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Descriptor {
    /// Type 1: context cache. With [`Granularity::Global`], domain and source are 0; with [`Granularity::Domain`],
    /// source is.
    Context {
        /// How much.
        granularity: Granularity,
        /// The domain id that the cached entries carry.
        domain: DomainId,
        /// The function.
        source: u16,
        /// Which functions besides.
        mask: FunctionMask,
    },
    /// Type 2: IOTLB. `first`, `order` and `leaf_only` count for [`Granularity::Selective`] alone.
    Iotlb {
        /// How much.
        granularity: Granularity,
        /// The domain.
        domain: DomainId,
        /// First address, a multiple of 2^`order` pages.
        first: Iova,
        /// AM: log2 of the number of pages.
        order: u8,
        /// IH: only leaves changed, so that the paging-structure caches may stay.
        leaf_only: bool,
        /// DW: writes in flight are done before it completes.
        drain_writes: bool,
        /// DR: reads in flight are done before it completes.
        drain_reads: bool,
    },
    /// Type 3: device TLB.
    DeviceTlb {
        /// The function.
        source: u16,
        /// PFSID: the physical function of a virtual one, or 0.
        physical_function: u16,
        /// MIP: how many invalidations the device takes at a time, 1 to 32.
        queue_depth: NonZeroU8,
        /// How much.
        scope: DeviceTlbScope,
    },
    /// Type 4: interrupt entries.
    InterruptEntries {
        /// The first entry and log2 of their number, or all of them.
        entries: Option<(u16, u8)>,
    },
    /// Type 5: wait.
    Wait(Wait),
    /// Type 6: what the IOTLB has of the first stage, for PASID 0.
    PasidIotlb {
        /// The domain.
        domain: DomainId,
        /// First address, AM and IH, as of an IOTLB invalidation of pages; or all of the PASID.
        pages: Option<(Iova, u8, bool)>,
    },
    /// Type 7: PASID cache. Without a domain, all of it.
    PasidCache {
        /// The domain id that the cached entries carry.
        domain: Option<DomainId>,
    },
}

pub(super) const TYPE_CONTEXT: u128 = 1;
pub(super) const TYPE_IOTLB: u128 = 2;
pub(super) const TYPE_DEVICE_TLB: u128 = 3;
pub(super) const TYPE_INTERRUPT: u128 = 4;
pub(super) const TYPE_WAIT: u128 = 5;
pub(super) const TYPE_PASID_IOTLB: u128 = 6;
pub(super) const TYPE_PASID_CACHE: u128 = 7;

/// G of a PASID-cache invalidation: everything. A domain is 0.
pub(super) const PASID_CACHE_GLOBAL: u128 = 3;

/// Bits 63:12 of an address, in the high half of a descriptor.
pub(super) const ADDRESS: u128 = 0xffff_ffff_ffff_f000 << 64;
/// The address that, with S, means all of a device's TLB.
const DEVICE_TLB_ALL: u128 = 0x7fff_ffff_ffff_f000 << 64;
/// Device TLB: S.
pub(super) const SIZE: u128 = 1 << 64;

impl Descriptor {
    /// The descriptor as hardware reads it.
    #[must_use]
    #[inline(always)]
    pub const fn encode(self) -> RawDescriptor {
        RawDescriptor(match self {
            Self::Context { granularity, domain, source, mask } => {
                TYPE_CONTEXT
                    | (granularity as u128) << 4
                    | (domain.as_u16() as u128) << 16
                    | (source as u128) << 32
                    | (mask as u128) << 48
            }
            Self::Iotlb { granularity, domain, first, order, leaf_only, drain_writes, drain_reads } => {
                let pages = match granularity {
                    Granularity::Selective => pages_bits(first, order, leaf_only),
                    Granularity::Global | Granularity::Domain => 0,
                };
                TYPE_IOTLB
                    | (granularity as u128) << 4
                    | (drain_writes as u128) << 6
                    | (drain_reads as u128) << 7
                    | (domain.as_u16() as u128) << 16
                    | pages
            }
            Self::DeviceTlb { source, physical_function, queue_depth, scope } => {
                let (pfsid, depth) = (physical_function as u128, queue_depth.get() as u128);
                TYPE_DEVICE_TLB
                    | (pfsid & 0xf) << 12
                    | (depth & 0x1f) << 16
                    | (source as u128) << 32
                    | (pfsid >> 4) << 52
                    | device_scope_bits(scope)
            }
            Self::InterruptEntries { entries } => {
                TYPE_INTERRUPT
                    | match entries {
                        None => 0,
                        Some((index, order)) => 1 << 4 | (order as u128 & 0x1f) << 27 | (index as u128) << 32,
                    }
            }
            Self::Wait(wait) => wait.encode(),
            Self::PasidIotlb { domain, pages } => {
                let (granularity, pages) = match pages {
                    None => (Granularity::Domain, 0),
                    Some((first, order, leaf_only)) => {
                        (Granularity::Selective, pages_bits(first, order, leaf_only))
                    }
                };
                TYPE_PASID_IOTLB | (granularity as u128) << 4 | (domain.as_u16() as u128) << 16 | pages
            }
            Self::PasidCache { domain: None } => TYPE_PASID_CACHE | PASID_CACHE_GLOBAL << 4,
            Self::PasidCache { domain: Some(domain) } => TYPE_PASID_CACHE | (domain.as_u16() as u128) << 16,
        })
    }
}

impl Wait {
    #[inline]
    const fn encode(self) -> u128 {
        let fence = (self.fence as u128) << 6;
        match self.completion {
            Completion::Interrupt => TYPE_WAIT | fence | 1 << 4,
            Completion::Status { address, value } => {
                TYPE_WAIT | fence | 1 << 5 | (value as u128) << 32 | (address.as_u64() as u128 & !3) << 64
            }
        }
    }
}

#[inline]
const fn pages_bits(first: Iova, order: u8, leaf_only: bool) -> u128 {
    (order as u128 & 0x3f) << 64 | (leaf_only as u128) << 70 | ((first.as_u64() as u128) << 64 & ADDRESS)
}

/// S and the address of a device-TLB invalidation. The size of 2^n pages, n > 0, is n-1 ones from bit 12 upwards, and a
/// zero above them.
const fn device_scope_bits(scope: DeviceTlbScope) -> u128 {
    match scope {
        DeviceTlbScope::All => SIZE | DEVICE_TLB_ALL,
        DeviceTlbScope::Pages { first, order: 0 } => (first.as_u64() as u128) << 64 & ADDRESS,
        DeviceTlbScope::Pages { first, order } => {
            let size_bits = (1 << (order - 1)) - 1;
            let pages = (first.as_u64() >> 12 >> order << order | size_bits) as u128;
            SIZE | pages << 76
        }
    }
}

#[cfg(test)]
mod tests;
