//! Version, global command and status, root table, protected memory.

use bitfield_struct::bitfield;
use mm::PhysAddr;

use super::{
    address::{frame, frame_address},
    register::register,
};

/// VER: the architecture version that the unit implements.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Version {
    /// Minor version.
    #[bits(4)]
    pub minor: u8,
    /// Major version. From 6 on, the registers for context and IOTLB invalidation are gone.
    #[bits(4)]
    pub major: u8,
    #[bits(24)]
    __: u32,
}
register!(Version: u32 @ 0x000, ReadOnly);
pin_bits!(Version: with_minor(0xf) = 0xf, with_major(0xf) = 0xf0);

/// GCMD: what the unit is to do. Write-only; [`GlobalStatus`] tells what is on.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GlobalCommand {
    #[bits(23)]
    __: u32,
    /// CFI: let interrupts in compatibility format through.
    pub compatibility_interrupts: bool,
    /// SIRTP, one-shot: take over the interrupt-remapping table address.
    pub set_interrupt_table: bool,
    /// IRE: interrupt remapping on.
    pub interrupt_remapping: bool,
    /// QIE: invalidation queue on.
    pub queued_invalidation: bool,
    /// WBF, one-shot: flush the write buffer.
    pub write_buffer_flush: bool,
    /// EAFL: advanced fault log on; gone since revision 4.0.
    pub advanced_fault_log: bool,
    /// SFL, one-shot: take over the fault log address; gone since revision 4.0.
    pub set_fault_log: bool,
    /// SRTP, one-shot: take over the root table address.
    pub set_root_table: bool,
    /// TE: DMA remapping on.
    pub translation: bool,
}
register!(GlobalCommand: u32 @ 0x018, WriteOnly);
pin_bits!(GlobalCommand:
    with_compatibility_interrupts(true) = 1 << 23,
    with_set_interrupt_table(true) = 1 << 24,
    with_interrupt_remapping(true) = 1 << 25,
    with_queued_invalidation(true) = 1 << 26,
    with_write_buffer_flush(true) = 1 << 27,
    with_advanced_fault_log(true) = 1 << 28,
    with_set_fault_log(true) = 1 << 29,
    with_set_root_table(true) = 1 << 30,
    with_translation(true) = 1 << 31,
);

/// GSTS: what the unit has done.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GlobalStatus {
    #[bits(23)]
    __: u32,
    /// CFIS: interrupts in compatibility format pass.
    pub compatibility_interrupts: bool,
    /// IRTPS: the interrupt-remapping table address has been taken over.
    pub interrupt_table_set: bool,
    /// IRES: interrupt remapping is on.
    pub interrupt_remapping: bool,
    /// QIES: the invalidation queue is on.
    pub queued_invalidation: bool,
    /// WBFS: a write-buffer flush is under way.
    pub write_buffer_busy: bool,
    /// AFLS: the advanced fault log is on.
    pub advanced_fault_log: bool,
    /// FLS: the fault log address has been taken over.
    pub fault_log_set: bool,
    /// RTPS: the root table address has been taken over.
    pub root_table_set: bool,
    /// TES: DMA remapping is on.
    pub translation: bool,
}
register!(GlobalStatus: u32 @ 0x01c, ReadOnly);
pin_bits!(GlobalStatus:
    with_compatibility_interrupts(true) = 1 << 23,
    with_interrupt_table_set(true) = 1 << 24,
    with_interrupt_remapping(true) = 1 << 25,
    with_queued_invalidation(true) = 1 << 26,
    with_write_buffer_busy(true) = 1 << 27,
    with_advanced_fault_log(true) = 1 << 28,
    with_fault_log_set(true) = 1 << 29,
    with_root_table_set(true) = 1 << 30,
    with_translation(true) = 1 << 31,
);

impl GlobalStatus {
    /// The command that leaves everything as it is: what is on stays on, and no one-shot bit is repeated. Except for
    /// the advanced fault log: nothing here reads it, so that no command may leave it on.
    #[must_use]
    pub const fn unchanged(self) -> GlobalCommand {
        GlobalCommand::new()
            .with_compatibility_interrupts(self.compatibility_interrupts())
            .with_interrupt_remapping(self.interrupt_remapping())
            .with_queued_invalidation(self.queued_invalidation())
            .with_translation(self.translation())
    }
}
const _: () = assert!(GlobalStatus::from_bits(u32::MAX).unchanged().into_bits() == 0x8680_0000);

/// RTADDR.TTM: what the root table's entries look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TranslationTable {
    /// 16-byte context entries.
    Legacy = 0,
    /// 32-byte context entries that point to PASID directories.
    Scalable = 1,
    /// Reserved.
    Reserved = 2,
    /// No table: all DMA is aborted (ECAP.ADMS).
    Abort = 3,
}

impl TranslationTable {
    const fn into_bits(self) -> u8 {
        self as u8
    }

    const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Legacy,
            1 => Self::Scalable,
            2 => Self::Reserved,
            _ => Self::Abort,
        }
    }
}

/// RTADDR: where the root table lies; taken over at [`GlobalCommand::set_root_table`].
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RootTableAddress {
    #[bits(10)]
    __: u16,
    /// TTM.
    #[bits(2, default = TranslationTable::Legacy)]
    pub table: TranslationTable,
    /// Page number of the root table.
    #[bits(52)]
    pub frame: u64,
}
register!(RootTableAddress: u64 @ 0x020, ReadWrite);
pin_bits!(RootTableAddress:
    with_table(TranslationTable::Scalable) = 1 << 10,
    with_table(TranslationTable::Abort) = 3 << 10,
    with_frame(1) = 1 << 12,
    with_frame((1 << 52) - 1) = !0xfff,
);

impl RootTableAddress {
    /// The table of kind `table` at `address`, which is page-aligned.
    #[must_use]
    pub const fn at(address: PhysAddr, table: TranslationTable) -> Self {
        Self::new().with_frame(frame(address)).with_table(table)
    }

    /// Where the table lies.
    #[must_use]
    pub const fn address(self) -> PhysAddr {
        frame_address(self.frame())
    }
}

/// PMEN: the protected memory regions, with which firmware blocks DMA until an operating system takes over.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ProtectedMemoryEnable {
    /// PRS, read-only: the regions are blocked.
    pub active: bool,
    #[bits(30)]
    __: u32,
    /// EPM: block the regions.
    pub enable: bool,
}
register!(ProtectedMemoryEnable: u32 @ 0x064, ReadWrite);
pin_bits!(ProtectedMemoryEnable: with_active(true) = 1, with_enable(true) = 1 << 31);
