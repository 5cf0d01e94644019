//! The capability registers as they are read. What they mean for the driver is in
//! [`Capability`](crate::vtd::Capability).

use bitfield_struct::bitfield;

use super::register::register;

/// CAP.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Capabilities {
    /// ND: 2^(4+2*ND) domain ids; 7 is reserved.
    #[bits(3)]
    pub domain_ids: u8,
    /// AFL: advanced fault log, gone since revision 4.0.
    pub advanced_fault_log: bool,
    /// RWBF: the write buffer must be flushed before hardware sees new entries.
    pub write_buffer: bool,
    /// PLMR: there is a protected region below 4 GiB.
    pub protected_low: bool,
    /// PHMR: there is a protected region anywhere.
    pub protected_high: bool,
    /// CM: entries that are not present may be cached.
    pub caching_mode: bool,
    #[bits(1)]
    __: u8,
    /// SAGAW, bit 9: 39-bit second stage of 3 levels.
    pub width_39: bool,
    /// SAGAW, bit 10: 48-bit second stage of 4 levels.
    pub width_48: bool,
    /// SAGAW, bit 11: 57-bit second stage of 5 levels.
    pub width_57: bool,
    #[bits(4)]
    __: u8,
    /// MGAW: width of the highest address that DMA may use, less one.
    #[bits(6)]
    pub maximum_width: u8,
    /// ZLR: a zero-length read of a write-only page is allowed.
    pub zero_length_read: bool,
    #[bits(1)]
    __: u8,
    /// FRO: offset of the fault recording registers, in units of 16 bytes.
    #[bits(10)]
    pub fault_offset: u16,
    /// SSLPS, bit 34: 2 MiB leaves in the second stage.
    pub leaf_2m: bool,
    /// SSLPS, bit 35: 1 GiB leaves in the second stage.
    pub leaf_1g: bool,
    #[bits(3)]
    __: u8,
    /// PSI: page-selective invalidation.
    pub page_selective: bool,
    /// NFR: number of fault recording registers, less one.
    pub fault_records: u8,
    /// MAMV: highest address mask of a page-selective invalidation.
    #[bits(6)]
    pub maximum_mask: u8,
    /// DWD: writes in flight can be drained.
    pub drains_writes: bool,
    /// DRD: reads in flight can be drained.
    pub drains_reads: bool,
    /// FS1GP: 1 GiB leaves in the first stage.
    pub first_stage_1g: bool,
    #[bits(2)]
    __: u8,
    /// PI: posted interrupts.
    pub posted_interrupts: bool,
    /// FS5LP: first stage of 5 levels.
    pub first_stage_5_levels: bool,
    /// ECMDS: enhanced command interface.
    pub enhanced_commands: bool,
    /// ESIRTPS: hardware invalidates by itself when it takes over an interrupt-remapping table.
    pub set_interrupt_table_invalidates: bool,
    /// ESRTPS: hardware invalidates by itself when it takes over a root table.
    pub set_root_invalidates: bool,
}
register!(Capabilities: u64 @ 0x008, ReadOnly);
pin_bits!(Capabilities:
    with_domain_ids(7) = 0b111,
    with_advanced_fault_log(true) = 1 << 3,
    with_write_buffer(true) = 1 << 4,
    with_protected_low(true) = 1 << 5,
    with_protected_high(true) = 1 << 6,
    with_caching_mode(true) = 1 << 7,
    with_width_39(true) = 1 << 9,
    with_width_48(true) = 1 << 10,
    with_width_57(true) = 1 << 11,
    with_maximum_width(0x3f) = 0x3f << 16,
    with_zero_length_read(true) = 1 << 22,
    with_fault_offset(0x3ff) = 0x3ff << 24,
    with_leaf_2m(true) = 1 << 34,
    with_leaf_1g(true) = 1 << 35,
    with_page_selective(true) = 1 << 39,
    with_fault_records(0xff) = 0xff << 40,
    with_maximum_mask(0x3f) = 0x3f << 48,
    with_drains_writes(true) = 1 << 54,
    with_drains_reads(true) = 1 << 55,
    with_first_stage_1g(true) = 1 << 56,
    with_posted_interrupts(true) = 1 << 59,
    with_first_stage_5_levels(true) = 1 << 60,
    with_enhanced_commands(true) = 1 << 61,
    with_set_interrupt_table_invalidates(true) = 1 << 62,
    with_set_root_invalidates(true) = 1 << 63,
);

/// ECAP.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ExtendedCapabilities {
    /// C: walks of the tables in memory snoop the CPU's caches.
    pub coherent: bool,
    /// QI: invalidation queue.
    pub queued_invalidation: bool,
    /// DT: device TLBs.
    pub device_tlb: bool,
    /// IR: interrupt remapping.
    pub interrupt_remapping: bool,
    /// EIM: 32-bit interrupt destinations.
    pub extended_interrupts: bool,
    #[bits(1)]
    __: u8,
    /// PT: pass-through context entries.
    pub pass_through: bool,
    /// SC: the second stage can force snooping.
    pub snoop_control: bool,
    /// IRO: offset of the IOTLB invalidation registers, in units of 16 bytes.
    #[bits(10)]
    pub invalidate_offset: u16,
    #[bits(2)]
    __: u8,
    /// MHMV: highest mask of an interrupt-entry invalidation.
    #[bits(4)]
    pub maximum_handle_mask: u8,
    #[bits(1)]
    __: u8,
    /// MTS: memory types.
    pub memory_types: bool,
    /// NEST: nested translation.
    pub nested: bool,
    #[bits(2)]
    __: u8,
    /// PRS: page requests.
    pub page_requests: bool,
    /// ERS: execute requests.
    pub execute_requests: bool,
    /// SRS: supervisor requests.
    pub supervisor_requests: bool,
    #[bits(1)]
    __: u8,
    /// NWFS: no-write flag in translation requests.
    pub no_write_flag: bool,
    /// EAFS: extended accessed flag.
    pub extended_accessed_flag: bool,
    /// PSS: bits of a PASID, less one.
    #[bits(5)]
    pub pasid_bits: u8,
    /// PASID: requests with PASID.
    pub pasid: bool,
    /// DIT: device-TLB invalidations carry the physical function's id.
    pub device_tlb_throttle: bool,
    /// PDS: wait descriptors can drain page requests.
    pub page_request_drain: bool,
    /// SMTS: scalable mode.
    pub scalable: bool,
    /// VCS: virtual commands.
    pub virtual_commands: bool,
    /// SSADS: accessed and dirty bits in the second stage.
    pub second_stage_accessed_dirty: bool,
    /// SSTS: second stage in scalable mode.
    pub second_stage: bool,
    /// FSTS: first stage in scalable mode.
    pub first_stage: bool,
    /// SMPWCS: coherent walks in scalable mode.
    pub scalable_coherent: bool,
    /// RPS: RID_PASID may be other than 0.
    pub rid_pasid: bool,
    #[bits(1)]
    __: u8,
    /// PMS: performance monitoring.
    pub performance_monitoring: bool,
    /// ADMS: a root-table mode that aborts all DMA.
    pub abort_mode: bool,
    /// RPRIVS: RID_PRIV.
    pub rid_privilege: bool,
    #[bits(4)]
    __: u8,
    /// SMS: stop-marker messages.
    pub stop_marker: bool,
    #[bits(5)]
    __: u8,
}
register!(ExtendedCapabilities: u64 @ 0x010, ReadOnly);
pin_bits!(ExtendedCapabilities:
    with_coherent(true) = 1,
    with_queued_invalidation(true) = 1 << 1,
    with_device_tlb(true) = 1 << 2,
    with_interrupt_remapping(true) = 1 << 3,
    with_extended_interrupts(true) = 1 << 4,
    with_pass_through(true) = 1 << 6,
    with_snoop_control(true) = 1 << 7,
    with_invalidate_offset(0x3ff) = 0x3ff << 8,
    with_maximum_handle_mask(0xf) = 0xf << 20,
    with_memory_types(true) = 1 << 25,
    with_nested(true) = 1 << 26,
    with_page_requests(true) = 1 << 29,
    with_execute_requests(true) = 1 << 30,
    with_supervisor_requests(true) = 1 << 31,
    with_no_write_flag(true) = 1 << 33,
    with_extended_accessed_flag(true) = 1 << 34,
    with_pasid_bits(0x1f) = 0x1f << 35,
    with_pasid(true) = 1 << 40,
    with_device_tlb_throttle(true) = 1 << 41,
    with_page_request_drain(true) = 1 << 42,
    with_scalable(true) = 1 << 43,
    with_virtual_commands(true) = 1 << 44,
    with_second_stage_accessed_dirty(true) = 1 << 45,
    with_second_stage(true) = 1 << 46,
    with_first_stage(true) = 1 << 47,
    with_scalable_coherent(true) = 1 << 48,
    with_rid_pasid(true) = 1 << 49,
    with_performance_monitoring(true) = 1 << 51,
    with_abort_mode(true) = 1 << 52,
    with_rid_privilege(true) = 1 << 53,
    with_stop_marker(true) = 1 << 58,
);
