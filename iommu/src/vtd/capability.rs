//! What a unit can do, decoded once from CAP and ECAP and checked.

use core::fmt;

use mm::table::LeafSizes;

use super::spec::{
    AddressWidth, Capabilities, ExtendedCapabilities, FaultRecord, Version,
    register::{FIXED_END, Width},
};

/// What a unit can do. Existence means that the registers it speaks of are where it says, and apart from each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capability {
    version: Version,
    cap: Capabilities,
    ecap: ExtendedCapabilities,
}

/// Why the capability registers of a unit make no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CapabilityError {
    /// A register reads as all ones: nothing answers at this address.
    Absent {
        /// The register.
        register: &'static str,
    },
    /// VER has no major version.
    NoVersion,
    /// CAP.ND has its reserved value.
    ReservedDomainCount,
    /// An area of registers overlaps the fixed registers or the other area.
    Overlap {
        /// CAP.FRO or ECAP.IRO.
        field: &'static str,
        /// Offset of the area in bytes.
        offset: usize,
    },
}

impl fmt::Display for CapabilityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent { register } => write!(f, "{register} reads as all ones"),
            Self::NoVersion => f.write_str("VER has major version 0"),
            Self::ReservedDomainCount => f.write_str("CAP.ND has the reserved value 7"),
            Self::Overlap { field, offset } => {
                write!(f, "the registers at {offset:#x} that {field} points to overlap others")
            }
        }
    }
}

impl core::error::Error for CapabilityError {}

/// Bytes of the IOTLB invalidation registers.
const INVALIDATE_BYTES: usize = 16;

impl Capability {
    /// Decodes and checks the registers.
    pub fn decode(
        version: Version,
        cap: Capabilities,
        ecap: ExtendedCapabilities,
    ) -> Result<Self, CapabilityError> {
        let absent = |register| Err(CapabilityError::Absent { register });
        if cap.into_bits() == u64::MAX {
            return absent("CAP");
        }
        if ecap.into_bits() == u64::MAX {
            return absent("ECAP");
        }
        if version.into_bits() == u32::MAX {
            return absent("VER");
        }
        if version.major() == 0 {
            return Err(CapabilityError::NoVersion);
        }
        if cap.domain_ids() == 7 {
            return Err(CapabilityError::ReservedDomainCount);
        }
        let capability = Self { version, cap, ecap };
        capability.check_areas()?;
        Ok(capability)
    }

    fn check_areas(&self) -> Result<(), CapabilityError> {
        let (faults, faults_end) = (self.fault_record(0), self.fault_record(self.fault_records()));
        if faults < FIXED_END {
            return Err(CapabilityError::Overlap { field: "CAP.FRO", offset: faults });
        }
        if !self.has_register_invalidation() {
            return Ok(());
        }
        let (invalidate, invalidate_end) =
            (self.invalidate_area(), self.invalidate_area() + INVALIDATE_BYTES);
        if invalidate < FIXED_END || (invalidate < faults_end && faults < invalidate_end) {
            return Err(CapabilityError::Overlap { field: "ECAP.IRO", offset: invalidate });
        }
        Ok(())
    }

    /// How many bytes of registers must be mapped: more than a page on some units.
    #[must_use]
    pub fn register_bytes(&self) -> usize {
        let faults = self.fault_record(self.fault_records());
        let invalidate = self.invalidate_area() + INVALIDATE_BYTES;
        faults.max(invalidate).max(FIRST_PAGE_BYTES)
    }

    /// Architecture version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// CAP as it was read.
    #[must_use]
    pub fn cap(&self) -> Capabilities {
        self.cap
    }

    /// ECAP as it was read.
    #[must_use]
    pub fn ecap(&self) -> ExtendedCapabilities {
        self.ecap
    }

    /// CAP.ND: number of domain ids, 16 to 65536.
    #[must_use]
    pub fn domain_ids(&self) -> u32 {
        1 << (4 + 2 * u32::from(self.cap.domain_ids()))
    }

    /// CAP.RWBF: hardware may not see new entries before the write buffer was flushed.
    #[must_use]
    pub fn needs_write_buffer_flush(&self) -> bool {
        self.cap.write_buffer()
    }

    /// CAP.CM: entries that are not present may be cached, so that new ones must be invalidated too.
    #[must_use]
    pub fn caches_not_present(&self) -> bool {
        self.cap.caching_mode()
    }

    /// ECAP.C: the unit's walks of tables in memory snoop the CPU's caches; those of page tables in legacy mode alone.
    #[must_use]
    pub fn walks_coherently(&self) -> bool {
        self.ecap.coherent()
    }

    /// CAP.SAGAW: whether second-stage tables may have `width`.
    #[must_use]
    pub fn has_width(&self, width: AddressWidth) -> bool {
        match width {
            AddressWidth::Bits39 => self.cap.width_39(),
            AddressWidth::Bits48 => self.cap.width_48(),
            AddressWidth::Bits57 => self.cap.width_57(),
        }
    }

    /// The largest second-stage width, or `None` if the unit translates nothing.
    #[must_use]
    pub fn widest(&self) -> Option<AddressWidth> {
        WIDTHS.into_iter().rev().find(|&width| self.has_width(width))
    }

    /// The smallest second-stage width that reaches every address that DMA may use, else the largest: levels beyond
    /// those of CAP.MGAW would only make walks longer.
    #[must_use]
    pub fn fitting_width(&self) -> Option<AddressWidth> {
        let enough = |&width: &AddressWidth| self.has_width(width) && width.bits() >= self.address_bits();
        WIDTHS.into_iter().find(enough).or_else(|| self.widest())
    }

    /// The second-stage width that is closest to what a first stage of 4 levels translates.
    #[must_use]
    pub fn width_of_first_stage(&self) -> Option<AddressWidth> {
        const OF_4_LEVELS: AddressWidth = AddressWidth::Bits48;
        if self.has_width(OF_4_LEVELS) { Some(OF_4_LEVELS) } else { self.widest() }
    }

    /// CAP.MGAW: width in bits of the highest address that DMA may use.
    #[must_use]
    pub fn address_bits(&self) -> u8 {
        self.cap.maximum_width() + 1
    }

    /// CAP.SSLPS: sizes of second-stage leaves.
    #[must_use]
    pub fn leaf_sizes(&self) -> LeafSizes {
        let mut sizes = LeafSizes::SIZE_4K;
        sizes.set(LeafSizes::SIZE_2M, self.cap.leaf_2m());
        sizes.set(LeafSizes::SIZE_1G, self.cap.leaf_1g());
        sizes
    }

    /// CAP.PSI and CAP.MAMV: log2 of the most pages that one IOTLB invalidation of the second stage may name, or `None`
    /// if it names no pages at all.
    #[must_use]
    #[inline]
    pub fn page_selective_order(&self) -> Option<u8> {
        self.cap.page_selective().then(|| self.cap.maximum_mask())
    }

    /// CAP.DWD: an invalidation can wait for writes in flight.
    #[must_use]
    #[inline]
    pub fn drains_writes(&self) -> bool {
        self.cap.drains_writes()
    }

    /// CAP.DRD: an invalidation can wait for reads in flight.
    #[must_use]
    #[inline]
    pub fn drains_reads(&self) -> bool {
        self.cap.drains_reads()
    }

    /// CAP.PLMR, CAP.PHMR: firmware may have blocked regions of memory.
    #[must_use]
    pub fn has_protected_memory(&self) -> bool {
        self.cap.protected_low() || self.cap.protected_high()
    }

    /// CAP.ESRTPS: taking over a root table empties the caches.
    #[must_use]
    pub fn set_root_invalidates(&self) -> bool {
        self.cap.set_root_invalidates()
    }

    /// CAP.ESIRTPS: taking over an interrupt-remapping table empties the interrupt-entry cache.
    #[must_use]
    pub fn set_interrupt_table_invalidates(&self) -> bool {
        self.cap.set_interrupt_table_invalidates()
    }

    /// ECAP.QI: there is an invalidation queue.
    #[must_use]
    pub fn has_queue(&self) -> bool {
        self.ecap.queued_invalidation()
    }

    /// Whether the registers for context and IOTLB invalidation exist: up to major version 5.
    #[must_use]
    pub fn has_register_invalidation(&self) -> bool {
        self.version.major() < 6
    }

    /// ECAP.DT: devices may cache translations. Invalidating their caches takes the queue.
    #[must_use]
    pub fn has_device_tlbs(&self) -> bool {
        self.ecap.device_tlb() && self.has_queue()
    }

    /// CAP.AFL: faults may go to a log in memory instead of the fault recording registers.
    #[must_use]
    pub fn has_advanced_fault_log(&self) -> bool {
        self.cap.advanced_fault_log()
    }

    /// ECAP.PRS: devices may ask for pages, of which the unit raises an event.
    #[must_use]
    pub fn has_page_requests(&self) -> bool {
        self.ecap.page_requests()
    }

    /// ECAP.DIT: a device-TLB invalidation names the physical function of a virtual one.
    #[must_use]
    pub fn names_physical_function(&self) -> bool {
        self.ecap.device_tlb_throttle()
    }

    /// ECAP.PT: context entries may pass requests through.
    #[must_use]
    pub fn has_pass_through(&self) -> bool {
        self.ecap.pass_through()
    }

    /// ECAP.SC: second-stage leaves may force snooping.
    #[must_use]
    pub fn controls_snooping(&self) -> bool {
        self.ecap.snoop_control()
    }

    /// ECAP.IR: interrupt remapping. It takes the queue.
    #[must_use]
    pub fn has_interrupt_remapping(&self) -> bool {
        self.ecap.interrupt_remapping() && self.has_queue()
    }

    /// ECAP.EIM: interrupt destinations may have 32 bits.
    #[must_use]
    pub fn has_extended_interrupts(&self) -> bool {
        self.has_interrupt_remapping() && self.ecap.extended_interrupts()
    }

    /// ECAP.MHMV: log2 of the most interrupt entries that one invalidation may name.
    #[must_use]
    pub fn interrupt_entries_order(&self) -> u8 {
        self.ecap.maximum_handle_mask()
    }

    /// ECAP.SMTS: scalable mode.
    #[must_use]
    pub fn has_scalable_mode(&self) -> bool {
        self.ecap.scalable()
    }

    /// ECAP.SSTS: second-stage tables in scalable mode.
    #[must_use]
    pub fn has_scalable_second_stage(&self) -> bool {
        self.ecap.second_stage()
    }

    /// ECAP.FSTS: first-stage tables in scalable mode.
    #[must_use]
    pub fn has_first_stage(&self) -> bool {
        self.ecap.first_stage()
    }

    /// CAP.FS1GP: sizes of first-stage leaves.
    #[must_use]
    pub fn first_stage_leaf_sizes(&self) -> LeafSizes {
        let mut sizes = LeafSizes::SIZE_4K | LeafSizes::SIZE_2M;
        sizes.set(LeafSizes::SIZE_1G, self.cap.first_stage_1g());
        sizes
    }

    /// ECAP.SMPWCS: in scalable mode, walks of page tables can be made to snoop the CPU's caches.
    #[must_use]
    pub fn walks_coherently_in_scalable_mode(&self) -> bool {
        self.ecap.scalable_coherent()
    }

    /// CAP.NFR: number of fault recording registers, 1 to 256.
    #[must_use]
    pub fn fault_records(&self) -> usize {
        usize::from(self.cap.fault_records()) + 1
    }

    /// CAP.FRO: offset in bytes of fault recording register `index`.
    #[must_use]
    pub fn fault_record(&self, index: usize) -> usize {
        usize::from(self.cap.fault_offset()) * 16 + index * FaultRecord::BYTES
    }

    /// ECAP.IRO: offset in bytes of the IOTLB invalidation registers.
    #[must_use]
    pub fn invalidate_area(&self) -> usize {
        usize::from(self.ecap.invalidate_offset()) * 16
    }
}

const WIDTHS: [AddressWidth; 3] = [AddressWidth::Bits39, AddressWidth::Bits48, AddressWidth::Bits57];

/// What is mapped to read the capability registers: all fixed registers that this crate uses lie in it.
pub(super) const FIRST_PAGE_BYTES: usize = mm::PAGE_BYTES as usize;
const _: () = assert!(FIXED_END + <u64 as Width>::BYTES <= FIRST_PAGE_BYTES);

#[cfg(test)]
mod tests;
