//! Reading descriptors back: to report the one that hardware refused, and for models of the hardware.

use core::{fmt, num::NonZeroU8};

use mm::PhysAddr;

use super::{
    Completion, Descriptor, DeviceTlbScope, DomainId, FunctionMask, Granularity, RawDescriptor, Wait,
    descriptor::{
        ADDRESS, PASID_CACHE_GLOBAL, SIZE, TYPE_CONTEXT, TYPE_DEVICE_TLB, TYPE_INTERRUPT, TYPE_IOTLB,
        TYPE_PASID_CACHE, TYPE_PASID_IOTLB, TYPE_WAIT,
    },
};
use crate::Iova;

/// 128 bits that are no descriptor this crate writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UnknownDescriptor(pub RawDescriptor);

impl fmt::Debug for UnknownDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown descriptor {:#034x}", self.0.0)
    }
}

impl fmt::Display for UnknownDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl core::error::Error for UnknownDescriptor {}

impl RawDescriptor {
    /// The descriptor by its meaning. Exactly the values that [`Descriptor::encode`] yields are understood: anything
    /// with a reserved bit set is not.
    pub fn decode(self) -> Result<Descriptor, UnknownDescriptor> {
        // The type has two parts, 3:0 and 11:9; every type understood here is below 16.
        let decoded = match self.field(0, 4) | self.field(9, 3) << 4 {
            TYPE_CONTEXT => self.context(),
            TYPE_IOTLB => self.iotlb(),
            TYPE_DEVICE_TLB => self.device_tlb(),
            TYPE_INTERRUPT => Some(self.interrupt_entries()),
            TYPE_WAIT => self.wait(),
            TYPE_PASID_IOTLB => self.pasid_iotlb(),
            TYPE_PASID_CACHE => Some(self.pasid_cache()),
            _ => None,
        };
        // Whatever the fields do not say again was reserved.
        decoded.filter(|descriptor| descriptor.encode() == self).ok_or(UnknownDescriptor(self))
    }

    const fn field(self, first_bit: u32, bits: u32) -> u128 {
        self.0 >> first_bit & ((1 << bits) - 1)
    }

    const fn domain(self) -> DomainId {
        DomainId::new(self.field(16, 16) as u16)
    }

    const fn granularity(self) -> Option<Granularity> {
        match self.field(4, 2) {
            1 => Some(Granularity::Global),
            2 => Some(Granularity::Domain),
            3 => Some(Granularity::Selective),
            _ => None,
        }
    }

    const fn page_address(self) -> u64 {
        ((self.0 & ADDRESS) >> 64) as u64
    }

    fn context(self) -> Option<Descriptor> {
        Some(Descriptor::Context {
            granularity: self.granularity()?,
            domain: self.domain(),
            source: self.field(32, 16) as u16,
            mask: FunctionMask::from_bits(self.field(48, 2) as u8),
        })
    }

    fn iotlb(self) -> Option<Descriptor> {
        Some(Descriptor::Iotlb {
            granularity: self.granularity()?,
            domain: self.domain(),
            first: Iova::new(self.page_address()),
            order: self.field(64, 6) as u8,
            leaf_only: self.field(70, 1) != 0,
            drain_writes: self.field(6, 1) != 0,
            drain_reads: self.field(7, 1) != 0,
        })
    }

    fn pasid_iotlb(self) -> Option<Descriptor> {
        let pages = match self.granularity()? {
            Granularity::Global => return None,
            Granularity::Domain => None,
            Granularity::Selective => {
                let (order, leaf_only) = (self.field(64, 6) as u8, self.field(70, 1) != 0);
                Some((Iova::new(self.page_address()), order, leaf_only))
            }
        };
        Some(Descriptor::PasidIotlb { domain: self.domain(), pages })
    }

    fn device_tlb(self) -> Option<Descriptor> {
        // A depth of 32 is stored as 0.
        let queue_depth = NonZeroU8::new(self.field(16, 5) as u8).or(NonZeroU8::new(32))?;
        Some(Descriptor::DeviceTlb {
            source: self.field(32, 16) as u16,
            physical_function: (self.field(12, 4) | self.field(52, 12) << 4) as u16,
            queue_depth,
            scope: self.device_scope(),
        })
    }

    fn device_scope(self) -> DeviceTlbScope {
        let address = self.page_address();
        if self.0 & SIZE == 0 {
            return DeviceTlbScope::Pages { first: Iova::new(address), order: 0 };
        }
        let order = (address >> 12).trailing_ones() as u8 + 1;
        if order > DeviceTlbScope::MAX_ORDER {
            return DeviceTlbScope::All;
        }
        DeviceTlbScope::Pages { first: Iova::new(address >> 12 >> order << order << 12), order }
    }

    fn interrupt_entries(self) -> Descriptor {
        let one = (self.field(32, 16) as u16, self.field(27, 5) as u8);
        Descriptor::InterruptEntries { entries: (self.field(4, 1) != 0).then_some(one) }
    }

    fn pasid_cache(self) -> Descriptor {
        let is_global = self.field(4, 2) == PASID_CACHE_GLOBAL;
        Descriptor::PasidCache { domain: (!is_global).then_some(self.domain()) }
    }

    fn wait(self) -> Option<Descriptor> {
        let completion = match (self.field(4, 1), self.field(5, 1)) {
            (1, 0) => Completion::Interrupt,
            (0, 1) => Completion::Status {
                address: PhysAddr::checked(((self.0 >> 64) as u64) & !3)?,
                value: self.field(32, 32) as u32,
            },
            _ => return None,
        };
        Some(Descriptor::Wait(Wait { completion, fence: self.field(6, 1) != 0 }))
    }
}
